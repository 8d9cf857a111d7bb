"""How the simulator is told to misbehave, and what it writes down of what it was asked.

A fault is a JSON object with a `kind`:

    fail        answer `status` in the `shape` handler, validation, routing or text, with `error`
    oom         answer as a GPU without memory does
    hang        take the request and answer nothing until faults are cleared
    half        send half of the true answer and close the connection
    drop        close the connection without an answer
    not_json    answer 200 with a page that is no JSON
    huge        answer 200 with `bytes` of JSON
    stall       stop in the midst of sampling, until faults are cleared
    die         end the process: `when` idle, loading, sampling or answering; by `signal`, or `exit_code`

A fault that dies when `idle` does so `delay_s` after it was ordered, as soon as no job is running.
`path` says for which requests ("" for all), `times` for how many (0: until cleared), and `after` how
many are let through before.
"""

import collections
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from simulator.webui import failure
from simulator.webui.failure import InvalidRequestError

_REQUEST_KINDS = {"fail", "oom", "hang", "half", "drop", "not_json", "huge"}
_MOMENTS = {"idle", "loading", "sampling", "answering"}
_SETTINGS = ("step_ms", "load_s", "leak_mb")
_PAGE = {"status": 200, "shape": "text", "text": "<html><body>502 Bad Gateway</body></html>"}
_LONG_TEXT = 2000
_KEPT_REQUESTS = 10_000
_POLL_S = 0.02


@dataclass
class Fault:
    """One fault that waits for its requests or its moment."""

    kind: str
    path: str = ""
    times: int = 1
    after: int = 0
    status: int = 500
    shape: str = "handler"
    error: str = "RuntimeError"
    text: str = "simulated failure"
    when: str = ""
    signal: int = signal.SIGKILL
    exit_code: int | None = None
    delay_s: float = 0.05
    bytes: int = 64 << 20

    def body(self) -> dict[str, Any] | str:
        """Return what it answers."""
        match self.shape:
            case "handler" if self.error == "HTTPException":
                return failure.handler_shape(self.error, detail=self.text)
            case "handler":
                return failure.handler_shape(self.error, text=self.text)
            case "validation":
                entry = {"loc": ["body"], "msg": self.text, "type": "value_error"}
                return {"detail": [entry]}
            case "routing":
                return {"detail": self.text}
            case _:
                return self.text


@dataclass
class Faults:
    """The faults that are set, the settings that make things slow, and the moments that end it all."""

    step_ms: float = 0.0
    load_s: float = 0.0
    leak_mb: float = 0.0
    is_busy: Callable[[], bool] = lambda: False
    _faults: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _cleared: threading.Event = field(default_factory=threading.Event)
    _leaked: list[bytearray] = field(default_factory=list)

    def set(self, order: dict[str, Any]) -> None:
        """Take an order: `clear`, settings by name, and a list of `faults` to add.

        Raises:
            InvalidRequestError: a fault or a setting that does not exist.
        """
        faults = [_fault(entry) for entry in order.get("faults", [])]
        unknown = set(order) - {"clear", "faults", *_SETTINGS}
        if unknown:
            raise _invalid(f"no such setting: {', '.join(sorted(unknown))}")
        with self._lock:
            if order.get("clear"):
                self._faults = []
                self._cleared.set()
                self._cleared = threading.Event()
            self._faults += faults
        for name in _SETTINGS:
            if name in order:
                setattr(self, name, float(order[name]))
        for fault in faults:
            if fault.kind == "die" and fault.when == "idle":
                # Later, so that the order itself is answered.
                threading.Thread(target=self._die_idle, args=(fault,), daemon=True).start()

    def _die_idle(self, fault: Fault) -> None:
        time.sleep(fault.delay_s)
        while self.is_busy():
            time.sleep(_POLL_S)
        self.at("idle")

    def shown(self) -> dict[str, Any]:
        """Return what is set now."""
        with self._lock:
            faults = [vars(fault) for fault in self._faults]
        return {**{name: getattr(self, name) for name in _SETTINGS}, "faults": faults}

    def for_request(self, path: str) -> Fault | None:
        """Return the fault that this request gets, and count it."""
        return self._taken(lambda fault: fault.kind in _REQUEST_KINDS and fault.path in {"", path})

    def _taken(self, fits: Callable[[Fault], bool]) -> Fault | None:
        with self._lock:
            for fault in self._faults:
                if not fits(fault):
                    continue
                if fault.after > 0:
                    fault.after -= 1
                    continue
                if fault.times > 0:
                    fault.times -= 1
                    if fault.times == 0:
                        self._faults.remove(fault)
                return fault
        return None

    def at(self, moment: str) -> None:
        """End the process if it is to die at this moment."""
        fault = self._taken(lambda fault: fault.kind == "die" and fault.when == moment)
        if fault is None:
            return
        if fault.exit_code is not None:
            os._exit(fault.exit_code)
        os.kill(os.getpid(), fault.signal)

    def at_step(self) -> None:
        """Pass one sampling step: die, or stand still until faults are cleared."""
        self.at("sampling")
        if self._taken(lambda fault: fault.kind == "stall") is not None:
            self.wait_until_cleared()

    def on_load(self) -> None:
        """Pass the loading of a checkpoint, in the time that is set."""
        self.at("loading")
        if self.load_s > 0:
            time.sleep(self.load_s)

    def wait_until_cleared(self) -> None:
        """Stand still; as long as nothing clears the faults, for ever."""
        with self._lock:
            cleared = self._cleared
        cleared.wait()

    def leak(self) -> None:
        """Lose memory, once per job."""
        if self.leak_mb > 0:
            # Written to, or the system would never hand the pages out.
            self._leaked.append(bytearray(b"\1") * int(self.leak_mb * (1 << 20)))


