"""What the running A1111 offers: samplers, schedulers, upscalers, styles, scripts.

A1111 1.10.1 answers an unknown sampler or scheduler with a picture made by another one and status 200
(recorded: sampler_unknown, sampler_lower, sampler_sched_unknown), and drops unknown styles
(txt2img_styles_unknown), so each name is looked up before the job runs. The lists are asked once and
again when a name is missing, never frozen here.
"""

import difflib
import time
from collections.abc import Callable, Iterable
from typing import Any

from schemas.errors import InvalidInputError, shown
from schemas.job import Generation, Img2Img, Txt2Img
from worker.child.client import WebuiClient
from worker.extensions.detailer import MODELS_ROUTE

SAME_SAMPLER = "Use same sampler"
SAME_SCHEDULER = "Use same scheduler"
REFRESH_S = 5.0
MAX_STYLES = 100
"""In one request: each adds to the prompt, also when it is named again."""

# From here on two names look alike; below, ADetailer is near to Hypertile.
_CLOSE = 0.6


class UnlistedError(InvalidInputError):
    """There is no such upscaler, by what A1111 found when it started: it looks for them only then.

    Source: A1111 1.10.1, modules/initialize.py, initialize_rest, calls modelloader.load_upscalers, and
    nothing else does; no route reloads them.
    """

    name = ""


