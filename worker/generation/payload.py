"""From a checked request and its models to the JSON that A1111 is sent. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schemas.job import SAME_CHECKPOINT, Generation, Img2Img, Txt2Img
from worker.generation import overrides


@dataclass(frozen=True)
class Chosen:
    """The models of a job: the names of their files in the folder that A1111 is shown."""

    checkpoint: str
    vae: str = "None"
    """"None": the checkpoint's own."""
    refiner: str | None = None
    hires: str | None = None


def route(job: Generation) -> str:
    """Return the route below /sdapi/v1/ that does this job."""
    return "img2img" if isinstance(job, Img2Img) else "txt2img"


def body(
    job: Generation, chosen: Chosen, changes: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the request body.

    The checkpoint is always sent: a request without one runs on what the last job loaded. It is not
    restored afterwards: A1111 would only set the name back, keep the other model loaded, and load
    again for the next request. Source: recorded from A1111 1.10.1: seq_override_checkpoint.

    Args:
        job: the request.
        chosen: its models.
        changes: fields that differ from what the caller sent (prompts, sampler, images).
        options: A1111's other options for this job, the values it must not inherit included.
    """
    sent = {**job.webui_fields(), **changes}
    sent["override_settings"] = {
        # First: A1111 applies them in order, and a VAE is applied to the loaded checkpoint.
        overrides.CHECKPOINT: chosen.checkpoint,
        overrides.VAE: chosen.vae,
        **options,
    }
    sent["override_settings_restore_afterwards"] = False
    if chosen.refiner is not None:
        sent["refiner_checkpoint"] = chosen.refiner
    if isinstance(job, Txt2Img) and job.hr_checkpoint_name is not None:
        sent["hr_checkpoint_name"] = chosen.hires or SAME_CHECKPOINT
    return sent
