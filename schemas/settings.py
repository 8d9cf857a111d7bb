"""The environment, parsed once at start into frozen values."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)

from schemas.bucket import Addressing, Destination, Key, Keys, address_of
from schemas.model_ref import Kind
from schemas.output import LADDER, Delivery, Ladder, PictureFormat, Prefix, Quality

PREFIX = "A1111_"
_QUERY = re.compile(r"(\w+://[^\s?;]+)\?[^\s;]*")

# Names that users have in their endpoints already.
ALIASES = {
    "HF_TOKEN": "A1111_CACHE_HF_TOKEN",
    "HF_ENDPOINT": "A1111_CACHE_HF_ENDPOINT",
    "CIVITAI_TOKEN": "A1111_CACHE_CIVITAI_TOKEN",
    "AWS_ACCESS_KEY_ID": "A1111_CACHE_S3_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY": "A1111_CACHE_S3_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN": "A1111_CACHE_S3_SESSION_TOKEN",
    "AWS_DEFAULT_REGION": "A1111_CACHE_S3_REGION",
    "AWS_ENDPOINT_URL_S3": "A1111_CACHE_S3_ENDPOINT",
    "WEBUI_KIND": "A1111_WEBUI_KIND",
    "A1111_WORKER_PREFETCH": "A1111_JOB_PREFETCH",
    # Those of the RunPod SDK, and what it has no variable for, in its manner.
    # Source: runpod-python 1.12.0, serverless/utils/rp_upload.py.
    "BUCKET_ENDPOINT_URL": "A1111_OUTPUT_BUCKET_ENDPOINT",
    "BUCKET_ACCESS_KEY_ID": "A1111_OUTPUT_BUCKET_ACCESS_KEY_ID",
    "BUCKET_SECRET_ACCESS_KEY": "A1111_OUTPUT_BUCKET_SECRET_ACCESS_KEY",
    "BUCKET_NAME": "A1111_OUTPUT_BUCKET_NAME",
    "BUCKET_REGION": "A1111_OUTPUT_BUCKET_REGION",
    "BUCKET_PREFIX": "A1111_OUTPUT_BUCKET_PREFIX",
    "BUCKET_PUBLIC_URL": "A1111_OUTPUT_BUCKET_PUBLIC_URL",
}


def _split_at_commas(value: object) -> object:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _endpoint(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in {"https", "http"} or not parts.hostname or parts.query:
        raise ValueError("must be the URL of a host")
    if parts.username or parts.password:
        raise ValueError("must hold no name and no password")
    return url.rstrip("/")


# Links are made of these, and a link to a relative path leads nowhere.
AbsolutePath = Annotated[Path, AfterValidator(Path.absolute)]
Endpoint = Annotated[str, AfterValidator(_endpoint)]
CommaList = BeforeValidator(_split_at_commas)
ExtraRoute = Annotated[str, StringConstraints(pattern=r"^(GET|POST) (/[\w.-]+)+$")]


class SettingsError(Exception):
    """The environment does not make settings; one line per problem, none of them with a value."""


class Section(BaseModel):
    """Base of every settings group: immutable, and a misspelt field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class CacheSettings(Section):
    """What model_cache needs to know."""

    volume: AbsolutePath = Field(
        Path("/runpod-volume"), description="Mount point of the network volume; models are below."
    )
    require_volume: bool = Field(
        False,
        description="Stop at start when the volume is not mounted, instead of using the disk.",
    )
    local_root: AbsolutePath = Field(
        Path("/var/lib/a1111-worker"),
        description="Used in place of the volume when none is mounted.",
    )
    baked: AbsolutePath = Field(
        Path("/models"),
        description="Read-only folder of models in the image, laid out as the volume; may be absent.",
    )
    budget_gb: float | None = Field(
        None,
        gt=0,
        description="Most that all models on the volume may take, in GB (10^9 bytes); the least "
        "recently used that can be fetched again make room. Unset: as much as there is.",
    )
    max_download_gb: float = Field(
        40, gt=0, description="Most that one job may fetch, in GB (10^9 bytes)."
    )
    max_download_s: float = Field(
        1800, gt=0, description="Longest that one job may take to fetch its models."
    )
    connections: int = Field(
        16, ge=1, le=64, description="Most connections that fetch at once, of all models together."
    )
    stall_s: float = Field(30, gt=0, description="Drop a connection that is silent for this long.")
    allowed_hosts: Annotated[tuple[str, ...], CommaList] = Field(
        (),
        description="Hosts that a reference, an image's URL or an `s3Config` may name, with their "
        "sub-domains, separated by commas; unset: any public host.",
    )
    allow_private_hosts: bool = Field(
        False, description="Fetch from http:// and from private addresses too (tests, own mirrors)."
    )
    allow_pickle: Annotated[tuple[Kind, ...], CommaList] = Field(
        (),
        description="Kinds whose pickles (.ckpt .pt .pth .bin) are taken if picklescan finds "
        "nothing, separated by commas, as in `upscaler,embedding`.",
    )
    preload: str = Field(
        "",
        description="Models to fetch while the worker starts: lines of `KIND REFERENCE`, or the "
        "path of a file with such lines.",
    )
    civitai_endpoint: Endpoint = Field(
        "https://civitai.com", description="Where Civitai references are resolved."
    )
    hf_endpoint: Endpoint = Field(
        "https://huggingface.co",
        description="Where Hugging Face references are resolved; HF_ENDPOINT is the same.",
    )
    s3_endpoint: Endpoint | None = Field(
        None,
        description="Endpoint of `s3://` references; unset: AWS. AWS_ENDPOINT_URL_S3 is the same.",
    )
    s3_region: str = Field("us-east-1", description="Its region; AWS_DEFAULT_REGION is the same.")
    s3_access_key_id: SecretStr | None = Field(
        None, description="For `s3://` references; AWS_ACCESS_KEY_ID is the same."
    )
    s3_secret_access_key: SecretStr | None = Field(
        None, description="For `s3://` references; AWS_SECRET_ACCESS_KEY is the same."
    )
    s3_session_token: SecretStr | None = Field(
        None, description="For temporary keys; AWS_SESSION_TOKEN is the same."
    )
    civitai_token: SecretStr | None = Field(
        None, description="Sent to Civitai only; CIVITAI_TOKEN is the same."
    )
    hf_token: SecretStr | None = Field(
        None, description="Sent to huggingface.co only; HF_TOKEN is the same."
    )

    @property
    def models(self) -> Path:
        """The folder that holds one sub-folder per kind of model."""
        return self.volume / "models"


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


