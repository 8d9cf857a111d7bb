"""Which of A1111's options one request may set, and how none of them outlives its job. Pure.

A1111 restores an override only if the option is already in its config.json; on a fresh config an
override stays for all later jobs, whatever `override_settings_restore_afterwards` says.
Source: recorded from A1111 1.10.1: seq_override_restore_leak, override_vae_then_plain.
So every request carries, besides its own, the original value of each option that an earlier one set.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from schemas.errors import InvalidInputError, shown

CHECKPOINT = "sd_model_checkpoint"
VAE = "sd_vae"

# Sent with every request. A1111 keeps the last encoded prompt, under a key that knows nothing of
# embedding files and of some options: the next job with that prompt would get the last one's.
# Source: A1111 1.10.1, modules/processing.py, get_conds_with_caching, cached_params.
ALWAYS = {"persistent_cond_cache": False}

# Options with few values, any other of which A1111 would take and treat as one of them.
# Source: A1111 1.10.1, modules/shared_options.py.
CHOICES: dict[str, Sequence[object]] = {
    "CLIP_stop_at_last_layers": range(1, 13),
    "ddim_discretize": ("uniform", "quad"),
    "emphasis": ("None", "Ignore", "Original", "No norm"),
    "hires_fix_refiner_pass": ("first pass", "second pass", "both passes"),
    "randn_source": ("GPU", "CPU", "NV"),
    "sd_noise_schedule": ("Default", "Zero Terminal SNR"),
    "sd_vae_decode_method": ("Full", "TAESD"),
    "sd_vae_encode_method": ("Full", "TAESD"),
    "uni_pc_skip_type": ("time_uniform", "time_quadratic", "logSNR"),
    "uni_pc_variant": ("bh1", "bh2", "vary_coeff"),
}

# Upscalers that work in tiles, and how far theirs may go: a tile of one pixel takes days.
_TILED = ("ESRGAN", "DAT")
_LEAST_TILE_PX = 64

# What changes the picture and nothing else: no path, no URL, nothing that saves or keeps a model.
ALLOWED = frozenset(
    {
        "CLIP_stop_at_last_layers",
        "DAT_tile",
        "DAT_tile_overlap",
        "ESRGAN_tile",
        "ESRGAN_tile_overlap",
        "always_discard_next_to_last_sigma",
        "auto_vae_precision",
        "auto_vae_precision_bfloat16",
        "batch_cond_uncond",
        "beta_dist_alpha",
        "beta_dist_beta",
        "code_former_weight",
        "comma_padding_backtrack",
        "ddim_discretize",
        "emphasis",
        "enable_batch_seeds",
        "eta_ancestral",
        "eta_ddim",
        "eta_noise_seed_delta",
        "extra_networks_default_multiplier",
        "face_restoration",
        "face_restoration_model",
        "hires_fix_refiner_pass",
        "hires_fix_use_firstpass_conds",
        "img2img_background_color",
        "img2img_color_correction",
        "img2img_extra_noise",
        "img2img_fix_steps",
        "initial_noise_multiplier",
        "inpainting_mask_weight",
        "no_dpmpp_sde_batch_determinism",
        "overlay_inpaint",
        "pad_cond_uncond",
        "pad_cond_uncond_v0",
        "randn_source",
        "refiner_switch_by_sample_steps",
        "return_grid",
        "return_mask",
        "return_mask_composite",
        "rho",
        "s_churn",
        "s_min_uncond",
        "s_min_uncond_all",
        "s_noise",
        "s_tmax",
        "s_tmin",
        "sd_noise_schedule",
        "sd_vae_decode_method",
        "sd_vae_encode_method",
        "sdxl_clip_l_skip",
        "sdxl_crop_left",
        "sdxl_crop_top",
        "sdxl_refiner_high_aesthetic_score",
        "sdxl_refiner_low_aesthetic_score",
        "sgm_noise_multiplier",
        "sigma_max",
        "sigma_min",
        "skip_early_cond",
        "tiling",
        "token_merging_ratio",
        "token_merging_ratio_hr",
        "token_merging_ratio_img2img",
        "uni_pc_lower_order_final",
        "uni_pc_order",
        "uni_pc_skip_type",
        "uni_pc_variant",
        "upscaler_for_img2img",
        "use_downcasted_alpha_bar",
        "use_old_emphasis_implementation",
        "use_old_hires_fix_width_height",
        "use_old_karras_scheduler_sigmas",
        "use_old_scheduling",
    }
)


def checked(asked: Mapping[str, Any], original: Mapping[str, Any]) -> dict[str, Any]:
    """Return the caller's overrides but for checkpoint and VAE, which are resolved elsewhere.

    Args:
        asked: `override_settings` of the request.
        original: every option of the running A1111 and its value before any job.

    Raises:
        InvalidInputError: an option that may not be set, or a value of another type than the
            option's: A1111 would keep it and fail at every later job
            (recorded: options_wrong_type, txt2img_after_wrong_type_option).
    """
    taken: dict[str, Any] = {}
    for key, value in asked.items():
        if key in {CHECKPOINT, VAE}:
            continue
        field = f"override_settings.{key[:80]}"
        if key not in ALLOWED or key not in original:
            raise InvalidInputError(f"The option {shown(key)} may not be overridden.", field=field)
        if not _same_type(value, original[key]):
            raise InvalidInputError(
                f"The option `{key}` takes {_type_name(original[key])}, not {shown(value)}.",
                field=field,
            )
        if key in CHOICES and value not in CHOICES[key]:
            choices = CHOICES[key]
            listed = f"{choices[0]} to {choices[-1]}" if isinstance(choices, range) else choices
            raise InvalidInputError(
                f"The option `{key}` takes {listed}, not {shown(value)}.", field=field
            )
        taken[key] = value
    _require_tiles({**original, **taken}, taken)
    return taken


def _require_tiles(options: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    for name in _TILED:
        tile, overlap = (options.get(f"{name}_tile{part}", 0) for part in ("", "_overlap"))
        fields = [key for key in asked if key.startswith(f"{name}_tile")]
        # 0: one tile for all.
        if fields and tile and not (tile >= _LEAST_TILE_PX and 0 <= overlap <= tile // 2):
            raise InvalidInputError(
                f"Tiles of {tile} pixels with an overlap of {overlap} take too long; {name} takes 0,"
                f" or at least {_LEAST_TILE_PX}, half of it overlapping.",
                field=f"override_settings.{fields[0]}",
            )


def _same_type(value: object, example: object) -> bool:
    if example is None:
        return value is None or isinstance(value, str)
    if isinstance(example, bool) or isinstance(value, bool):
        return isinstance(value, bool) and isinstance(example, bool)
    if isinstance(example, float):
        return isinstance(value, int | float)
    return isinstance(value, type(example))


def _type_name(example: object) -> str:
    names = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
    return names.get(type(example), "a string or null")
