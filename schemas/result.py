"""What a job gives back. Plain dictionaries, because the SDK sends nothing else."""

from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from schemas.output import Format

Backend = Literal["a1111", "simulator"]
How = Literal["base64", "url", "volume"]
"""What `images` holds."""
ImageKind = Literal["picture", "grid", "mask", "detect_map", "unknown"]
"""What an image of an answer is; unknown for what a script or an extension adds."""


class CacheInfo(TypedDict):
    """Totals of the model store, under the names that callers of the original worker read."""

    checkpoints_cached: int
    loras_cached: int
    total_cache_size_mb: float


class ModelUsed(TypedDict):
    """One model of the job: what it is, and what it cost to have it."""

    kind: str
    name: str
    sha256: str | None
    checked: str
    """Which `hash` of the request was compared with the file: `sha256`, `autov2`, `autov3`, or none."""
    cached: bool
    fetched_bytes: int
    """Of them this job brought; the rest was there, or another worker brought it."""
    download_s: float


class Timings(TypedDict):
    """Consecutive slices of the job's time in seconds, and their sum; docs/api.md says what each is."""

    download_s: float
    webui_wait_s: float
    load_s: float
    generate_s: float
    encode_s: float
    deliver_s: float
    total_s: float
    """What the six add up to, to the millisecond."""
    images_per_s: NotRequired[float]
    """Pictures by `generate_s`; not there if nothing was generated."""
    cost: NotRequired[float]
    """`total_s` at A1111_JOB_PRICE_PER_S, if that is set."""


class Delivered(TypedDict):
    """What the pictures of an answer are, all of them alike."""

    format: Format
    lossless: bool
    quality: int | None
    """Of a format that loses something, 1 to 100."""
    delivery: How


class Result(TypedDict):
    """A finished generation. `images`, `parameters` and `info` are A1111's own."""

    images: list[str]
    """Base64, or as `output.delivery` says URLs, or paths on the network volume."""
    image_kinds: list[ImageKind]
    """Of each of `images`."""
    output: Delivered | None
    """None without images."""
    parameters: dict[str, Any]
    info: str
    seed: int
    seeds: list[int]
    cache_info: CacheInfo
    models: list[ModelUsed]
    timings: Timings
    warnings: list[str]
    backend: Backend


class Progress(TypedDict):
    """What RunPod shows as `output` while a job runs."""

    stage: Literal["fetching", "verifying", "loading", "sampling", "encoding", "uploading"]
    percent: int
    """Of this stage; 0 where it cannot be known."""
    eta_s: NotRequired[float]
    """Seconds that this stage will take yet."""
    step: NotRequired[int | None]
    steps: NotRequired[int | None]
    detail: NotRequired[str]
    """For people: which model, which picture of how many."""
    done_bytes: NotRequired[int]
    total_bytes: NotRequired[int | None]
    preview: NotRequired[str]
    """A small JPEG as base64, if the request asked for `previews`."""


class Failure(TypedDict):
    """What a job that failed gives back; docs/errors.md lists the codes."""

    error: str
    """All of it for people: code, what happened, what to do. RunPod may drop what is beside it."""
    code: str
    retryable: bool
    """Whether the same request can succeed later."""
    details: NotRequired[dict[str, Any]]
    """For programs: `field`, `problems`, …"""
    refresh_worker: NotRequired[bool]