class JobSettings(Section):
    """What one request may ask for."""

    max_pixels: int = Field(
        4_194_304, gt=0, description="Largest width x height of one picture, after hires fix."
    )
    max_images: int = Field(16, gt=0, description="Largest batch_size x n_iter.")
    max_steps: int = Field(200, gt=0, description="Most sampling steps of one pass.")
    max_prompt_chars: int = Field(
        50_000, gt=0, description="Longest prompt, negative prompt or other text, in characters."
    )
    max_input_pixels: int = Field(
        33_554_432, gt=0, description="Largest width x height of an input image."
    )
    on_incompatible: Literal["fail", "skip"] = Field(
        "fail",
        description="What becomes of a job with a LoRA, an embedding or a ControlNet model for "
        "another architecture than its checkpoint's: `fail`, or `skip` the model with a warning.",
    )
    timeout_s: float = Field(
        3600, gt=0, description="Longest that one job may take, from its arrival to its answer."
    )
    drain_s: float = Field(
        60,
        ge=0,
        description="How long running jobs may go on when the worker is told to stop (SIGTERM).",
    )
    concurrency: int = Field(
        1,
        ge=1,
        le=32,
        description="Jobs that one worker takes at a time. One generates; the others fetch models "
        "or only ask.",
    )
    prefetch: bool = Field(
        False,
        description="Take a second job while one generates and fetch its models meanwhile; they "
        "generate in the order in which they came. A1111_WORKER_PREFETCH is the same.",
    )
    extra_routes: Annotated[tuple[ExtraRoute, ...], CommaList] = Field(
        (),
        description="Routes of A1111 besides those of docs/routes.md that a job may call, as in "
        "`POST /sdapi/v1/create/embedding`, separated by commas; nothing of them is checked.",
    )
    scripts: Annotated[tuple[str, ...], CommaList] = Field(
        (),
        description="Scripts of A1111 and of extensions besides those of docs/security.md that a job "
        "may give arguments, as in `x/y/z plot`, separated by commas; nothing of them is checked.",
    )
    options: Annotated[tuple[str, ...], CommaList] = Field(
        (),
        description="Options besides model and VAE that `POST options` may set for this worker, "
        "separated by commas, of those that a request may override.",
    )
    max_input_mb: float = Field(
        64,
        gt=0,
        description="Most that the input images of one job that are fetched by URL may have "
        "together, in MB (10^6 bytes).",
    )
    max_input_s: float = Field(
        60, gt=0, description="Longest that fetching the input images of one job may take."
    )
    price_per_s: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="What a second of this worker costs, in any currency; results then tell their "
        "`cost`.",
    )

    @model_validator(mode="after")
    def _two_if_any(self) -> Self:
        if self.prefetch and self.concurrency > 2:
            raise ValueError("A1111_JOB_PREFETCH takes two jobs; leave out A1111_JOB_CONCURRENCY")
        return self

    @property
    def at_once(self) -> int:
        """How many jobs the worker takes at a time."""
        return 2 if self.prefetch else self.concurrency


