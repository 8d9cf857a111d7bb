"""What nobody else is to read, taken out of texts: secrets, signed URLs, and prompts unless they are wanted.

    redact.learn(environ, prompts=False)     the values of variables that are named as secrets are
    with redact.knowing(job): ...            those of a job, and its prompts, while it runs and a while after
    redact.text("GET /x?token=abc")          a line for the log: "GET /x?…"
    redact.answer({"error": "…"})            what a caller gets: without secrets, else as it is

A value is known by the name that it stands under, or by its place in a URL. Those of fewer than six
characters are not looked for: they would be found in every other word.
"""

import json
import re
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Lock
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

MARK = "…"
MIN_CHARS = 6
PART_CHARS = 8
"""So much of the beginning of a secret counts as the secret, where a text was cut off behind it."""
_ENDED_JOBS = 32
"""Jobs whose values are still known: the SDK, A1111 and helper threads speak after the answer, too."""
_MOST_ENDED_CHARS = 1_000_000
"""Of them all; the one that ended last is known in any case."""
_MOST_WORDS = 500
"""Of one job. Each costs time in every line; a prompt of more lines than that is known as a whole."""
_MAX_URL_CHARS = 16_384

_SECRET = re.compile(
    r"token|secret|passw|credential|signature|authoriz|api_?key|access_?(key|id)"
    r"|(^|[_-])(auth|key|sig)($|[_-])",
    re.IGNORECASE,
)
_PROMPT = re.compile(r"(^|_)prompts?$|^infotext$", re.IGNORECASE)
_TAG = re.compile(r"<[^<>]*>|\n")

_CUT = (
    # user:password@ of a URL; its query, and what a page would take from behind its #
    (re.compile(r"\b([a-z][a-z0-9+.-]{1,20}://)[^\s/?#\"'@]+@", re.IGNORECASE), rf"\1{MARK}@"),
    (re.compile(r"\b(\w{2,20}://[^\s?#\"'<>]{1,2000})([?#])[^\s\"'<>]+"), rf"\1\2{MARK}"),
    # the query of a path alone, as HTTP clients write it into their errors
    (re.compile(r"(?<=[\w/.~%-])\?(?=[\w.~%-]+=)[^\s\"'<>]+"), f"?{MARK}"),
    (re.compile(r"\b(bearer|basic) +[\w.~+/=-]{8,}", re.IGNORECASE), rf"\1 {MARK}"),
    (
        re.compile(
            r"(\b(?:x-amz-[\w-]+|access_token|token|signature|sig|api_?key)=)[^\s&\"'<>]+",
            re.IGNORECASE,
        ),
        rf"\1{MARK}",
    ),
    (re.compile(r"(--[\w-]*(?:auth|token|password|secret)[ =]+)[^\s\"']+"), rf"\1{MARK}"),
)

# Most lines have nothing for these.
_MAYBE = re.compile(r"[?=]|://|--|\b(?:bearer|basic) ", re.IGNORECASE)


