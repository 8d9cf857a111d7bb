"""How pictures leave."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from schemas.bucket import Addressing, Destination, Key, Keys, address_of
from schemas.output import LADDER, Delivery, Ladder, PictureFormat, Prefix, Quality
from schemas.sections.base import CommaList, Endpoint, Section


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
