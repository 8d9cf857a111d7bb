"""The store of models."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr

from schemas.model_ref import Kind
from schemas.sections.base import AbsolutePath, CommaList, Endpoint, Section


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
