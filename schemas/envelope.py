"""The envelope form of a job: which endpoint it calls, spelt in any of the usual ways, and with what.

    {"api": {"method": "GET", "endpoint": "/controlnet/model_list?update=false"}}

`/sdapi/v1/x`, `sdapi/v1/x`, `/sdapi/v1/x/` and `x` are the same.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from schemas.commands import COMMANDS
from schemas.errors import SHOWN_CHARS, InvalidInputError, shown
from schemas.routes import PREFIX, REFUSED, ROUTES, Route

GENERATIONS = ("txt2img", "img2img")
_SETTING = "A1111_JOB_EXTRA_ROUTES"


@dataclass(frozen=True)
class Envelope:
    """What an envelope says."""

    method: str
    """In capitals; empty if it says none."""
    endpoint: str
    """Without the slashes round it."""
    query: Mapping[str, str]
    payload: Any

    @property
    def generation(self) -> str | None:
        """Which of the two generations it asks for, if one."""
        name = self.endpoint.removeprefix(PREFIX[1:])
        return name if name in GENERATIONS else None

    @property
    def command(self) -> str | None:
        """Which of our own commands it calls, if one."""
        is_ours = self.endpoint.startswith("v1/")
        name = self.endpoint.removeprefix("v1/")
        return name if is_ours and name in COMMANDS else None


def opened(value: Mapping[str, Any]) -> Envelope | None:
    """Return the envelope of a job's `input`, None if that is the flat form.

    Raises:
        InvalidInputError: it is no envelope.
    """
    api = value.get("api")
    if api is None:
        if isinstance(value.get("payload"), dict):
            raise InvalidInputError(
                "`payload` needs `api` beside it.",
                hint="Without `api`, the fields of a request stand in `input` itself.",
                field="api",
            )
        return None
    endpoint = api.get("endpoint") if isinstance(api, dict) else None
    if not isinstance(endpoint, str) or not endpoint.strip(" /"):
        raise InvalidInputError(
            "`api` must name an endpoint.",
            hint='As in {"api": {"method": "GET", "endpoint": "/sdapi/v1/samplers"}}.',
            field="api.endpoint",
        )
    method = api.get("method") or ""
    if not isinstance(method, str) or method.upper() not in {"", "GET", "POST"}:
        raise InvalidInputError(
            f"`api.method` must be GET or POST, not {shown(method)}.", field="api.method"
        )
    beside = value.keys() - {"api", "payload"}
    if beside:
        name = min(map(str, beside))
        raise InvalidInputError(
            f"{shown(name)} belongs into `payload`.", field=name[:SHOWN_CHARS] or "input"
        )
    path, _, query = endpoint.strip().partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise InvalidInputError(
            "The query names a field twice.", hint="Send a payload.", field="api.endpoint"
        )
    return Envelope(method.upper(), path.strip("/"), fields, value.get("payload"))


def routed(envelope: Envelope, extra: Sequence[str]) -> Route:
    """Return the route that `envelope` calls; those of `extra` ("POST /path") are offered besides.

    Raises:
        InvalidInputError: it is refused, unknown, or called by another method.
    """
    offered = [*ROUTES, *(_added(text) for text in extra)]
    paths = (f"/{envelope.endpoint}", PREFIX + envelope.endpoint)
    found = {route.method: route for route in reversed(offered) if route.path in paths}
    if not found:
        raise _refusal(envelope.endpoint, paths, offered)
    if envelope.method in found:
        return found[envelope.method]
    if envelope.method:
        raise InvalidInputError(
            f"{next(iter(found.values())).path} takes {' or '.join(found)}, not {envelope.method}.",
            field="api.method",
        )
    if len(found) == 1:
        return next(iter(found.values()))
    return found["POST" if envelope.payload else "GET"]


def _added(text: str) -> Route:
    method, path = text.split()
    if method == "GET":
        return Route("GET", path, "", is_free=True)
    # What it does is not known, so nothing runs beside it.
    return Route("POST", path, "", in_turn=True, is_free=True)


def _refusal(endpoint: str, paths: Sequence[str], offered: Sequence[Route]) -> InvalidInputError:
    for path in paths:
        if path in REFUSED:
            reason, way = REFUSED[path]
            return InvalidInputError(
                f"{path} is not taken as a job: {reason}.",
                hint=way or f"{_SETTING} adds routes.",
                field="api.endpoint",
            )
    names = [route.path for route in offered]
    names += [PREFIX + name for name in GENERATIONS] + [f"/v1/{name}" for name in COMMANDS]
    written = {path.rpartition("/")[2]: path for path in names} | {path[1:]: path for path in names}
    near = difflib.get_close_matches(endpoint[:SHOWN_CHARS], written, n=3, cutoff=0.6)
    matches = list(dict.fromkeys(written[name] for name in near))
    offer = f"Did you mean {' or '.join(matches)}? " if matches else ""
    return InvalidInputError(
        f"The endpoint {shown(endpoint)} is not offered.",
        hint=f"{offer}{_SETTING} adds routes of A1111.",
        field="api.endpoint",
        near=matches,
    )
