"""How the hub can misbehave: what one answer does wrong, and the rules that say which answers do.

A fault comes with the request itself (`?fault-cut=1000&fault-status=503`: one query parameter for each
field of `Fault`, `_` written as `-`) or from a rule that was posted before.
"""

import fnmatch
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field

QUERY_PREFIX = "fault-"


@dataclass(frozen=True)
class Fault:
    """What one answer does wrong; the default is nothing. Sizes are bytes of that answer's body."""

    status: int | None = None
    """Answer with this status instead, as JSON, or as HTML with `html`."""
    retry_after: str | None = None
    """The Retry-After header beside `status`: seconds or an HTTP date."""
    html: bool = False
    """A login page, with status 200 unless `status` says otherwise."""
    json_error: bool = False
    """`{"error": …}` with status 200."""
    redirect: str | None = None
    """`loop`, `file` (a file: URL), `private`, `metadata` (addresses inside a network), or a URL."""
    drop: bool = False
    """Close the connection without an answer."""
    delay_s: float = 0.0
    """Wait before the answer begins."""
    cut: int | None = None
    """Close the connection after so many bytes of the body."""
    stall: int | None = None
    """Fall silent after so many bytes, until the client gives up."""
    rate: int | None = None
    """Send so many bytes a second."""
    length: int | None = None
    """Added to the true Content-Length: a positive one promises more than is sent."""
    chunked: bool = False
    """No Content-Length, Transfer-Encoding: chunked."""
    no_length: bool = False
    """No Content-Length; the body ends where the connection does, so a cut cannot be seen."""
    no_range: bool = False
    """Ignore Range: answer 200 with the whole file."""
    shift: int = 0
    """Answer a Range with a part that begins so many bytes later, and say so."""
    short: int | None = None
    """Answer a Range with its first so many bytes, and say so."""
    long: int = 0
    """Answer a Range with so many bytes more than were asked for, and say so."""
    junk: int = 0
    """Send so many bytes after the end, without a Content-Length that would show it."""
    busy_above: int | None = None
    """Answer 429 while more than so many answers are under way."""
    gzip: bool = False
    """Content-Encoding: gzip, asked for or not."""
    flip: int | None = None
    """Invert the byte at this offset of the file."""
    etag: str | None = None
    """`none`, `weak` or `changing` (another one in each answer)."""
    filename: str | None = None
    """The name in Content-Disposition, sent as it is."""


_TYPES: dict[str, object] = typing.get_type_hints(Fault)


@dataclass
class Rule:
    """A fault for the requests that fit; `times` of them (-1: all), after `skip` that went well."""

    fault: Fault
    path: str = "*"
    host: str | None = None
    method: str | None = None
    times: int = 1
    skip: int = 0
    hits: int = 0

    def strikes(self, host: str, method: str, path: str) -> bool:
        """Say whether this request is one that goes wrong, and count it."""
        fits = (
            fnmatch.fnmatchcase(path, self.path)
            and self.host in {None, host}
            and self.method in {None, method}
        )
        if not fits or self.hits == self.times:
            return False
        if self.skip > 0:
            self.skip -= 1
            return False
        self.hits += 1
        return True


@dataclass
class Faults:
    """The rules in force, in the order in which they came; the first that strikes is used."""

    rules: list[Rule] = field(default_factory=list)

    def add(self, wish: object) -> Rule:
        """Add a rule from JSON: fields of `Rule` and of `Fault` side by side.

        Raises:
            ValueError: a field that neither has, or a value that cannot be meant.
        """
        if not isinstance(wish, Mapping):
            raise ValueError("a rule is a JSON object")  # noqa: TRY004 - one error for bad wishes
        kinds = typing.get_type_hints(Rule)
        own = kinds.keys() - {"fault", "hits"}
        values = {name: _value(kinds[name], value) for name, value in wish.items() if name in own}
        rest = {name: value for name, value in wish.items() if name not in own}
        rule = Rule(parse(rest), **typing.cast("dict[str, typing.Any]", values))
        self.rules.append(rule)
        return rule

    def of(self, host: str, method: str, path: str, query: Mapping[str, str]) -> Fault:
        """Return what the answer to this request does wrong: a rule's wish, else the request's own.

        Raises:
            ValueError: the query names a fault that does not exist.
        """
        for rule in self.rules:
            if rule.strikes(host, method, path):
                return rule.fault
        return parse(
            {
                name.removeprefix(QUERY_PREFIX).replace("-", "_"): value
                for name, value in query.items()
                if name.startswith(QUERY_PREFIX)
            }
        )


def parse(wish: Mapping[str, object]) -> Fault:
    """Build a fault from JSON values or from the texts of a query string.

    Raises:
        ValueError: an unknown name, or a number that is none.
    """
    if unknown := wish.keys() - _TYPES.keys():
        raise ValueError(f"no such fault: {', '.join(sorted(unknown))}; known: {', '.join(_TYPES)}")
    values = {name: _value(_TYPES[name], value) for name, value in wish.items()}
    return Fault(**typing.cast("dict[str, typing.Any]", values))


def _value(kind: object, value: object) -> object:
    """Turn the text `value` into what the field holds; JSON brings the right type along."""
    if not isinstance(value, str):
        return value
    if isinstance(kind, types.UnionType):
        kind = next(member for member in typing.get_args(kind) if member is not types.NoneType)
    if kind is bool:
        return value not in {"", "0", "false"}
    return int(value) if kind is int else float(value) if kind is float else value
