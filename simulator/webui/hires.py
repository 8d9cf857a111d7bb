"""The second pass of the hires fix, and how many steps a pass over a picture takes.

Source: A1111 1.10.1, modules/processing.py, StableDiffusionProcessingTxt2Img, and
modules/sd_samplers_common.py, setup_img2img_steps.
"""

from collections.abc import Collection

from simulator.webui import catalogue, sampling
from simulator.webui.checkpoints import Checkpoint
from simulator.webui.failure import WebuiError
from simulator.webui.job import Job
from simulator.webui.options import Options
from simulator.webui.progress import State
from simulator.webui.sampling import Pass

SAME_CHECKPOINT = "Use same checkpoint"
_NEARLY_ONE = 0.999


def prepare(job: Job, checkpoint: Checkpoint | None, upscalers: Collection[str]) -> None:
    """Note in the job what the infotext says of the second pass, and its size.

    `upscalers` are those that work on pictures.

    Raises:
        WebuiError: Exception, for an unknown upscaler.
    """
    extra = job.extra
    extra["Denoising strength"] = job.denoising_strength
    if checkpoint is not None:
        extra["Hires checkpoint"] = checkpoint.short_title
    if job.hr_sampler_name is not None and job.hr_sampler_name != job.sampler_name:
        extra["Hires sampler"] = job.hr_sampler_name
    # Functions, because they are compared per picture, after all prompts are final.
    extra["Hires prompt"] = lambda index: _if_other(
        job.all_hr_prompts[index], job.all_prompts[index]
    )
    extra["Hires negative prompt"] = lambda index: _if_other(
        job.all_hr_negative_prompts[index], job.all_negative_prompts[index]
    )
    extra["Hires schedule type"] = None
    if job.hr_scheduler is None:
        job.hr_scheduler = job.scheduler
    known = [*catalogue.latent_upscalers(), *upscalers]
    if job.hr_upscaler is not None and job.hr_upscaler not in known:
        raise WebuiError("Exception", f"could not find upscaler named {job.hr_upscaler}")
    _set_target(job)
    if job.hr_second_pass_steps:
        extra["Hires steps"] = job.hr_second_pass_steps
    if job.hr_upscaler is not None:
        extra["Hires upscaler"] = job.hr_upscaler


def _if_other(text: str, first: str) -> str | None:
    return text if text != first else None


def _set_target(job: Job) -> None:
    if job.width is None or job.height is None or job.hr_scale is None:
        raise WebuiError("TypeError", "unsupported operand type(s) for *: 'NoneType' and 'float'")
    resize_x, resize_y = job.hr_resize_x or 0, job.hr_resize_y or 0
    if resize_x == 0 and resize_y == 0:
        job.extra["Hires upscale"] = job.hr_scale
        job.target = (int(job.width * job.hr_scale), int(job.height * job.hr_scale))
        return
    job.extra["Hires resize"] = f"{resize_x}x{resize_y}"
    if job.width <= 0 or job.height <= 0:
        raise WebuiError("ZeroDivisionError", "integer division or modulo by zero")
    by_width = (resize_x, resize_x * job.height // job.width)
    by_height = (resize_y * job.width // job.height, resize_y)
    if resize_y == 0:
        job.target = by_width
    elif resize_x == 0:
        job.target = by_height
    else:
        wider = job.width / job.height < resize_x / resize_y
        job.target = by_width if wider else by_height
        job.truncated = ((job.target[0] - resize_x) // 8, (job.target[1] - resize_y) // 8)


def count_jobs(job: Job, state: State) -> None:
    """Count every batch twice, once for each pass."""
    if not state.has_refined_job_count:
        if state.job_count == -1:
            state.job_count = job.n_iter or 0
        state.job_count *= 2
        state.has_refined_job_count = True


def second_pass(job: Job, before: tuple[object, ...]) -> Pass:
    """Return the second pass over the result that `before` tells apart.

    Raises:
        WebuiError: AssertionError, for an unknown sampler; TypeError without a denoising strength.
    """
    sampler = job.hr_sampler_name or job.sampler_name
    if sampler not in catalogue.samplers():
        raise WebuiError("AssertionError", f"bad sampler name: {sampler}")
    if job.denoising_strength is None:
        text = "'>' not supported between instances of 'NoneType' and 'int'"
        raise WebuiError("TypeError", text)
    size = tuple(length // 8 - cut for length, cut in zip(job.target, job.truncated, strict=True))
    steps = job.hr_second_pass_steps or job.steps or 0
    _, scheduler = catalogue.sampler_and_scheduler(
        sampler, job.hr_scheduler, convert_automatic=False
    )
    upscaled = (*before, job.hr_upscaler, job.denoising_strength)
    return Pass(
        size=(size[0], size[1]),
        steps=steps if job.denoising_strength > 0 else min(steps, 1),
        sampler=sampler,
        schedule=sampling.schedule(sampler, scheduler),
        before=upscaled,
    )


def note_schedule(job: Job, label: str, *, second: bool) -> None:
    """Note the schedule that ran.

    Source: A1111 1.10.1, modules/sd_samplers_kdiffusion.py, KDiffusionSampler.get_sigmas.
    """
    if not second:
        job.extra["Schedule type"] = label
    elif label != job.extra.get("Schedule type"):
        job.extra["Hires schedule type"] = label


def img2img_steps(strength: float | None, steps: int, options: Options) -> int:
    """Return how many of `steps` a pass over a picture takes: the share that `strength` noises.

    Raises:
        WebuiError: ValueError, when the strength is NaN.
    """
    strength = strength or 0.0
    if strength != strength:  # noqa: PLR0124 - NaN
        raise WebuiError("ValueError", "cannot convert float NaN to integer")
    if options["img2img_fix_steps"]:
        return steps
    return int(min(strength, _NEARLY_ONE) * steps) + 1
