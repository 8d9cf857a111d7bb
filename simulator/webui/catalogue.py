"""What A1111 1.10.1 brings by itself: samplers, schedulers, upscalers, options, flags, its schema.

Plain data in `data/`, read once; knows no file of the user's.
"""

import copy
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
VERSION = "v1.10.1"
AUTOMATIC = "Automatic"

# The order in which the schema lists its parts, which is alphabetical; the two largest parts are
# files of their own.
_APART = {"Flags": "flags", "Options": "options"}


@dataclass(frozen=True)
class Sampler:
    """One sampler: its exact name and what its definition says about it."""

    name: str
    aliases: tuple[str, ...]
    options: dict[str, str]

    @property
    def is_timestep(self) -> bool:
        """Whether it belongs to the CompVis family, which looks at no scheduler.

        Source: A1111 1.10.1, modules/sd_samplers_timesteps.py, samplers_timesteps.
        """
        return self.name in {"DDIM", "DDIM CFG++", "PLMS", "UniPC"}

    @property
    def is_second_order(self) -> bool:
        """Whether every step of it evaluates the model twice."""
        return self.options.get("second_order") == "True"


@dataclass(frozen=True)
class Scheduler:
    """One noise schedule; a request may give its name, its label or, behind a sampler, an alias."""

    name: str
    label: str
    aliases: tuple[str, ...]


@functools.cache
def load(name: str) -> Any:
    """Return `data/<name>.json`; callers must not change it."""
    return json.loads((DATA / f"{name}.json").read_text("utf-8"))


@functools.cache
def samplers() -> dict[str, Sampler]:
    """Return the samplers by name, in A1111's order."""
    return {
        entry["name"]: Sampler(entry["name"], tuple(entry["aliases"]), entry["options"])
        for entry in load("lists")["samplers"]
    }


@functools.cache
def schedulers() -> tuple[Scheduler, ...]:
    """Return the schedulers in A1111's order; the first is Automatic."""
    return tuple(
        Scheduler(entry["name"], entry["label"], tuple(entry["aliases"] or ()))
        for entry in load("lists")["schedulers"]
    )


def latent_upscalers() -> list[str]:
    """Return the names of the upscalers that work on latents."""
    return [entry["name"] for entry in load("lists")["latent_upscale_modes"]]


def sampler_and_scheduler(
    sampler: str | None, scheduler: str | None, *, convert_automatic: bool = True
) -> tuple[str, str]:
    """Return the sampler and the scheduler's label that A1111 makes of what was asked.

    "DPM++ 2M Karras" is taken apart. An unknown sampler becomes the first one, an unknown scheduler
    Automatic, both in silence. With `convert_automatic` a sampler's own scheduler becomes Automatic.

    Source: A1111 1.10.1, modules/sd_samplers.py, get_sampler_and_scheduler.
    """
    known = {s.name: s for s in schedulers()} | {s.label: s for s in schedulers()}
    found = known.get(scheduler or "", schedulers()[0])
    first = next(iter(samplers().values()))
    name = sampler or first.name
    for candidate in schedulers():
        for spelling in (candidate.label, candidate.name, *candidate.aliases):
            if name.endswith(f" {spelling}"):
                found = candidate
                name = name[: -(len(spelling) + 1)]
                break
    chosen = samplers().get(name, first)
    if convert_automatic and chosen.options.get("scheduler") == found.name:
        found = schedulers()[0]
    return chosen.name, found.label


def schedule_of(sampler: str, label: str) -> str | None:
    """Return the label of the schedule that really runs, or None when the sampler's own one does.

    Source: A1111 1.10.1, modules/sd_samplers_kdiffusion.py, KDiffusionSampler.get_sigmas.
    """
    definition = samplers()[sampler]
    if definition.is_timestep:
        return None
    name = definition.options.get("scheduler") if label == AUTOMATIC else label
    for candidate in schedulers()[1:]:
        if name in {candidate.name, candidate.label}:
            return candidate.label
    return None


@functools.cache
def openapi(*, controlnet: bool = False) -> dict[str, Any]:
    """Return the schema that /openapi.json serves; of `controlnet`'s parts only the paths."""
    schemas = load("openapi_schemas") | {
        title: {"title": title, "type": "object", "properties": load(name)}
        for title, name in _APART.items()
    }
    return {
        "openapi": "3.0.2",
        "info": {"title": "FastAPI", "version": "0.1.0"},
        "paths": load("openapi_paths") | (load("controlnet")["paths"] if controlnet else {}),
        "components": {"schemas": dict(sorted(schemas.items()))},
    }


def script_info(checkpoint_titles: list[str], upscalers: list[str]) -> list[dict[str, Any]]:
    """Return what /script-info answers, with choices of the refiner and of `sd upscale`."""
    info: list[dict[str, Any]] = copy.deepcopy(load("script_info"))
    for script in info:
        for argument in script["args"]:
            if argument["choices"] == ["{checkpoints}"]:
                argument["choices"] = checkpoint_titles
            elif argument["label"] == "Upscaler":
                argument["choices"] = upscalers
    return info