class OutputSettings(Section):
    """How a result leaves."""

    max_run_bytes: int = Field(
        10_000_000, gt=0, description="Largest result of a /run job that RunPod carries."
    )
    max_runsync_bytes: int = Field(
        20_000_000, gt=0, description="Largest result of a /runsync job that RunPod carries."
    )
    format: PictureFormat = Field(
        "png",
        description="Format of the pictures of a request that names none: `png`, `jpeg`, `webp` or "
        "`avif`.",
    )
    quality: Quality = Field(
        80, description="Quality of lossy formats, 1 to 100, where a request gives none."
    )
    delivery: Delivery = Field(
        "auto",
        description="How pictures leave where a request does not say: `base64`, `url`, `volume`, or "
        "`auto`: base64 if it fits, else by the ladder.",
    )
    ladder: Annotated[Ladder, CommaList] = Field(
        LADDER,
        description="What is tried, in this order, with pictures too large for the answer, "
        "separated by commas.",
    )
    min_quality: Quality = Field(
        40, description="Lowest quality to which the step `lossy` of the ladder goes."
    )
    folder: Prefix = Field(
        "outputs", description="Folder on the volume for pictures that are left there."
    )
    stream: bool = Field(
        False,
        description="Hand each picture out as soon as it is there, for RunPod's `/stream`.",
    )
    max_chunk_bytes: int = Field(
        1_000_000, ge=10_000, description="Largest piece of a stream that RunPod carries."
    )
    bucket_endpoint: Endpoint | None = Field(
        None,
        description="URL of the store that pictures are uploaded to, with or without the bucket's "
        "name in it; unset, with a name: AWS. BUCKET_ENDPOINT_URL is the same.",
    )
    bucket_name: str = Field("", description="The bucket there; BUCKET_NAME is the same.")
    bucket_region: str = Field(
        "",
        description="Its region; unset: as the endpoint says. BUCKET_REGION is the same.",
    )
    bucket_prefix: Prefix = Field(
        "",
        description="Folder in the bucket for everything that is uploaded; BUCKET_PREFIX is the "
        "same.",
    )
    bucket_addressing: Addressing = Field(
        "auto",
        description="Where the bucket's name stands in a URL: `path`, `virtual` (in front of the "
        "host), or `auto`: as the endpoint has it.",
    )
    bucket_access_key_id: Key | None = Field(
        None, description="Key for the bucket; BUCKET_ACCESS_KEY_ID is the same."
    )
    bucket_secret_access_key: Key | None = Field(
        None, description="Its secret; BUCKET_SECRET_ACCESS_KEY is the same."
    )
    bucket_session_token: Key | None = Field(
        None, description="For temporary keys; links end with them."
    )
    bucket_public_url: Endpoint | None = Field(
        None,
        description="What links begin with where everybody may read the bucket, as in "
        "`https://pictures.example.com`; unset: links are signed. BUCKET_PUBLIC_URL is the same.",
    )
    link_ttl_s: int = Field(
        604_800, ge=60, le=604_800, description="How long a signed link opens its picture."
    )
    upload_timeout_s: float = Field(
        120, gt=0, description="Longest that uploading the pictures of one job may take."
    )

    @property
    def chunk_bytes(self) -> int | None:
        """The largest piece of a stream; None without one."""
        return self.max_chunk_bytes if self.stream else None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        self.destination()
        return self

    def destination(self) -> Destination | None:
        """Return the bucket that pictures are uploaded to; None if no setting names one.

        Raises:
            ValueError: half of it is set.
        """
        key, secret = self.bucket_access_key_id, self.bucket_secret_access_key
        named = self.bucket_endpoint or self.bucket_name
        if not (named or key or secret):
            return None
        if not (named and key and secret):
            raise ValueError(
                "a bucket needs BUCKET_ACCESS_KEY_ID, BUCKET_SECRET_ACCESS_KEY and"
                " BUCKET_ENDPOINT_URL or BUCKET_NAME"
            )
        try:
            address = address_of(
                self.bucket_endpoint or "",
                self.bucket_name,
                self.bucket_region,
                self.bucket_addressing,
            )
        except ValueError as error:
            raise ValueError(f"BUCKET_ENDPOINT_URL and BUCKET_NAME: {error}") from None
        keys = Keys(
            access_key_id=key,
            secret_access_key=secret,
            session_token=self.bucket_session_token,
        )
        return Destination(address, keys, self.bucket_prefix, self.bucket_public_url)


