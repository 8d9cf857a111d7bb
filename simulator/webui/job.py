"""One generation: what a request asks for, and what becomes known of it on the way.

The counterpart of A1111's processing classes. Knows how nothing is done.

Source: A1111 1.10.1, modules/processing.py, StableDiffusionProcessing and Processed.
"""

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from simulator.webui.catalogue import VERSION
from simulator.webui.controlnet_units import Unit
from simulator.webui.prompts import Tag


@dataclass
class Job:
    """A request's fields, coerced and with defaults; null stays None where A1111 takes it.

    What follows `override_settings_restore_afterwards` in groups belongs to one of the two requests.
    """

    kind: str
    prompt: str | list[str] | None
    negative_prompt: str | list[str] | None
    styles: list[str] | None
    seed: int | list[int] | None
    subseed: int | None
    subseed_strength: float | None
    seed_resize_from_h: int | None
    seed_resize_from_w: int | None
    sampler_name: str
    scheduler: str | None
    batch_size: int | None
    n_iter: int | None
    steps: int | None
    cfg_scale: float | None
    width: int | None
    height: int | None
    restore_faces: bool | None
    tiling: bool | None
    eta: float | None
    denoising_strength: float | None
    s_min_uncond: float | None
    s_churn: float | None
    s_tmax: float | None
    s_tmin: float | None
    s_noise: float | None
    refiner_checkpoint: str | None
    refiner_switch_at: float | None
    disable_extra_networks: bool | None
    override_settings: dict[str, Any]
    override_settings_restore_afterwards: bool | None
    save_images: bool = False

    enable_hr: bool | None = False
    firstphase_width: int | None = 0
    firstphase_height: int | None = 0
    hr_scale: float | None = 2.0
    hr_upscaler: str | None = None
    hr_second_pass_steps: int | None = 0
    hr_resize_x: int | None = 0
    hr_resize_y: int | None = 0
    hr_checkpoint_name: str | None = None
    hr_sampler_name: str | None = None
    hr_scheduler: str | None = None
    hr_prompt: str | None = ""
    hr_negative_prompt: str | None = ""

    init_images: list[Image.Image] = field(default_factory=list)
    resize_mode: int | None = 0
    mask: Image.Image | None = None
    mask_blur_x: int | None = 4
    mask_blur_y: int | None = 4
    mask_blur: int | None = None
    mask_round: bool | None = True
    inpainting_fill: int | None = 0
    inpaint_full_res: bool | None = True
    inpaint_full_res_padding: int | None = 0
    inpainting_mask_invert: int | None = 0
    initial_noise_multiplier: float | None = None

    controlnet: list[Unit] = field(default_factory=list)

    # Known on the way.
    do_not_save_grid: bool = False
    extra: dict[str, Any] = field(default_factory=dict)
    """More parameters for the infotext, in the order they became known."""
    all_prompts: list[str] = field(default_factory=list)
    all_negative_prompts: list[str] = field(default_factory=list)
    all_hr_prompts: list[str] = field(default_factory=list)
    all_hr_negative_prompts: list[str] = field(default_factory=list)
    all_seeds: list[int] = field(default_factory=list)
    all_subseeds: list[int] = field(default_factory=list)
    lora_hashes: dict[str, str] = field(default_factory=dict)
    tags: dict[str, list[Tag]] = field(default_factory=dict)
    uses_inpainting: bool = False
    """Whether the checkpoint takes the masked picture as an input of its own."""
    model_name: str = ""
    model_hash: str | None = None
    vae_name: str | None = None
    vae_hash: str | None = None
    target: tuple[int, int] = (0, 0)
    """Size of the second pass, before it is cut."""
    truncated: tuple[int, int] = (0, 0)
    """How much of it is cut off, in latent pixels."""
    control: tuple[str, ...] = ()
    """What ControlNet decides of the pictures; empty if it does nothing."""


def from_fields(kind: str, fields: dict[str, Any], **changed: Any) -> Job:
    """Return the job of a request whose fields are coerced; `changed` replaces some of them."""
    names = {entry.name for entry in dataclasses.fields(Job)}
    values = {name: value for name, value in fields.items() if name in names} | changed
    values["override_settings"] = dict(values["override_settings"] or {})
    job = Job(kind=kind, **values)
    if job.firstphase_width or job.firstphase_height:
        # A leftover of the interface before 1.0; the size of the second pass is set anew later.
        job.width, job.height = job.firstphase_width, job.firstphase_height
    if job.mask_blur is not None:
        job.mask_blur_x = job.mask_blur_y = job.mask_blur
    return job


@dataclass
class Processed:
    """What a job gave: the pictures, and what `info` says of them."""

    images: list[Image.Image]
    infotexts: list[str]
    index_of_first_image: int
    said: dict[str, Any]

    def info(self) -> str:
        """Return `info`, JSON in a string, in A1111's order of keys."""
        said = {
            **self.said,
            "index_of_first_image": self.index_of_first_image,
            "infotexts": self.infotexts,
        }
        return json.dumps({key: said[key] for key in _ORDER} | {"version": VERSION})


_ORDER = (
    "prompt",
    "all_prompts",
    "negative_prompt",
    "all_negative_prompts",
    "seed",
    "all_seeds",
    "subseed",
    "all_subseeds",
    "subseed_strength",
    "width",
    "height",
    "sampler_name",
    "cfg_scale",
    "steps",
    "batch_size",
    "restore_faces",
    "face_restoration_model",
    "sd_model_name",
    "sd_model_hash",
    "sd_vae_name",
    "sd_vae_hash",
    "seed_resize_from_w",
    "seed_resize_from_h",
    "denoising_strength",
    "extra_generation_params",
    "index_of_first_image",
    "infotexts",
    "styles",
    "job_timestamp",
    "clip_skip",
    "is_using_inpainting_conditioning",
)
