"""What is said of a job: the parameters of its infotext and the fields of `info`.

Source: A1111 1.10.1, modules/processing.py, create_infotext and Processed.js.
"""

from collections.abc import Callable
from typing import Any

from simulator.webui import catalogue, infotext
from simulator.webui.job import Job
from simulator.webui.options import Options

# A parameter that is known only per picture: takes the index of the picture in the whole job.
PerImage = Callable[[int], object]

# Samplers whose function has an eta, and what it is unless told otherwise.
_ETA = {
    **dict.fromkeys(
        (
            "DPM++ SDE",
            "DPM++ 2M SDE",
            "DPM++ 2M SDE Heun",
            "DPM++ 2S a",
            "DPM++ 3M SDE",
            "Euler a",
            "DPM2 a",
            "DPM fast",
            "DPM adaptive",
        ),
        ("eta_ancestral", "Eta", 1.0),
    ),
    "DDIM": ("eta_ddim", "Eta DDIM", 0.0),
    "DDIM CFG++": ("eta_ddim", "Eta DDIM", 0.0),
}
# Samplers with Karras' churn, whose options are noted when they are not the defaults.
_CHURN = {"Euler", "Heun", "DPM2"}
_CHURN_OPTIONS = (
    ("s_churn", "Sigma churn", 0.0),
    ("s_tmin", "Sigma tmin", 0.0),
    ("s_tmax", "Sigma tmax", 0.0),
    ("s_noise", "Sigma noise", 1.0),
)


def infotext_of(job: Job, options: Options, index: int) -> str:
    """Return the infotext of picture `index` of the whole job; 0 is also a grid's."""
    return infotext.compose(
        job.all_prompts[index], job.all_negative_prompts[index], _parameters(job, options, index)
    )


def _parameters(job: Job, options: Options, index: int) -> dict[str, object]:
    varied = bool(job.subseed_strength)
    resized = (job.seed_resize_from_w or 0) > 0 and (job.seed_resize_from_h or 0) > 0
    clip_skip = options["CLIP_stop_at_last_layers"]
    merging = merging_ratio(job, options)
    merging_hr = merging_ratio(job, options, second_pass=True)
    extra = {name: value(index) if callable(value) else value for name, value in job.extra.items()}
    return {
        "Steps": job.steps,
        "Sampler": job.sampler_name,
        "Schedule type": job.scheduler,
        "CFG scale": job.cfg_scale,
        "Seed": job.all_seeds[index],
        "Face restoration": options["face_restoration_model"] if job.restore_faces else None,
        "Size": f"{job.width}x{job.height}",
        "Model hash": job.model_hash if options["add_model_hash_to_info"] else None,
        "Model": job.model_name if options["add_model_name_to_info"] else None,
        "VAE hash": job.vae_hash if options["add_vae_hash_to_info"] else None,
        "VAE": job.vae_name if options["add_vae_name_to_info"] else None,
        "Variation seed": job.all_subseeds[index] if varied else None,
        "Variation seed strength": job.subseed_strength if varied else None,
        "Seed resize from": (
            f"{job.seed_resize_from_w}x{job.seed_resize_from_h}" if resized else None
        ),
        "Denoising strength": extra.get("Denoising strength"),
        "Conditional mask weight": (
            options["inpainting_mask_weight"] if job.uses_inpainting else None
        ),
        "Clip skip": clip_skip if clip_skip > 1 else None,
        "ENSD": options["eta_noise_seed_delta"] if uses_seed_delta(job, options) else None,
        "Token merging ratio": merging or None,
        "Token merging ratio hr": merging_hr or None if job.enable_hr else None,
        "RNG": options["randn_source"] if options["randn_source"] != "GPU" else None,
        "Tiling": "True" if job.tiling else None,
        **extra,
        "Version": catalogue.VERSION if options["add_version_to_infotext"] else None,
    }