class Catalog:
    """The lists of one A1111. Safe to use from several threads."""

    def __init__(self, client: WebuiClient) -> None:
        self._client = client
        self._lists: dict[str, Any] = {}
        self._asked: dict[str, float] = {}

    def checked(self, job: Generation) -> dict[str, Any]:
        """Return the fields of `job` that change: a sampler's name split from its scheduler's.

        Raises:
            InvalidInputError: a name that this A1111 does not know; near matches in the hint.
        """
        changes = self._sampler(job)
        if len(job.styles or ()) > MAX_STYLES:
            raise InvalidInputError(f"More than {MAX_STYLES} styles are given.", field="styles")
        for index, style in enumerate(job.styles or ()):
            self._require(f"styles[{index}]", style, "prompt-styles")
        if isinstance(job, Txt2Img) and job.enable_hr:
            changes |= self._hires(job)
        self._scripts(job)
        overrides = job.override_settings
        if upscaler := overrides.get("upscaler_for_img2img"):
            self.require_upscaler("override_settings.upscaler_for_img2img", str(upscaler))
        if restorer := overrides.get("face_restoration_model"):
            self._require(
                "override_settings.face_restoration_model", str(restorer), "face-restorers"
            )
        return changes

    def require_hypernetwork(self, name: str) -> None:
        """Refuse a `<hypernet:name:1>` tag that A1111 would drop in silence."""
        self._require("prompt", name, "hypernetworks")

    def require_upscaler(self, field: str, name: str) -> None:
        """Refuse an upscaler that A1111 would fail at, or do without.

        Raises:
            UnlistedError: it is one.
        """
        try:
            self._require(field, name, "upscalers")
        except InvalidInputError as error:
            raise _unlisted(name, error) from None

    def require_face_restorer(self, field: str, name: str) -> None:
        """Refuse a face restorer that an extension would do without in silence."""
        self._require(field, name, "face-restorers")

    def require_detector(self, field: str, name: str) -> None:
        """Refuse a model that ADetailer would do without in silence; it looks for them at its start."""
        offered = list(map(str, self._list(MODELS_ROUTE)["ad_model"]))
        if name not in offered:
            raise _unknown(field, name, offered)

    def arguments(self, *, img2img: bool) -> dict[str, list[dict[str, Any]]]:
        """Return what is told of the arguments of a tab's scripts, by their names in small letters."""
        return {
            str(script["name"]).lower(): script["args"]
            for script in self._list("script-info")
            if script["is_img2img"] == img2img
        }

    def _sampler(self, job: Generation) -> dict[str, Any]:
        # An empty name means `sampler_index`, the older field (recorded: sampler_empty).
        asked = job.sampler_name or job.sampler_index
        field = "sampler_name" if job.sampler_name else "sampler_index"
        sampler, scheduler = self._split(field, asked, job.scheduler, "scheduler")
        changes: dict[str, Any] = {}
        if sampler != asked:
            changes["sampler_name"] = sampler
        if scheduler != job.scheduler:
            changes["scheduler"] = scheduler
        return changes

    def _hires(self, job: Txt2Img) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        if job.hr_upscaler:
            offered = [*self._names("latent-upscale-modes"), *self._names("upscalers")]
            if job.hr_upscaler not in offered:
                error = _unknown("hr_upscaler", job.hr_upscaler, offered)
                raise _unlisted(job.hr_upscaler, error)
        asked = None if job.hr_scheduler == SAME_SCHEDULER else job.hr_scheduler
        if job.hr_sampler_name and job.hr_sampler_name != SAME_SAMPLER:
            sampler, scheduler = self._split(
                "hr_sampler_name", job.hr_sampler_name, asked, "hr_scheduler"
            )
            if sampler != job.hr_sampler_name:
                changes["hr_sampler_name"] = sampler
            if scheduler != asked:
                changes["hr_scheduler"] = scheduler
        elif asked:
            self._scheduler("hr_scheduler", asked)
        return changes

    def _split(
        self, field: str, sampler: str, scheduler: str | None, scheduler_field: str
    ) -> tuple[str, str | None]:
        """Return sampler and scheduler; "DPM++ 2M Karras" is both in one, as before A1111 1.9.

        Source: A1111 1.10.1, modules/sd_samplers.py, get_sampler_and_scheduler.
        """
        if scheduler:
            self._scheduler(scheduler_field, scheduler)
        if sampler in self._names("samplers"):
            return sampler, scheduler
        for entry in self._entries("schedulers"):
            for suffix in _spellings(entry):
                # In any case, as the older workers took it.
                stem, tail = sampler[: -len(suffix) - 1], sampler[-len(suffix) - 1 :]
                if tail.lower() == f" {suffix}".lower() and stem in self._names("samplers"):
                    if scheduler and scheduler not in {
                        "Automatic",
                        "automatic",
                        *_spellings(entry),
                    }:
                        raise InvalidInputError(
                            f"`{field}` names the scheduler {shown(suffix)}"
                            f" and `{scheduler_field}` says {shown(scheduler)}.",
                            field=scheduler_field,
                        )
                    return stem, str(entry["label"])
        self._require(field, sampler, "samplers")
        return sampler, scheduler

    def _scheduler(self, field: str, name: str) -> None:
        self._require(field, name, "schedulers", _spellings)

    def _scripts(self, job: Generation) -> None:
        if not job.script_name and not job.alwayson_scripts:
            return
        img2img = isinstance(job, Img2Img)
        offered = list(map(str, self._list("scripts").get("img2img" if img2img else "txt2img", ())))
        # What has no control of its own is told nothing of, and is always on (recorded: get_scripts).
        chosen = {
            str(script["name"]).lower()
            for script in self._list("script-info")
            if not script["is_alwayson"] and script["is_img2img"] == img2img
        }
        for name in job.alwayson_scripts:
            always_on = [script for script in offered if script.lower() not in chosen]
            _require_script(f"alwayson_scripts.{name[:80]}", name, always_on)
        if job.script_name:
            selectable = [script for script in offered if script.lower() in chosen]
            _require_script("script_name", job.script_name, selectable)

    def _require(
        self,
        field: str,
        name: str,
        route: str,
        spellings: Callable[[dict[str, Any]], Iterable[str]] = lambda entry: [str(entry["name"])],
    ) -> None:
        for attempt in (1, 2):
            entries = self._entries(route)
            if any(name in spellings(entry) for entry in entries):
                return
            if attempt == 1 and not self._forget(route):
                break
        aliases = {
            alias: str(entry["name"]) for entry in entries for alias in entry.get("aliases") or ()
        }
        offered = [spelling for entry in entries for spelling in spellings(entry)]
        raise _unknown(field, name, offered, aliases)

    def _names(self, route: str) -> list[str]:
        return [str(entry["name"]) for entry in self._entries(route)]

    def _entries(self, route: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self._list(route)
        return entries

    def _list(self, route: str) -> Any:
        known = self._lists.get(route)
        if known is None:
            known = self._lists[route] = self._client.get(route)
            self._asked[route] = time.monotonic()
        return known

    def _forget(self, route: str) -> bool:
        """Drop a list so that it is asked again; False if it is fresh, so misses cannot be a load."""
        if time.monotonic() - self._asked[route] < REFRESH_S:
            return False
        self._lists.pop(route, None)
        return True


def _spellings(scheduler: dict[str, Any]) -> list[str]:
    return [scheduler["label"], scheduler["name"], *(scheduler.get("aliases") or ())]


def _require_script(field: str, name: str, offered: list[str]) -> None:
    # Script names are matched in any case (recorded: txt2img_script_matrix).
    if name.lower() not in {script.lower() for script in offered}:
        raise _unknown(field, name, offered)


def _unlisted(name: str, error: InvalidInputError) -> UnlistedError:
    unlisted = UnlistedError(str(error), hint=error.hint, **error.details)
    unlisted.name = name
    return unlisted


def _unknown(
    field: str, name: str, offered: list[str], aliases: dict[str, str] | None = None
) -> InvalidInputError:
    proper = {alias.lower(): owner for alias, owner in (aliases or {}).items()}
    # The first spelling wins: a scheduler's label ("Karras") comes before its name ("karras").
    proper |= {spelling.lower(): spelling for spelling in reversed(offered)}
    near = difflib.get_close_matches(name[:80].lower(), proper, n=3, cutoff=_CLOSE)
    matches = list(dict.fromkeys(proper[match] for match in near))
    if matches:
        hint = f"Did you mean {' or '.join(repr(match) for match in matches)}?"
    elif offered:
        listed = list(dict.fromkeys(proper[spelling.lower()] for spelling in offered))
        hint = f"There are: {', '.join(listed[:40])}."
    else:
        hint = "This WebUI offers none."
    return InvalidInputError(
        f"This WebUI knows no {shown(name)} for `{field}`.", hint=hint, field=field, near=matches
    )