class _Book:
    """The values that are known now. Readers take no lock: the process that pings is a fork."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._lasting: frozenset[str] = frozenset()
        self._running: list[tuple[frozenset[str], frozenset[str]]] = []
        self._ended: deque[tuple[frozenset[str], frozenset[str]]] = deque(maxlen=_ENDED_JOBS)
        self.shows_prompts = False
        self.secrets: tuple[str, ...] = ()
        self.prompts: tuple[str, ...] = ()

    def learn(self, secrets: frozenset[str], *, prompts: bool) -> None:
        with self._lock:
            self._lasting, self.shows_prompts = secrets, prompts
            self._ended.clear()
            self._settle()

    def begin(self, words: tuple[frozenset[str], frozenset[str]]) -> None:
        with self._lock:
            self._running.append(words)
            self._settle()

    def end(self, words: tuple[frozenset[str], frozenset[str]]) -> None:
        with self._lock:
            self._running.remove(words)
            self._ended.append(words)
            while len(self._ended) > 1 and sum(map(_chars, self._ended)) > _MOST_ENDED_CHARS:
                self._ended.popleft()
            self._settle()

    def _settle(self) -> None:
        known = [*self._running, *self._ended]
        self.secrets = _longest_first(self._lasting.union(*(secrets for secrets, _ in known)))
        prompts = () if self.shows_prompts else _longest_first({p for _, ps in known for p in ps})
        self.prompts = prompts


_book = _Book()


def learn(environ: Mapping[str, str], *, prompts: bool = False) -> None:
    """Know the secrets among `environ` from now on, in place of all that was learnt before.

    Args:
        environ: variables and their values.
        prompts: whether prompts may be read in the log.
    """
    _book.learn(_found(dict(environ))[0], prompts=prompts)


@contextmanager
def knowing(job: Mapping[str, Any]) -> Iterator[None]:
    """Know the secrets and the prompts of `job`, JSON values as RunPod gives them."""
    words = _found(job)
    _book.begin(words)
    try:
        yield
    finally:
        _book.end(words)


def text(value: str) -> str:
    """Return `value` as it may be logged."""
    value = known(value)
    if _MAYBE.search(value):
        for pattern, kept in _CUT:
            value = pattern.sub(kept, value)
    return value


def known(value: str) -> str:
    """Return `value` without the secrets and prompts that are known, else as it is."""
    return _without(value, (*_book.secrets, *_book.prompts))


def answer(value: Any) -> Any:
    """Return `value`, a small answer of JSON values, as the caller may get it: without secrets.

    A URL keeps its query, for a hint may hold one, and a prompt is the caller's own.
    """
    if isinstance(value, str):
        return _without(value, _book.secrets)
    if isinstance(value, Mapping):
        return {name: answer(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [answer(entry) for entry in value]
    return value


def _without(value: str, words: tuple[str, ...]) -> str:
    for word in words:
        start = value.find(word[:MIN_CHARS])
        while start >= 0:
            length = _shared(word, value, start)
            if length == len(word) or (length >= PART_CHARS and _ends(value, start + length)):
                value = value[:start] + MARK + value[start + length :]
                length = len(MARK)
            start = value.find(word[:MIN_CHARS], start + length)
    return value


def _ends(value: str, at: int) -> bool:
    """Return whether somebody cut `value` off there."""
    return at == len(value) or value.startswith((MARK, "..."), at)


def _shared(word: str, value: str, start: int) -> int:
    """Return how many characters of `word`, from its beginning, are in `value` from `start` on."""
    if value.startswith(word, start):
        return len(word)
    pairs = zip(word, value[start : start + len(word)], strict=False)
    return next((at for at, (one, other) in enumerate(pairs) if one != other), len(value) - start)


def _found(given: Any) -> tuple[frozenset[str], frozenset[str]]:
    """Return the secrets and the prompts in `given`, JSON values: each in the forms that texts give it."""
    secrets, prompts = set[str](), set[str]()
    todo: list[tuple[Any, bool, bool]] = [(given, False, False)]
    while todo:
        value, is_secret, is_prompt = todo.pop()
        if isinstance(value, Mapping):
            for name, entry in value.items():
                word = str(name)
                named = bool(_SECRET.search(word)), bool(_PROMPT.search(word))
                todo.append((entry, is_secret or named[0], is_prompt or named[1]))
        elif isinstance(value, list | tuple):
            todo.extend((entry, is_secret, is_prompt) for entry in value)
        elif isinstance(value, str):
            if is_secret:
                secrets |= {value, *value.splitlines()}
            elif is_prompt:
                prompts |= {value, *_TAG.split(value)}
            secrets |= _in_url(value)
    return _forms(secrets), _forms(prompts)


def _in_url(value: str) -> set[str]:
    """Return what is secret in `value`, if it is a URL: the password, what its query names as one."""
    if "://" not in value[:32] or len(value) > _MAX_URL_CHARS:
        return set()
    try:
        parts = urlsplit(value.strip())
        pairs = parse_qsl(f"{parts.query}&{parts.fragment}")
        found = {entry for name, entry in pairs if _SECRET.search(name)}
        return found | {unquote(parts.password or "")}
    except ValueError:
        return set()


def _forms(words: set[str]) -> frozenset[str]:
    found = set[str]()
    long = {word.strip() for word in words if len(word.strip()) >= MIN_CHARS}
    for word in _longest_first(long)[:_MOST_WORDS]:
        found |= {word, repr(word)[1:-1], json.dumps(word)[1:-1]}
        found |= {
            json.dumps(word, ensure_ascii=False)[1:-1],
            quote(word, safe="", errors="replace"),
        }
    return frozenset(found)


def _chars(words: tuple[frozenset[str], frozenset[str]]) -> int:
    return sum(len(word) for part in words for word in part)


def _longest_first(words: set[str] | frozenset[str]) -> tuple[str, ...]:
    # A prompt goes as a whole, and not line by line.
    return tuple(sorted(words, key=len, reverse=True))
