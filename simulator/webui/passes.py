"""A batch on its way from prompts to pictures: the passes of the sampler, and what they result in.

Source: A1111 1.10.1, modules/processing.py, the `sample` methods, and
modules/sd_samplers_common.py, apply_refiner.
"""

from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from simulator.webui import draw, hires, sampling
from simulator.webui.encoding import Conditions, TextEncoder
from simulator.webui.job import Job
from simulator.webui.model import Model, Parts
from simulator.webui.networks import Signature
from simulator.webui.prepare import Run
from simulator.webui.progress import State
from simulator.webui.sampling import Outcome, Pass, Sampler


@dataclass(frozen=True)
class _Latents:
    """What a batch's passes came to, for all of its pictures."""

    decided: tuple[object, ...]
    size: tuple[int, int]
    clarity: float


class Painter:
    """Makes the pictures of one batch after the other."""

    def __init__(self, parts: Parts, model: Model, state: State, sampler: Sampler) -> None:
        self._parts = parts
        self._model = model
        self._state = state
        self._sampler = sampler
        self.encoder = TextEncoder(parts, model)

    def paint(
        self, run: Run, indices: list[int], conditions: list[Conditions]
    ) -> list[Image.Image]:
        """Return the pictures with these numbers, without words or overlay.

        Raises:
            WebuiError: the size, a seed or the second pass is impossible, or the result is NaN.
        """
        job, options = run.job, self._parts.options
        first = self._first_pass(job, indices)
        outcome = self._pass(run, first, second=False)
        # Taken before a second checkpoint brings a VAE of its own, as the job notes it, too.
        settings = sampling.of_job(job, options, self._model.vae_content)
        size = first.size
        if job.enable_hr:
            # Even when interrupted: the model of the second pass is loaded first.
            second = hires.second_pass(job, (*outcome.decided, outcome.clarity))
            self._model.reload(run.hires_checkpoint, into_options=False)
            if not self._state.interrupted:
                self._state.next_job()
                conditions = self.encoder.encode(job, indices, second_pass=True)
                outcome = self._pass(run, second, second=True)
                size = second.size
        self._sampler.check_result(job)
        latents = _Latents((*outcome.decided, *settings), size, outcome.clarity)
        return [
            self._picture(run, (index, place), conditions[place], latents)
            for place, index in enumerate(indices)
        ]

    def _first_pass(self, job: Job, indices: list[int]) -> Pass:
        sampling.check_seeds([job.all_seeds[index] for index in indices])
        steps = job.steps or 0
        if job.kind == "img2img":
            steps = hires.img2img_steps(job.denoising_strength, steps, self._parts.options)
        return Pass(
            size=((job.width or 0) // 8, (job.height or 0) // 8),
            steps=steps,
            sampler=job.sampler_name,
            schedule=sampling.schedule(job.sampler_name, job.scheduler),
        )

    def _pass(self, run: Run, now: Pass, *, second: bool) -> Outcome:
        job = run.job
        if now.schedule is not None:
            hires.note_schedule(job, now.schedule, second=second)
        size = (max(1, now.size[0] * 2), max(1, now.size[1] * 2))
        scene = draw.Scene(draw.digest(job.all_prompts[0]), draw.digest(job.all_seeds), "")

        def preview(clarity: float) -> Image.Image:
            return draw.paint(scene, size, clarity=clarity)

        def networks() -> Signature:
            return self._parts.networks.apply_to_unet(self._model.width)

        outcome = self._sampler.run(now, networks, preview, self._refine(run, second=second))
        return Outcome((*outcome.decided, *now.before), outcome.clarity)

    def _refine(self, run: Run, *, second: bool) -> Callable[[float], None]:
        """Return what switches to the refiner when its time has come."""
        job, refiner = run.job, run.refiner
        which = self._parts.options["hires_fix_refiner_pass"]
        elsewhere = job.enable_hr and which == ("first pass" if second else "second pass")

        def switch(passed: float) -> None:
            if refiner is None or elsewhere or self._model.checkpoint is refiner:
                return
            if job.refiner_switch_at is not None and passed < job.refiner_switch_at:
                return
            self._model.reload(refiner, into_options=False)
            job.extra["Refiner"] = refiner.short_title
            job.extra["Refiner switch at"] = job.refiner_switch_at

        return switch

    def _picture(
        self, run: Run, which: tuple[int, int], conditions: Conditions, latents: _Latents
    ) -> Image.Image:
        job, (index, place) = run.job, which
        noise = sampling.noise_of(job, job.all_seeds[index], job.all_subseeds[index])
        size = (latents.size[0] * 8, latents.size[1] * 8)
        decided = (latents.decided, noise, size)
        if not run.canvases:
            scene = sampling.scene(conditions, decided)
            return draw.paint(scene, size, clarity=latents.clarity)
        canvas = run.canvases[place]
        strength = min(max(job.denoising_strength or 0.0, 0.0), 1.0)
        if strength == 0:
            return canvas.image
        masked = (canvas.mask.tobytes(), job.inpainting_fill) if canvas.mask else ()
        below = draw.digest(canvas.image.tobytes(), masked, job.denoising_strength)
        scene = sampling.scene(conditions, (*decided, below))
        painted = draw.paint(scene, size, clarity=latents.clarity)
        painted = Image.blend(canvas.image, painted, strength)
        return Image.composite(painted, canvas.image, canvas.mask) if canvas.mask else painted
