"""What of a job is decided before its first batch: prompts, seeds, models, the canvas.

Source: A1111 1.10.1, modules/processing.py, process_images_inner, down to its loop.
"""

import random
from dataclasses import dataclass, field

from PIL import Image

from simulator.webui import hires, img2img, prompts
from simulator.webui.checkpoints import Checkpoint, Checkpoints
from simulator.webui.failure import WebuiError
from simulator.webui.img2img import Canvas
from simulator.webui.job import Job
from simulator.webui.model import Model, Parts
from simulator.webui.progress import State
from simulator.webui.prompts import Style

_NO_REFINER = (None, "", "None", "none")
_NO_CHECKPOINT = (None, "", hires.SAME_CHECKPOINT)
RANDOM_SEEDS = 4294967294


@dataclass
class Run:
    """What one job carries from batch to batch."""

    job: Job
    refiner: Checkpoint | None
    hires_checkpoint: Checkpoint | None
    canvases: list[Canvas]
    images: list[Image.Image] = field(default_factory=list)
    infotexts: list[str] = field(default_factory=list)


def prepare(job: Job, parts: Parts, model: Model, styles: dict[str, Style], state: State) -> Run:
    """Fill the job with what is decided now, and return what it carries on.

    Raises:
        WebuiError: as A1111 does for null, for an unknown second checkpoint or upscaler, …
    """
    options = parts.options
    if job.prompt is None:
        raise WebuiError("AssertionError")
    if job.restore_faces is None:
        job.restore_faces = options["face_restoration"]
    if job.tiling is None:
        job.tiling = options["tiling"]
    seed, subseed = _fixed(job.seed), _fixed(job.subseed)
    refiner = _named(job.refiner_checkpoint, _NO_REFINER, parts.checkpoints)
    _note_model(job, model)
    _set_prompts(job, [styles[name] for name in job.styles or [] if name in styles])
    _set_seeds(job, seed, subseed)
    parts.embeddings.reload(model.width, force=False)
    if options["enable_prompt_comments"]:
        _strip_comments(job)
    job.uses_inpainting = model.is_inpainting
    if job.kind == "img2img":
        return Run(job, refiner, None, img2img.prepare(job, options))
    if not job.enable_hr:
        return Run(job, refiner, None, [])
    second = _named(job.hr_checkpoint_name, _NO_CHECKPOINT, parts.checkpoints)
    hires.prepare(job, second, parts.upscalers)
    hires.count_jobs(job, state)
    return Run(job, refiner, second, [])


def _fixed(seed: int | list[int] | None) -> int | list[int]:
    if seed is None or seed == -1:
        return random.randrange(RANDOM_SEEDS)
    return seed


def _named(
    name: str | None, nothing: tuple[str | None, ...], checkpoints: Checkpoints
) -> Checkpoint | None:
    if name is None or name in nothing:
        return None
    found = checkpoints.closest(name)
    if found is None:
        raise WebuiError("Exception", f"Could not find checkpoint with name {name}")
    return found


def _note_model(job: Job, model: Model) -> None:
    checkpoint = model.get()
    if checkpoint is None:
        text = "'NoneType' object has no attribute 'sd_checkpoint_info'"
        raise WebuiError("AttributeError", text)
    job.model_name = checkpoint.stem
    job.model_hash = checkpoint.shorthash
    job.vae_name = model.vae.name if model.vae else None
    job.vae_hash = model.vae_hash()


def _set_prompts(job: Job, styles: list[Style]) -> None:
    """Set the prompts of all pictures; null as a negative one fails later, when it is read."""
    if job.batch_size is None or job.n_iter is None:
        kinds = [type(value).__name__ for value in (job.batch_size, job.n_iter)]
        text = f"unsupported operand type(s) for *: {kinds[0]!r} and {kinds[1]!r}"
        raise WebuiError("TypeError", text)
    count = job.batch_size * job.n_iter
    positive, negative = job.prompt or "", job.negative_prompt or ""
    if not isinstance(positive, list):
        positive = [positive] * (len(negative) if isinstance(negative, list) else count)
    if not isinstance(negative, list):
        negative = [negative] * len(positive)
    if not positive:
        raise WebuiError("IndexError", "list index out of range")
    texts = [style.prompt for style in styles]
    negative_texts = [style.negative_prompt for style in styles]
    job.all_prompts = [prompts.with_styles(text, texts) for text in positive]
    job.all_negative_prompts = [prompts.with_styles(text, negative_texts) for text in negative]
    if job.enable_hr:
        second = [job.hr_prompt] * count if job.hr_prompt else positive
        second_negative = [job.hr_negative_prompt] * count if job.hr_negative_prompt else negative
        job.all_hr_prompts = [prompts.with_styles(text, texts) for text in second]
        job.all_hr_negative_prompts = [
            prompts.with_styles(text, negative_texts) for text in second_negative
        ]


def _set_seeds(job: Job, seed: int | list[int], subseed: int | list[int]) -> None:
    count = len(job.all_prompts)
    if isinstance(seed, list):
        job.all_seeds = seed
    else:
        job.all_seeds = [seed + (0 if job.subseed_strength else n) for n in range(count)]
    first = subseed[0] if isinstance(subseed, list) else subseed
    job.all_subseeds = [first + n for n in range(count)]


def _strip_comments(job: Job) -> None:
    for texts in (
        job.all_prompts,
        job.all_negative_prompts,
        job.all_hr_prompts,
        job.all_hr_negative_prompts,
    ):
        texts[:] = [prompts.without_comments(text) for text in texts]
