"""A1111: how it is started, and how long it may take."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from schemas.sections.base import AbsolutePath, Section


class WebuiSettings(Section):
    """What worker needs to know about the child process."""

    kind: Literal["a1111", "forge"] = Field(
        "a1111",
        description="Which WebUI it is: AUTOMATIC1111's, or Forge; WEBUI_KIND is the same.",
    )
    port: int = Field(3000, ge=1, le=65535, description="Loopback port of A1111.")
    links: AbsolutePath = Field(
        Path("/tmp/a1111-models"),  # noqa: S108 - the container's own disk, one worker per container
        description="Local folder of links, the only model folder that A1111 is shown.",
    )
    ready_timeout_s: float = Field(
        300, gt=0, le=420, description="From start to A1111's first answer; RunPod gives up at 420."
    )
    eager: bool = Field(
        False,
        description="Take the first job while A1111 starts, and fetch its models meanwhile.",
    )
    warm_up: bool = Field(
        False,
        description="Load the default checkpoint, with one step of a small picture, before the "
        "first job.",
    )
    job_timeout_s: float = Field(
        900, gt=0, description="Longest wait for one answer of A1111, loading included."
    )
    stall_s: float = Field(
        120, gt=0, description="Longest that A1111 may show no change in the midst of a job."
    )
    load_mb_s: float = Field(
        25,
        gt=0,
        description="Slowest that models load, in MB/s: while they do, their size at this rate is "
        "added to A1111_WEBUI_STALL_S.",
    )
    stop_s: float = Field(
        20, gt=0, description="How long A1111 may take to stop when interrupted; then it is killed."
    )
    max_rss_gb: float | None = Field(
        None,
        gt=0,
        description="Memory of A1111, in GB (10^9 bytes), above which it is restarted between "
        "jobs. Unset: nine tenths of what the container may have.",
    )
    max_switches: int | None = Field(
        None,
        gt=0,
        description="Checkpoints that A1111 loads before it is restarted between jobs. Unset: any "
        "number.",
    )
    loaded_checkpoints: int | None = Field(
        None,
        gt=0,
        description="Checkpoints that A1111 keeps in memory. Unset: by the memory there is.",
    )
    attention: Literal["auto", "xformers", "sdp", "none"] = Field(
        "auto",
        description="How A1111 computes attention; auto: xformers where it is installed, else sdp.",
    )
    vram: Literal["auto", "high", "medium", "low"] = Field(
        "auto",
        description="How A1111 shares the GPU's memory (--medvram, --lowvram); auto: by its size.",
    )
    flags: str = Field("", description="Appended to A1111's command line by start.sh.")
    checkpoint: str = Field(
        "", description="Used when a request names none; empty: the only one there is."
    )
