"""How the simulator is told to misbehave.

A fault is a JSON object with a `kind`. Those that spoil a request:

    fail        answer `status` in the `shape` handler, validation, routing or text, with `error`
    oom         answer as a GPU without memory does
    hang        take the request and answer nothing until faults are cleared
    half        send half of the true answer and close the connection
    drop        close the connection without an answer
    not_json    answer 200 with a page that is no JSON
    huge        answer 200 with `bytes` of JSON
    deaf        answer an interrupt, and do not heed it

`path` says for which requests ("" for all). Those that strike at a moment, which `when` names:

    die         booting, idle, loading, sampling (at a step), answering: end the process by `signal`,
                or with `exit_code`
    stall       booting, loading, sampling: stop until faults are cleared; an `interruptible` one
                also ends with an interrupt, which A1111 looks at between steps only; what the
                order that clears it adds for the same moment strikes there at once
    oom         loading, sampling: fail as a GPU without memory does, and go on
    cuda        loading, sampling: fail with `error` and `text`; so does every load and every step from
                then on until the process ends, cleared or not, as a CUDA context does not recover

What strikes when `booting` prints `text`, `boot_s` after the start, and the port is not open yet. What
dies when `idle` does so `delay_s` after it was ordered, as soon as nothing is asked; when `answering`,
in the answer to a request for `path`, and in its middle if that is also to be `half`.

`times` says for how many requests or passes of the moment (0: until cleared), and `after` how many
are let through before.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from simulator.webui import failure
from simulator.webui.failure import InvalidRequestError, WebuiError

_WORK = {"loading", "sampling"}
_REQUEST = ""
# Which moments a kind may strike at.
_MOMENTS: Mapping[str, set[str]] = {
    "fail": {_REQUEST},
    "hang": {_REQUEST},
    "half": {_REQUEST},
    "drop": {_REQUEST},
    "not_json": {_REQUEST},
    "huge": {_REQUEST},
    "deaf": {_REQUEST},
    "die": {"booting", "idle", "answering", *_WORK},
    "stall": {"booting", *_WORK},
    "oom": {_REQUEST, *_WORK},
    "cuda": _WORK,
}
SETTINGS: Mapping[str, str] = {
    "boot_s": "how long until the port opens",
    "step_ms": "how long a sampling step takes",
    "load_s": "how long loading a checkpoint takes",
    "load_mb_s": "how fast it is read besides, in MB/s; 0: at once",
    "hash_mb_s": "how fast a file is read for its hash, in MB/s; 0: as fast as it is",
    "leak_mb": "memory lost with every job",
}
# What a field is unless it is given, for the kinds where it is something else than for all.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "not_json": {
        "status": 200,
        "shape": "text",
        "text": "<html><body>502 Bad Gateway</body></html>",
    },
    "stall": {"when": "sampling"},
    "cuda": {"when": "sampling", "text": failure.ILLEGAL_ACCESS},
}
_POLL_S = 0.02
_QUIET_LOOKS = 3


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
    interruptible: bool = False
    signal: int = signal.SIGKILL
    exit_code: int | None = None
    delay_s: float = 0.05
    bytes: int = 64 << 20
    cleared: threading.Event = field(init=False, default_factory=threading.Event)
    """Set once nobody wants it any more: what stands still because of it goes on."""

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

    def end_process(self) -> None:
        """Die of it."""
        if self.exit_code is not None:
            os._exit(self.exit_code)
        os.kill(os.getpid(), self.signal)


# What an order may say of a fault, and what is shown of it.
_FIELDS = tuple(entry.name for entry in fields(Fault) if entry.init)


@dataclass
class Faults:
    """The faults that are set, the settings that make things slow, and the moments that end it all."""

    boot_s: float = 0.0
    step_ms: float = 0.0
    load_s: float = 0.0
    load_mb_s: float = 0.0
    hash_mb_s: float = 0.0
    leak_mb: float = 0.0
    is_busy: Callable[[], bool] = lambda: False
    is_interrupted: Callable[[], bool] = lambda: False
    _faults: list[Fault] = field(default_factory=list)
    _all: list[Fault] = field(default_factory=list)
    """Those since the last clear, struck or not."""
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _leaked: list[bytearray] = field(default_factory=list)
    _broken: Fault | None = None
    """What broke the CUDA context."""

    def set(self, order: dict[str, Any]) -> None:
        """Take an order: `clear`, settings by name, and a list of `faults` to add.

        Raises:
            InvalidRequestError: a fault or a setting that does not exist.
        """
        faults = [_fault(entry) for entry in order.get("faults", [])]
        unknown = set(order) - {"clear", "faults", *SETTINGS}
        if unknown:
            raise _invalid(f"no such setting: {', '.join(sorted(unknown))}")
        with self._lock:
            if order.get("clear"):
                for fault in self._all:
                    fault.cleared.set()
                self._faults, self._all = [], []
            self._faults += faults
            self._all += faults
        for name in SETTINGS:
            if name in order:
                setattr(self, name, float(order[name]))
        for fault in faults:
            if fault.kind == "die" and fault.when == "idle":
                # Later, so that the order itself is answered.
                threading.Thread(target=self._die_idle, args=(fault,), daemon=True).start()

    def _die_idle(self, fault: Fault) -> None:
        time.sleep(fault.delay_s)
        quiet = 0
        # More than one look: the last answer may still be on its way.
        while quiet < _QUIET_LOOKS:
            time.sleep(_POLL_S)
            quiet = 0 if self.is_busy() else quiet + 1
        self.at("idle")

    def shown(self) -> dict[str, Any]:
        """Return what is set now."""
        with self._lock:
            faults = [{name: getattr(fault, name) for name in _FIELDS} for fault in self._faults]
        return {**{name: getattr(self, name) for name in SETTINGS}, "faults": faults}

    def for_request(self, path: str) -> Fault | None:
        """Return the fault that this request gets, and count it."""
        return self._taken(
            lambda fault: (
                fault.when == _REQUEST and fault.kind != "deaf" and fault.path in {"", path}
            )
        )

    def deafens(self) -> bool:
        """Return whether an interrupt that just came is not to be heeded, and count it."""
        return self._taken(lambda fault: fault.kind == "deaf") is not None

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

    def at(self, moment: str, path: str = "") -> None:
        """Pass a moment, and be struck by what waits for it.

        Args:
            moment: see the module.
            path: the request's, when it is being answered.

        Raises:
            WebuiError: out of memory, or the CUDA context is broken.
        """
        fault = self._taken(lambda fault: fault.when == moment and fault.path in {"", path})
        if fault is not None:
            if fault.kind == "cuda":
                self._broken = fault
            else:
                self._strike(fault)
                if fault.cleared.is_set():  # The order that did so may want another thing of it.
                    self.at(moment, path)
        if self._broken is not None and moment in _WORK:
            raise WebuiError(self._broken.error, self._broken.text)

    def _strike(self, fault: Fault) -> None:
        if fault.when == "booting":
            print(fault.text, file=sys.stderr, flush=True)
        if fault.kind == "die":
            fault.end_process()
        elif fault.kind == "stall":
            self._stand_still(fault)
        elif fault.kind == "oom":
            raise failure.out_of_memory()

    def on_boot(self) -> None:
        """Pass the start of the program, in the time that is set."""
        time.sleep(self.boot_s)
        self.at("booting")

    def on_load(self, size: int) -> None:
        """Pass the loading of a checkpoint of `size` bytes, in the time that is set; faults strike after.

        Raises:
            WebuiError: see `at`.
        """
        time.sleep(self.load_s + _seconds(size, self.load_mb_s))
        self.at("loading")

    def on_hash(self, size: int) -> None:
        """Pass the reading of `size` bytes for a hash, in the time that is set."""
        time.sleep(_seconds(size, self.hash_mb_s))

    @property
    def broken(self) -> str | None:
        """What whoever asks the GPU is told once its context is broken."""
        return self._broken.text if self._broken else None

    def _stand_still(self, fault: Fault) -> None:
        if not fault.interruptible:
            fault.cleared.wait()
            return
        while not fault.cleared.wait(_POLL_S) and not self.is_interrupted():
            pass

    def leak(self) -> None:
        """Lose memory, once per job."""
        if self.leak_mb > 0:
            # Written to, or the system would never hand the pages out.
            self._leaked.append(bytearray(b"\1") * int(self.leak_mb * (1 << 20)))


def _seconds(size: int, mb_s: float) -> float:
    return size / 1e6 / mb_s if mb_s > 0 else 0.0


def _fault(entry: object) -> Fault:
    if not isinstance(entry, dict):
        raise _invalid("a fault is an object")
    unknown = set(entry) - set(_FIELDS)
    if unknown or "kind" not in entry:
        raise _invalid(f"a fault has a kind and no {', '.join(sorted(unknown))}")
    fault = Fault(**{**_DEFAULTS.get(entry["kind"], {}), **entry})
    if fault.kind not in _MOMENTS:
        raise _invalid(f"no such kind: {fault.kind}")
    if fault.when not in _MOMENTS[fault.kind]:
        raise _invalid(f"{fault.kind} has no such moment: {fault.when!r}")
    return fault


def _invalid(text: str) -> InvalidRequestError:
    return InvalidRequestError([{"loc": ["body"], "msg": text, "type": "value_error"}])
