"""The typed requests: every field of A1111's, and ours; schemas.request makes them from JSON.

Knows the shape of A1111's requests, not what a live A1111 offers: samplers, schedulers, upscalers,
styles and scripts stay plain strings here and are checked against the running WebUI.

Source of names, types and defaults: the OpenAPI schema that A1111 1.10.1 serves
(`StableDiffusionProcessingTxt2Img`, `StableDiffusionProcessingImg2Img`).
"""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr

from schemas.controlnet import ControlNetUnit
from schemas.errors import shown
from schemas.model_ref import Kind, LoraRef, ModelRef, as_fields
from schemas.output import Output

MAX_SIDE_PX = 1 << 20
SAME_CHECKPOINT = "Use same checkpoint"


def _as_int(value: object) -> object:
    # A1111 runs pydantic 1, which calls int() on whatever it gets: "20" and 20.9 both mean 20.
    if isinstance(value, float) or (isinstance(value, str) and value.strip()):
        try:
            return int(value)
        except (ValueError, OverflowError):
            raise ValueError(f"{shown(value)} is not an integer") from None
    return int(value) if isinstance(value, bool) else value


def _as_float(value: object) -> object:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError(f"{shown(value)} is not a number") from None
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number must be finite")
    return float(value) if isinstance(value, bool) else value


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int | float) else value


def _as_object(value: object) -> object:
    return {} if value == [] else value  # as pydantic 1 takes it, and PHP writes it


