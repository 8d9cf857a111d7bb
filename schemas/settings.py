"""The environment, parsed once at start into frozen values."""

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import SecretStr, ValidationError

from schemas.sections.base import Section
from schemas.sections.cache import CacheSettings
from schemas.sections.job import JobSettings
from schemas.sections.log import LogSettings
from schemas.sections.output import OutputSettings
from schemas.sections.webui import WebuiSettings

__all__ = [
    "CacheSettings",
    "JobSettings",
    "LogSettings",
    "OutputSettings",
    "Section",
    "Settings",
    "SettingsError",
    "WebuiSettings",
]

PREFIX = "A1111_"
_CLOSE = 0.8
_QUERY = re.compile(r"(\w+://[^\s?;]+)\?[^\s;]*")

# Names that users have in their endpoints already.
ALIASES = {
    "HF_TOKEN": "A1111_CACHE_HF_TOKEN",
    "HF_ENDPOINT": "A1111_CACHE_HF_ENDPOINT",
    "CIVITAI_TOKEN": "A1111_CACHE_CIVITAI_TOKEN",
    "AWS_ACCESS_KEY_ID": "A1111_CACHE_S3_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY": "A1111_CACHE_S3_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN": "A1111_CACHE_S3_SESSION_TOKEN",
    "AWS_DEFAULT_REGION": "A1111_CACHE_S3_REGION",
    "AWS_ENDPOINT_URL_S3": "A1111_CACHE_S3_ENDPOINT",
    "WEBUI_KIND": "A1111_WEBUI_KIND",
    "A1111_WORKER_PREFETCH": "A1111_JOB_PREFETCH",
    # Those of the RunPod SDK, and what it has no variable for, in its manner.
    # Source: runpod-python 1.12.0, serverless/utils/rp_upload.py.
    "BUCKET_ENDPOINT_URL": "A1111_OUTPUT_BUCKET_ENDPOINT",
    "BUCKET_ACCESS_KEY_ID": "A1111_OUTPUT_BUCKET_ACCESS_KEY_ID",
    "BUCKET_SECRET_ACCESS_KEY": "A1111_OUTPUT_BUCKET_SECRET_ACCESS_KEY",
    "BUCKET_NAME": "A1111_OUTPUT_BUCKET_NAME",
    "BUCKET_REGION": "A1111_OUTPUT_BUCKET_REGION",
    "BUCKET_PREFIX": "A1111_OUTPUT_BUCKET_PREFIX",
    "BUCKET_PUBLIC_URL": "A1111_OUTPUT_BUCKET_PUBLIC_URL",
}


class SettingsError(Exception):
    """The environment does not make settings; one line per problem, none of them with a value."""


class Settings(Section):
    """All settings; a layer receives its own section and never the whole."""

    cache: CacheSettings = CacheSettings()
    webui: WebuiSettings = WebuiSettings()
    job: JobSettings = JobSettings()
    output: OutputSettings = OutputSettings()
    log: LogSettings = LogSettings()

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Self:
        """Build from variables named A1111_<SECTION>_<FIELD>, as in A1111_CACHE_STALL_S.

        An empty variable counts as absent: that is how container platforms unset one. Space round a
        value, as of a token that was copied with its line's end, is no part of it.

        Raises:
            SettingsError: a value does not parse, or a variable with our prefix names no setting
                (a misspelt name must not silently become the default).
        """
        given = {name: text.strip() for name, text in environ.items() if text.strip()}
        spelled = {ALIASES[name]: name for name in given if name in ALIASES}
        ours = (name for name in given if name.startswith(PREFIX) and name not in ALIASES)
        spelled |= {name.upper(): name for name in ours}
        settings = {
            f"{PREFIX}{name}_{field}".upper() for name, group in cls() for field, _ in group
        }
        problems = [
            _no_setting(spelled[name], settings) for name in spelled if name not in settings
        ]
        sections: dict[str, dict[str, str]] = {}
        for name in spelled.keys() & settings:
            section, _, field = name.removeprefix(PREFIX).lower().partition("_")
            sections.setdefault(section, {})[field] = given[spelled[name]]
        made = None
        try:
            made = cls.model_validate(sections)
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False, include_context=False)
            problems += [_problem(wrong["loc"], wrong["msg"], spelled) for wrong in found]
        if made is None or problems:
            raise SettingsError("\n".join(sorted(problems)))
        return made

    def changed(self) -> dict[str, Any]:
        """Return the variables that differ from their defaults, with their values as JSON can say.

        Of a secret only that it is set; a URL in a text loses its query, where tokens travel.
        """
        found: dict[str, Any] = {}
        for name, section in self:
            for field, value in section:
                if value != type(section).model_fields[field].default:
                    found[f"{PREFIX}{name}_{field}".upper()] = _shown(value)
        return found


def _no_setting(name: str, settings: set[str]) -> str:
    near = difflib.get_close_matches(name.upper(), sorted(settings), n=1, cutoff=_CLOSE)
    told = f"did you mean {near[0]}?" if near else "docs/configuration.md lists them."
    return f"{name}: there is no such setting; {told}"


def _problem(place: tuple[int | str, ...], message: str, spelled: Mapping[str, str]) -> str:
    """Return a line about what is wrong, under the name of the variable that somebody set."""
    # A number is the place of an entry in a list.
    name = PREFIX + "_".join(part for part in place if isinstance(part, str)).upper()
    return f"{spelled.get(name, name)}: {message.removeprefix('Value error, ')}"


def _shown(value: object) -> Any:
    if isinstance(value, SecretStr):
        return "set"
    if isinstance(value, tuple):
        return [str(part) for part in value]
    if isinstance(value, Path | str):
        return _QUERY.sub(r"\1?…", str(value))
    return value