class LogSettings(Section):
    """What is said."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least severe message that is logged."
    )
    prompts: bool = Field(
        False, description="Let prompts be read in the log, where they would appear in it."
    )


class Settings(Section):
    """All settings; a layer receives its own section and never the whole."""

    cache: CacheSettings = CacheSettings()
    webui: WebuiSettings = WebuiSettings()
    job: JobSettings = JobSettings()
    output: OutputSettings = OutputSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Build from variables named A1111_<SECTION>_<FIELD>, as in A1111_CACHE_STALL_S.

        An empty variable counts as absent: that is how container platforms unset one.

        Raises:
            SettingsError: a value does not parse, or a variable with our prefix names no setting
                (a misspelt name must not silently become the default).
        """
        values = {ALIASES[name]: text for name, text in environ.items() if name in ALIASES}
        ours = {name for name in environ if name.startswith(PREFIX)} - ALIASES.keys()
        values |= {name: environ[name] for name in ours}
        sections: dict[str, dict[str, str]] = {}
        for name, text in values.items():
            if text:
                section, _, field = name.removeprefix(PREFIX).lower().partition("_")
                sections.setdefault(section, {})[field] = text
        try:
            return cls.model_validate(sections)
        except ValidationError as error:
            problems = error.errors(include_url=False, include_input=False, include_context=False)
            raise SettingsError(
                "\n".join(
                    f"{PREFIX}{'_'.join(str(part) for part in problem['loc']).upper()}: {problem['msg']}"
                    for problem in problems
                )
            ) from None

    def changed(self) -> dict[str, Any]:
        """Return the variables that differ from their defaults, with their values as JSON can say.

        Of a secret only that it is set; a URL in a text loses its query, where tokens travel.
        """
        found: dict[str, Any] = {}
        for name, section in self:
            for field, value in section:
                if value != type(section).model_fields[field].default:
                    found[f"{PREFIX}{name}_{field}".upper()] = _shown(value)
        return found


def _shown(value: object) -> Any:
    if isinstance(value, SecretStr):
        return "set"
    if isinstance(value, tuple):
        return [str(part) for part in value]
    if isinstance(value, Path | str):
        return _QUERY.sub(r"\1?…", str(value))
    return value