def _as_list(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


Int = Annotated[int, BeforeValidator(_as_int)]
Float = Annotated[float, BeforeValidator(_as_float)]
Text = Annotated[str, BeforeValidator(_as_text)]
Count = Annotated[Int, Field(ge=1, lt=2**31)]
Side = Annotated[Int, Field(ge=1, le=MAX_SIDE_PX)]
OptionalSide = Annotated[Int, Field(ge=0, le=MAX_SIDE_PX)]
ResizedSide = Annotated[Int, Field(ge=-1, le=MAX_SIDE_PX)]
# A1111 weighs five times as many pixels for each pixel of the mask; its own page offers 64 at most.
# Source: A1111 1.10.1, modules/processing.py, StableDiffusionProcessingImg2Img.init.
Blur = Annotated[Int, Field(le=512)]
Object = Annotated[dict[str, Any], BeforeValidator(_as_object)]
Seed = Annotated[Int, Field(ge=-(2**63), lt=2**63)]


def _ref(kind: Kind) -> BeforeValidator:
    shape = LoraRef if kind is Kind.LORA else ModelRef
    return BeforeValidator(lambda value: as_fields(value, kind), json_schema_input_type=str | shape)


Checkpoint = Annotated[ModelRef, _ref(Kind.CHECKPOINT)]
Vae = Annotated[ModelRef, _ref(Kind.VAE)]
Lora = Annotated[LoraRef, _ref(Kind.LORA)]
Embedding = Annotated[ModelRef, _ref(Kind.EMBEDDING)]


class Generation(BaseModel):
    """What txt2img and img2img share. Unknown fields are kept and go through to A1111."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    prompt: Text = ""
    negative_prompt: Text = ""
    styles: Annotated[list[Text], BeforeValidator(_as_list)] | None = None
    seed: Seed = -1
    subseed: Seed = -1
    subseed_strength: Float = 0
    seed_resize_from_h: ResizedSide = -1
    seed_resize_from_w: ResizedSide = -1
    sampler_name: Text | None = None
    scheduler: Text | None = None
    batch_size: Count = 1
    n_iter: Count = 1
    steps: Count = 50
    cfg_scale: Float = 7.0
    width: Side = 512
    height: Side = 512
    restore_faces: bool | None = None
    tiling: bool | None = None
    do_not_save_samples: bool = False
    do_not_save_grid: bool = False
    eta: Float | None = None
    denoising_strength: Float | None = None
    s_min_uncond: Float | None = None
    s_churn: Float | None = None
    s_tmax: Float | None = None
    s_tmin: Float | None = None
    s_noise: Float | None = None
    override_settings: Object = Field(default_factory=dict)
    override_settings_restore_afterwards: bool = True
    refiner_switch_at: Float | None = None
    disable_extra_networks: bool = False
    firstpass_image: Text | None = None
    comments: Object | None = None
    force_task_id: Text | None = None
    sampler_index: Text = "Euler"
    script_name: Text | None = None
    script_args: list[Any] = Field(default_factory=list)
    send_images: bool = True
    save_images: bool = False
    alwayson_scripts: Object = Field(default_factory=dict)
    infotext: Text | None = None

    # Ours. They become override settings, tags in the prompt and files on the volume.
    checkpoint: Checkpoint | None = None
    vae: Vae | Literal["Automatic", "None"] | None = None
    loras: list[Lora] = Field(default_factory=list)
    embeddings: list[Embedding] = Field(default_factory=list)
    controlnet_args: list[ControlNetUnit] = Field(default_factory=list)
    refiner_checkpoint: Checkpoint | None = None
    tokens: dict[Literal["civitai", "huggingface"], SecretStr] = Field(default_factory=dict)
    on_incompatible: Literal["fail", "skip"] | None = None
    max_download_gb: Float | None = Field(None, gt=0)
    max_download_s: Float | None = Field(None, gt=0)
    previews: bool = False
    output: Output = Output()

    @property
    def final_pixels(self) -> int:
        """Width x height of a finished picture."""
        return self.width * self.height

    def webui_fields(self) -> dict[str, Any]:
        """Return what the caller set of A1111's own fields, and what we do not know, to be sent."""
        return {
            name: value
            for name, value in {**self.__dict__, **(self.model_extra or {})}.items()
            if name in self.model_fields_set and name not in OURS
        }


class Txt2Img(Generation):
    """A picture from words. Body of POST /sdapi/v1/txt2img."""

    enable_hr: bool = False
    firstphase_width: OptionalSide = 0
    firstphase_height: OptionalSide = 0
    hr_scale: Float = Field(2.0, gt=0, le=64)
    hr_upscaler: Text | None = None
    hr_second_pass_steps: Int = Field(0, ge=0, lt=2**31)
    hr_resize_x: OptionalSide = 0
    hr_resize_y: OptionalSide = 0
    hr_checkpoint_name: Literal["Use same checkpoint"] | Checkpoint | None = None
    hr_sampler_name: Text | None = None
    hr_scheduler: Text | None = None
    hr_prompt: Text = ""
    hr_negative_prompt: Text = ""

    @property
    def largest_pixels(self) -> int:
        """Width x height of the largest picture on the way, hires fix included.

        Source: A1111 1.10.1, modules/processing.py, calculate_target_resolution: one `hr_resize_*`
        keeps the aspect ratio; with both the picture is made large enough for both, then cropped.
        """
        first = self.width * self.height
        if self.firstphase_width or self.firstphase_height:
            first = max(first, self.firstphase_width * self.firstphase_height)
        return max(first, self._upscaled_pixels) if self.enable_hr else first

    @property
    def final_pixels(self) -> int:
        """Width x height of a finished picture, after hires fix."""
        if not self.enable_hr:
            return self.width * self.height
        if self.hr_resize_x and self.hr_resize_y:
            return self.hr_resize_x * self.hr_resize_y
        return self._upscaled_pixels

    @property
    def _upscaled_pixels(self) -> int:
        if not self.hr_resize_x and not self.hr_resize_y:
            return int(self.width * self.hr_scale) * int(self.height * self.hr_scale)
        by_width = self.hr_resize_x * (self.hr_resize_x * self.height // self.width)
        by_height = self.hr_resize_y * (self.hr_resize_y * self.width // self.height)
        return max(by_width, by_height)


class Img2Img(Generation):
    """A picture from a picture. Body of POST /sdapi/v1/img2img."""

    init_images: list[str] = Field(min_length=1)
    denoising_strength: Float = 0.75
    resize_mode: Int = 0
    image_cfg_scale: Float | None = None
    mask: Text | None = None
    mask_blur_x: Blur = 4
    mask_blur_y: Blur = 4
    mask_blur: Blur | None = None
    mask_round: bool = True
    inpainting_fill: Int = 0
    inpaint_full_res: bool = True
    inpaint_full_res_padding: Int = 0
    inpainting_mask_invert: Int = 0
    initial_noise_multiplier: Float | None = None
    latent_mask: Text | None = None
    include_init_images: bool = False

    @property
    def largest_pixels(self) -> int:
        """Width x height of the picture."""
        return self.final_pixels


OURS = frozenset(
    {
        "checkpoint",
        "vae",
        "loras",
        "embeddings",
        "controlnet_args",
        "refiner_checkpoint",
        "hr_checkpoint_name",
        "tokens",
        "on_incompatible",
        "max_download_gb",
        "max_download_s",
        "previews",
        "output",
    }
)
Job = Txt2Img | Img2Img
