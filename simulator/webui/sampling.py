"""Sampling, as far as it can be seen from outside: steps that pass, and a picture in the end.

Nothing is computed. What decides the picture in A1111 goes into a digest, and the digest is drawn.

Source: A1111 1.10.1, modules/sd_samplers_common.py and modules/sd_samplers_cfg_denoiser.py.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from simulator.webui import catalogue, describe, draw
from simulator.webui.encoding import Conditions
from simulator.webui.failure import WebuiError
from simulator.webui.job import Job
from simulator.webui.model import Model
from simulator.webui.networks import Signature
from simulator.webui.options import Options
from simulator.webui.progress import State

_MAX_SEED, _MIN_SEED = 2**64 - 1, -(2**63)
# Above this many pixels a step never ends, as it did not in five minutes on the live server.
_ENDLESS_PIXELS = 40_000_000
_NAN = "A tensor with NaNs was produced in Unet."
_NAN_HALF = (
    " This could be either because there's not enough precision to represent the picture, or because "
    'your video card does not support half type. Try setting the "Upcast cross attention layer to '
    'float32" option in Settings > Stable Diffusion or using the --no-half commandline argument to '
    "fix this."
)
_NAN_ADVICE = " Use --disable-nan-check commandline argument to disable this check."


@dataclass
class Pass:
    """One run of the sampler over a batch: the first, or that of the hires fix."""

    size: tuple[int, int]
    """Width and height in latent pixels, an eighth of the picture's."""
    steps: int
    sampler: str = "Euler"
    schedule: str | None = None
    before: tuple[object, ...] = ()
    """What is worked over, if not noise: digests of init images or of the first pass."""


@dataclass(frozen=True)
class Outcome:
    """What a pass came to: all that decided it, and how clear it is, 1 if it was not cut short."""

    decided: tuple[object, ...]
    clarity: float


@dataclass
class Clockwork:
    """What makes steps take time, or go wrong: told by the faults."""

    step_s: Callable[[], float]
    at_step: Callable[[], None]
    endless: Callable[[], None]


class Sampler:
    """Runs passes on the loaded model."""

    def __init__(self, model: Model, state: State, clockwork: Clockwork, nan: "NanCheck") -> None:
        self._model = model
        self._state = state
        self._clockwork = clockwork
        self._nan = nan

    def run(
        self,
        run: Pass,
        networks: Callable[[], Signature],
        preview: Callable[[float], Image.Image],
        before_step: Callable[[float], None],
    ) -> Outcome:
        """Pass the time of sampling and return what it came to.

        `networks` brings the UNet up to date, at the first step; `before_step` is told how much of the
        schedule has passed and may change the model.

        Raises:
            WebuiError: the size or the number of steps is impossible.
        """
        self._check_size(run.size)
        if run.steps < 0:
            raise WebuiError("RuntimeError", "number of steps must be non-negative")
        state = self._state
        state.sampling_steps = run.steps
        state.sampling_step = 0
        decided: list[object] = []
        done = 0
        for step in range(run.steps):
            if state.interrupted or state.skipped:
                break
            before_step(step / max(1, run.steps - 1))
            now = (self._model.content, self._model.is_hijacked, networks())
            # Equal neighbours say nothing new; the number of steps is told apart.
            if decided[-1:] != [now]:
                decided.append(now)
            self._clockwork.at_step()
            if (pause := self._clockwork.step_s()) > 0:
                time.sleep(pause)
            done = step + 1
            state.sampling_step = step
            state.current_latent = _bound(preview, done / run.steps)
        clarity = done / run.steps if run.steps else 0.0
        return Outcome((run.steps, done, run.sampler, run.schedule, *decided), clarity)

    def _check_size(self, size: tuple[int, int]) -> None:
        width, height = size
        if width < 0 or height < 0:
            worst = height if height < 0 else width
            text = (
                f"Trying to create tensor with negative dimension {worst}: [4, {height}, {width}]"
            )
            raise WebuiError("RuntimeError", text)
        if width == 0 or height == 0:
            text = (
                f"Calculated padded input size per channel: ({height + 2} x {width + 2}). "
                "Kernel size: (3 x 3). Kernel size can't be greater than actual input size"
            )
            raise WebuiError("RuntimeError", text)
        if width * height * 64 > _ENDLESS_PIXELS:
            self._clockwork.endless()

    def check_result(self, job: Job) -> None:
        """Refuse a result of NaN, which a broken checkpoint or a guidance of NaN gives.

        Raises:
            WebuiError: NansException.
        """
        scale = job.cfg_scale
        if scale is None:
            raise WebuiError(
                "TypeError", "unsupported operand type(s) for *: 'float' and 'NoneType'"
            )
        not_finite = scale != scale or scale in {float("inf"), float("-inf")}  # noqa: PLR0124 - NaN
        if (self._model.is_nan or not_finite) and not self._nan.disabled:
            text = _NAN if self._nan.no_half else _NAN + _NAN_HALF
            raise WebuiError("NansException", text + _NAN_ADVICE)


@dataclass(frozen=True)
class NanCheck:
    """The flags that decide about NaN: --disable-nan-check, and --no-half for the text."""

    disabled: bool
    no_half: bool


def _bound(preview: Callable[[float], Image.Image], clarity: float) -> Callable[[], Image.Image]:
    return lambda: preview(clarity)


def check_seeds(seeds: list[int]) -> None:
    """Refuse seeds that the random number generator cannot take.

    Raises:
        WebuiError: RuntimeError, with PyTorch's text.

    Source: recorded from A1111 1.10.1: txt2img_seed_huge.
    """
    if any(not _MIN_SEED <= seed <= _MAX_SEED for seed in seeds):
        raise WebuiError("RuntimeError", "Overflow when unpacking long")


def of_job(job: Job, options: Options, vae: str) -> tuple[object, ...]:
    """Return what of the whole job decides its pictures, beside prompts, seeds and the model."""
    return (
        job.cfg_scale,
        vae,
        job.tiling,
        describe.eta(job, options),
        options["eta_noise_seed_delta"] if describe.uses_seed_delta(job, options) else 0,
        options["CLIP_stop_at_last_layers"],
        options["randn_source"],
        describe.merging_ratio(job, options),
        describe.noise(job, options),
        *(
            getattr(job, name) if getattr(job, name) is not None else options[name]
            for name in ("s_min_uncond", "s_churn", "s_tmin", "s_tmax", "s_noise")
        ),
        job.control,
    )


def noise_of(job: Job, seed: int, subseed: int) -> tuple[object, ...]:
    """Return what decides the noise a picture begins with."""
    resized = (job.seed_resize_from_w or 0) > 0 and (job.seed_resize_from_h or 0) > 0
    return (
        seed,
        (subseed, job.subseed_strength) if job.subseed_strength else None,
        (job.seed_resize_from_w, job.seed_resize_from_h) if resized else None,
    )


def scene(conditions: Conditions, decided: tuple[object, ...]) -> draw.Scene:
    """Return what to draw: colours and hills by the prompt alone, the rest by everything."""
    positive, negative = conditions
    return draw.Scene(
        draw.digest(positive.text), draw.digest(positive, negative, decided), positive.text
    )


def schedule(sampler: str, scheduler: str | None) -> str | None:
    """Return the schedule that runs; None for the sampler's own."""
    return catalogue.schedule_of(sampler, scheduler or catalogue.AUTOMATIC)
