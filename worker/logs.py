"""Log lines: for RunPod one JSON object each, with the job's id; on a terminal plain text."""

import json
import logging
import re
import sys
from contextvars import ContextVar

job_id: ContextVar[str] = ContextVar("job_id", default="")
"""The job that the current task or thread works for; empty between jobs."""

MAX_CHARS = 4000  # RunPod's own logger cuts at 4096
# Tokens and signatures travel in a URL's query; no log line needs one.
_QUERY = re.compile(r"(https?://[^\s?\"']+)\?[^\s\"']+")


class _JsonLine(logging.Formatter):
    """The shape of the SDK's own lines: `{"requestId", "level", "message"}`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "requestId": job_id.get() or None,
            "level": record.levelname,
            "message": _safe(super().format(record)),
        }
        return json.dumps(line, ensure_ascii=False)


class _PlainLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        job = f" {job_id.get()}" if job_id.get() else ""
        return f"{record.levelname:7}|{job} {_safe(super().format(record))}"


def _safe(text: str) -> str:
    return _QUERY.sub(r"\1?…", text)[:MAX_CHARS]


def configure(level: str, *, as_json: bool) -> None:
    """Send everything of `level` and above to stderr; replaces handlers that others installed."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLine() if as_json else _PlainLine())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("urllib3").setLevel(logging.WARNING)