def merging_ratio(job: Job, options: Options, *, second_pass: bool = False) -> float:
    """Return how many tokens are merged, by the options alone: no field of a request sets it."""
    special = None
    if second_pass:
        special = options["token_merging_ratio_hr"]
    elif job.kind == "img2img" and "token_merging_ratio" not in job.override_settings:
        special = options["token_merging_ratio_img2img"]
    return float(special or options["token_merging_ratio"])


def uses_seed_delta(job: Job, options: Options) -> bool:
    """Return whether `eta_noise_seed_delta` is set and means something to the sampler."""
    sampler = catalogue.samplers()[job.sampler_name]
    return (
        options["eta_noise_seed_delta"] != 0
        and sampler.options.get("uses_ensd") == "True"
        and eta(job, options) != 0
    )


def eta(job: Job, options: Options) -> float | None:
    """Return the eta that the sampler runs with, None if it has none.

    Source: A1111 1.10.1, modules/sd_samplers_common.py, Sampler.initialize.
    """
    if job.sampler_name not in _ETA:
        return None
    option, _, _ = _ETA[job.sampler_name]
    return float(job.eta if job.eta is not None else options[option])


def noise(job: Job, options: Options) -> tuple[float, float]:
    """Return the factor of the noise on an init image, and how much more comes during sampling."""
    if job.kind != "img2img":
        return 1.0, options["img2img_extra_noise"] if job.enable_hr else 0.0
    factor = job.initial_noise_multiplier
    if factor is None:
        factor = options["initial_noise_multiplier"]
    return factor, options["img2img_extra_noise"]


def note_sampling(job: Job, options: Options) -> None:
    """Add to the infotext what is noted when sampling begins.

    Source: A1111 1.10.1, modules/processing.py, StableDiffusionProcessingImg2Img.sample,
    modules/sd_samplers_kdiffusion.py, sample_img2img, and modules/sd_samplers_common.py,
    Sampler.initialize.
    """
    factor, extra = noise(job, options)
    if factor != 1.0:
        job.extra["Noise multiplier"] = factor
    if extra > 0:
        job.extra["Extra noise"] = extra
    used = eta(job, options)
    if used is not None:
        _, label, default = _ETA[job.sampler_name]
        if used != default:
            job.extra[label] = used
    if job.sampler_name in _CHURN:
        for option, label, default in _CHURN_OPTIONS:
            # Only the option is looked at, though the request's field has its effect, too.
            # Source: recorded from A1111 1.10.1: txt2img_s_churn.
            if options[option] != default:
                job.extra[label] = options[option]


def said(job: Job, options: Options, job_timestamp: str) -> dict[str, Any]:
    """Return the fields of `info` that do not depend on the pictures."""
    return {
        "prompt": job.all_prompts[0],
        "all_prompts": job.all_prompts,
        "negative_prompt": job.all_negative_prompts[0],
        "all_negative_prompts": job.all_negative_prompts,
        "seed": job.all_seeds[0],
        "all_seeds": job.all_seeds,
        "subseed": job.all_subseeds[0],
        "all_subseeds": job.all_subseeds,
        "subseed_strength": job.subseed_strength,
        "width": job.width,
        "height": job.height,
        "sampler_name": job.sampler_name,
        "cfg_scale": job.cfg_scale,
        "steps": job.steps,
        "batch_size": job.batch_size,
        "restore_faces": job.restore_faces,
        "face_restoration_model": (
            options["face_restoration_model"] if job.restore_faces else None
        ),
        "sd_model_name": job.model_name,
        "sd_model_hash": job.model_hash,
        "sd_vae_name": job.vae_name,
        "sd_vae_hash": job.vae_hash,
        "seed_resize_from_w": job.seed_resize_from_w,
        "seed_resize_from_h": job.seed_resize_from_h,
        "denoising_strength": job.denoising_strength,
        # What is known only per picture has no value here.
        "extra_generation_params": {
            name: None if callable(value) else value for name, value in job.extra.items()
        },
        "styles": job.styles or [],
        "job_timestamp": job_timestamp,
        "clip_skip": options["CLIP_stop_at_last_layers"],
        "is_using_inpainting_conditioning": job.uses_inpainting,
    }
