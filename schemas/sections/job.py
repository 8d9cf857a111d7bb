"""What a job may ask for."""

from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from schemas.sections.base import CommaList, Section

ExtraRoute = Annotated[str, StringConstraints(pattern=r"^(GET|POST) (/[\w.-]+)+$")]


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