def _fault(entry: object) -> Fault:
    if not isinstance(entry, dict):
        raise _invalid("a fault is an object")
    unknown = set(entry) - set(Fault.__dataclass_fields__)
    if unknown or "kind" not in entry:
        raise _invalid(f"a fault has a kind and no {', '.join(sorted(unknown))}")
    defaults: dict[str, Any] = _PAGE if entry["kind"] == "not_json" else {}
    fault = Fault(**(defaults | entry))
    if fault.kind not in _REQUEST_KINDS | {"stall", "die"}:
        raise _invalid(f"no such kind: {fault.kind}")
    if fault.kind == "die" and fault.when not in _MOMENTS:
        raise _invalid(f"no such moment: {fault.when}")
    return fault


def _invalid(text: str) -> InvalidRequestError:
    return InvalidRequestError([{"loc": ["body"], "msg": text, "type": "value_error"}])


class Journal:
    """The requests in the order they came, and what was counted."""

    def __init__(self) -> None:
        self._requests: collections.deque[dict[str, Any]] = collections.deque(maxlen=_KEPT_REQUESTS)
        self._start = time.monotonic()
        self.refreshes: collections.Counter[str] = collections.Counter()
        self.interrupts = 0
        self.jobs = 0
        self._ignored: dict[str, int] = {}

    def note(self, method: str, path: str, body: object) -> dict[str, Any]:
        """Write down a request; the caller adds `status` when it is answered."""
        entry = {
            "t": round(time.monotonic() - self._start, 4),
            "method": method,
            "path": path,
            "body": cut(body),
        }
        self._requests.append(entry)
        return entry

    def shown(self, counted: dict[str, int], loaded: str | None) -> dict[str, Any]:
        """Return the journal; `counted` are the counters that live elsewhere."""
        return {
            "requests": list(self._requests),
            "refreshes": dict(self.refreshes),
            "interrupts": self.interrupts,
            "jobs": self.jobs,
            "loaded": loaded,
            **{name: value - self._ignored.get(name, 0) for name, value in counted.items()},
        }

    def reset(self, counted: dict[str, int]) -> None:
        """Begin anew."""
        self._requests.clear()
        self.refreshes.clear()
        self.interrupts = self.jobs = 0
        self._ignored = dict(counted)
        self._start = time.monotonic()


def cut(value: object) -> object:
    """Return JSON with its long texts, which are pictures mostly, cut."""
    if isinstance(value, str) and len(value) > _LONG_TEXT:
        return f"{value[:40]}… ({len(value)} characters)"
    if isinstance(value, dict):
        return {key: cut(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [cut(inner) for inner in value]
    return value
