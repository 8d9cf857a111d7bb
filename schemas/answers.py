"""What the commands below /v1/ answer. docs/commands.md shows each by an example."""

from collections.abc import Mapping
from typing import Any, Literal, NotRequired

from typing_extensions import TypedDict  # pydantic reads no other before Python 3.12

from schemas.result import CacheInfo

_Success = Literal["success"]


class FetchedModel(TypedDict):
    """What became of one model."""

    kind: str
    name: str
    state: Literal["fetched", "present"]
    path: str
    sha256: str | None
    size_bytes: int
    cached: bool
    checked: str
    download_s: float
    warnings: list[str]


class Downloaded(FetchedModel):
    """Answer of /v1/download."""

    msg: str
    source_url: str
    download_path: str


class SkippedFile(TypedDict):
    """A file of a repository that was not taken."""

    file: str
    reason: str


class Synced(TypedDict):
    """Answer of /v1/sync."""

    synced_count: int
    synced_files: list[str]
    present: int
    skipped_count: int
    skipped: list[SkippedFile]
    commit: str
    models: list[FetchedModel]


class Prefetched(TypedDict):
    """Answer of /v1/prefetch."""

    models: list[FetchedModel]
    fetched: int
    present: int


class ListedModel(TypedDict):
    """All that is known of a model on the volume."""

    name: str
    kind: str
    path: str
    sha256: str | None
    size_bytes: int
    mtime_ns: int
    base: str
    base_by: str
    alias: str
    source: str
    autov3: str
    origin: str
    last_used: float | None
    """Unix time."""
    uses: int
    pinned: bool


class LabelledModel(ListedModel):
    """A model and what people call it."""

    label: str


class ListedLora(ListedModel):
    """A LoRA, with DiffusionAPI's default."""

    scale: float


class ModelsListed(TypedDict):
    """Answer of /v1/models."""

    status: _Success
    models: list[LabelledModel]


class LorasListed(TypedDict):
    """Answer of /v1/loras."""

    status: _Success
    loras: list[ListedLora]


class Alias(TypedDict):
    """One line of aliases.json."""

    name: str
    label: str
    kind: str
    here: bool


class AliasesListed(TypedDict):
    """Answer of /v1/models/aliases."""

    status: _Success
    models: list[Alias]
    message: str


class Upscaler(TypedDict):
    """An upscaler that A1111 offers; whether its weights are here."""

    name: str
    path: str
    here: bool


class UpscalersListed(TypedDict):
    """Answer of /v1/upscalers."""

    status: _Success
    upscalers: list[Upscaler]


class SamplersListed(TypedDict):
    """Answer of /v1/sampling-methods."""

    status: _Success
    sampling_methods: list[str]
    scheduler_types: list[str]
    schedulers: list[dict[str, Any]]
    """As A1111 describes them."""


class NamedModel(TypedDict):
    """A model by its kind and name."""

    kind: str
    name: str


class CacheAccount(CacheInfo):
    """Answer of /v1/cache."""

    volume: str
    kinds: dict[str, int]
    budget_bytes: int | None
    models_bytes: int
    fetching_bytes: int
    evictable_bytes: int
    pinned_bytes: int
    in_use_bytes: int
    brought_bytes: int
    pins: list[NamedModel]


class CheckedModel(NamedModel):
    """A file that was checked."""

    path: str
    state: Literal["good", "unhashed", "touched", "bad"]
    said: str


class Verified(TypedDict):
    """Answer of /v1/verify."""

    checked: int
    by: Literal["hash", "header"]
    good: int
    unhashed: int
    touched: int
    bad: int
    models: list[CheckedModel]


class EvictedModel(NamedModel):
    """A file that went, or would."""

    path: str
    size_bytes: int


class Pruned(TypedDict):
    """Answer of /v1/prune."""

    dry_run: bool
    freed_bytes: int
    evicted: list[EvictedModel]


class CivitaiFile(TypedDict):
    """A file of a version of a model."""

    id: int
    name: str
    type: str
    kind: str | None
    primary: bool
    size_bytes: int | None
    format: str
    hashes: dict[str, str]
    pickle_scan: str
    virus_scan: str
    url: str
    here: list[NamedModel]


class CivitaiVersion(TypedDict):
    """A version of a model."""

    id: int
    name: str
    base_model: str
    trained_words: list[str]
    air: str
    published: str
    early_access_ends: str
    url: str
    files: list[CivitaiFile]


class CivitaiModel(TypedDict):
    """A model's page."""

    id: int | None
    name: str
    type: str


class CivitaiTold(TypedDict):
    """Answer of /v1/civitai."""

    model: CivitaiModel
    versions: list[CivitaiVersion]


class Judged(TypedDict):
    """A file and the architecture that it is for."""

    name: str
    base: str
    base_by: str
    flaw: NotRequired[str]
    """Why it cannot be used at all."""


class Mismatch(TypedDict):
    """A LoRA that does not go with a checkpoint."""

    lora: str
    reason: str


class JudgedCheckpoint(Judged):
    """A checkpoint, and the LoRAs that go with it and that do not."""

    summary: str
    compatible: list[str]
    incompatible: list[Mismatch]
    unknown: list[str]


class CompatibilityTold(TypedDict):
    """Answer of /v1/compatibility."""

    generated: str
    total_tests: int
    compatible: int
    incompatible: int
    unknown: int
    success_rate: float
    loras: list[Judged]
    models: list[JudgedCheckpoint]


class HealthTold(TypedDict):
    """Answer of /v1/health; docs/api.md says what is in its objects."""

    status: Literal["ready", "starting", "lost"]
    written: float
    up_s: float
    pid: int
    webui: dict[str, Any]
    jobs: list[dict[str, Any]]
    jobs_done: int
    versions: dict[str, Any]
    settings: dict[str, Any]
    memory: dict[str, Any] | None
    store: dict[str, Any]
    timestamp: float
    version: str
    system: dict[str, Any]
    gpu: dict[str, Any]
    models: dict[str, Any]
    loras: dict[str, Any]
    queue: dict[str, Any]
    outputs: dict[str, Any]


ANSWERS: Mapping[str, Any] = {
    "health": HealthTold,
    "download": Downloaded,
    "sync": Synced,
    "prefetch": Prefetched,
    "models": ModelsListed,
    "models/aliases": AliasesListed,
    "loras": LorasListed,
    "upscalers": UpscalersListed,
    "sampling-methods": SamplersListed,
    "sampling_methods": SamplersListed,
    "cache": CacheAccount,
    "verify": Verified,
    "prune": Pruned,
    "civitai": CivitaiTold,
    "compatibility": CompatibilityTold,
    "schema": dict[str, dict[str, Any]],
}
"""By the name of the command, as in `schemas.commands.COMMANDS`."""
