"""Log lines: for RunPod one JSON object each, with the job's id; on a terminal plain text.

    {"requestId": "…", "level": "INFO", "message": "done: txt2img, …", "event": "job", "kind": "txt2img", …}

Nothing leaves that `worker.log.redact` knows to be a secret, and no line is longer than RunPod takes.
"""

import json
import logging
import math
import sys
import threading
from collections.abc import Mapping
from contextvars import ContextVar
from types import TracebackType
from typing import Any

from worker.log import redact

job_id: ContextVar[str] = ContextVar("job_id", default="")
"""The job that the current task or thread works for; empty between jobs."""

MAX_CHARS = 4096
"""Longest line, its end included. Source: runpod-python 1.12.0, rp_logger.py, MAX_MESSAGE_LENGTH."""
# More of a message is not looked at: some are a whole result.
_MOST_READ = 3 * MAX_CHARS
_MOST_SEARCHED = 200_000
_MAX_ID_CHARS = 128
_MAX_DEPTH = 8
# The words of the SDK, which RunPod's console knows.
_LEVELS = {"WARNING": "WARN", "CRITICAL": "ERROR"}
_COLOURS = {"DEBUG": "2", "WARN": "33", "ERROR": "31"}
# What moves a cursor, ends a line or turns the direction of text belongs to no log; a line break stays.
_UNSEEN = {
    code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"
} | {code: f"\\u{code:04x}" for code in (*range(0x2028, 0x202F), *range(0x2066, 0x206A))}
# Their lines of DEBUG and INFO hold requests, signatures and bytes, or are of no use to anybody here.
_NOISY = (
    "urllib3",
    "botocore",
    "boto3",
    "s3transfer",
    "httpx",
    "httpcore",
    "huggingface_hub",
    "PIL",
)
# What the SDK says of a job at DEBUG: all of it. Source: runpod-python 1.12.0, rp_job.py, rp_local.py.
_DUMPS = (
    *("Handler output: ", "Stream output: ", "Generator output: ", "run_job return: "),
    *("Retrieved local job: ", "Job result: "),
)


def fields(event: str, **values: Any) -> dict[str, Any]:
    """Return the `extra` of a log call: fields that go beside its message, of JSON values."""
    return {"fields": {"event": event, **values}}


class _JsonLine(logging.Formatter):
    """The shape of the SDK's own lines, and fields beside it."""

    def __init__(self, *, ascii_only: bool) -> None:
        super().__init__()
        self._ascii_only = ascii_only

    def format(self, record: logging.LogRecord) -> str:
        given = getattr(record, "fields", {})
        line = {
            "requestId": _job_of(record) or None,
            "level": _level(record),
            "message": _safe(super().format(record)),
        }
        line |= {name: _plain(value) for name, value in given.items() if name not in line}
        return self._fitted(line)

    def _fitted(self, line: dict[str, Any]) -> str:
        """Return `line` as JSON that is short enough: of a long message the middle goes."""
        message, cut = line["message"], 0
        text = self._dumped(line)
        while (over := len(text) + 1 - MAX_CHARS) > 0:
            sizes = {name: len(self._dumped(value)) for name, value in line.items()}
            of_fields = [name for name in line if name not in {"requestId", "level", "message"}]
            largest = max(of_fields, key=sizes.__getitem__, default="message")
            if sizes[largest] > sizes["message"]:
                line[largest] = redact.MARK
            else:
                # As JSON a character has up to twelve.
                cut += max(64, over * len(line["message"]) // sizes["message"])
                line["message"] = _shortened(message, cut)
            text = self._dumped(line)
        return text

    def _dumped(self, value: Any) -> str:
        return json.dumps(value, ensure_ascii=self._ascii_only, allow_nan=False)


class _PlainLine(logging.Formatter):
    def __init__(self, *, colours: bool) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        level = _level(record)
        head = f"{level:7}|"
        if self._colours and level in _COLOURS:
            head = f"\x1b[{_COLOURS[level]}m{head}\x1b[0m"
        job = f" {job}" if (job := _job_of(record)) else ""
        # What follows a line break must not pass for a line of its own.
        message = _safe(super().format(record)).replace("\n", f"\n{'':7}| ")
        text = f"{head}{job} {message}"
        over = len(text) + 1 - MAX_CHARS
        return text if over <= 0 else f"{head}{job} {_shortened(message, over)}"


def _job_of(record: logging.LogRecord) -> str:
    return _safe(str(getattr(record, "job", "") or job_id.get()))[:_MAX_ID_CHARS]


def _level(record: logging.LogRecord) -> str:
    return _LEVELS.get(record.levelname, record.levelname)


def _safe(text: str) -> str:
    """Return `text` without secrets, half characters and whatever else spoils a line."""
    if record_dump := next((dump for dump in _DUMPS if dump in text[:120]), None):
        head, _, rest = text.partition(record_dump)
        text = f"{head}{record_dump}{len(rest)} characters, not shown"
    if len(text) > _MOST_READ:
        # First what is known is taken out: cut in two it would not be found any more.
        text = _at_most(redact.known(_at_most(text, _MOST_SEARCHED)), _MOST_READ)
    text = text.replace("\r\n", "\n").encode(errors="backslashreplace").decode()
    return redact.text(text).translate(_UNSEEN)


def _at_most(text: str, most: int) -> str:
    over = len(text) - most
    return text if over <= 0 else _shortened(text, over)


def _shortened(text: str, over: int) -> str:
    """Return `text` by at least `over` characters shorter; what it ends with tells most of an error."""
    most = len(text) - over - 48
    if most <= 0:
        return redact.MARK
    head = most // 2
    left_out = f"\n{redact.MARK} {len(text) - most} characters left out {redact.MARK}\n"
    return text[:head] + left_out + text[head - most :]


def _plain(value: Any, depth: int = 0) -> Any:
    """Return `value` as JSON says it, whatever it is."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping) and depth < _MAX_DEPTH:
        return {_safe(str(name)): _plain(entry, depth + 1) for name, entry in value.items()}
    if isinstance(value, list | tuple) and depth < _MAX_DEPTH:
        return [_plain(entry, depth + 1) for entry in value]
    return _safe(str(value))


def json_lines(*, ascii_only: bool = False) -> logging.Formatter:
    """Return what makes the lines that RunPod gets; `ascii_only` for a stream of another encoding."""
    return _JsonLine(ascii_only=ascii_only)


def plain_lines(*, colours: bool = False) -> logging.Formatter:
    """Return what makes the lines for a person."""
    return _PlainLine(colours=colours)


def configure(level: str, *, as_json: bool) -> None:
    """Send everything of `level` and above to stderr; replaces handlers that others installed."""
    handler = logging.StreamHandler(sys.stderr)
    encoding = (sys.stderr.encoding or "").lower().replace("-", "")
    handler.setFormatter(
        json_lines(ascii_only=encoding != "utf8")
        if as_json
        else plain_lines(colours=sys.stderr.isatty())
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


def take_uncaught() -> None:
    """Log what nobody catches, in the main thread and in others, in place of a bare traceback."""
    sys.excepthook = _log_uncaught
    threading.excepthook = lambda given: _log_uncaught(
        given.exc_type, given.exc_value, given.exc_traceback
    )
    logging.captureWarnings(True)


def _log_uncaught(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
) -> None:
    if error is not None and issubclass(kind, Exception):
        logging.getLogger(__name__).critical("uncaught", exc_info=(kind, error, trace))
