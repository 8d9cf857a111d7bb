"""A worker of a few lines: each job says what it shall do. `python worker.py CONCURRENCY CLOSED_FILE`.

While CLOSED_FILE exists, the worker takes no job. With --stream it hands out pieces of 100,000 bytes at
most. SDK flags may follow.
"""

import asyncio
import logging
import sys
import threading
from pathlib import Path
from typing import Any

import rp_sdk

CANNOT_BE_SENT: dict[str, Any] = {
    "bytes": b"\x00",
    "nan": float("nan"),
    "half a character": "\ud800",
    "large": "x" * 11_000_000,
}


async def appears(path: str) -> None:
    while not Path(path).exists():  # noqa: ASYNC110, ASYNC240 - a file of a test
        await asyncio.sleep(0.02)


async def sleep(job: rp_sdk.Job) -> None:
    print(f"sleeping {job['id']}", flush=True)
    await asyncio.sleep(job["input"]["s"])


async def wait(job: rp_sdk.Job) -> None:
    print(f"sleeping {job['id']}", flush=True)
    await appears(job["input"]["until"])


async def linger(job: rp_sdk.Job) -> None:
    """Sleep the first time, and when that is cancelled end no sooner than a file is there."""
    if job["id"] in _lingered:
        return
    _lingered.add(job["id"])
    try:
        await sleep(job)
    finally:
        await appears(job["input"]["until"])
        print(f"left {job['id']}", flush=True)


_lingered: set[str] = set()


async def leave(_job: rp_sdk.Job) -> None:
    sys.exit(3)


async def leave_in_a_thread(_job: rp_sdk.Job) -> None:
    await asyncio.to_thread(sys.exit, 3)


async def interrupt(_job: rp_sdk.Job) -> None:
    raise KeyboardInterrupt


async def cancel_itself(_job: rp_sdk.Job) -> None:
    raise asyncio.CancelledError


async def fail(_job: rp_sdk.Job) -> None:
    raise ValueError("secret")


async def stop(job: rp_sdk.Job) -> None:
    await appears(job["input"]["until"])
    await asyncio.to_thread(rp_sdk.stop)


async def tune(job: rp_sdk.Job) -> None:
    vars(sys.modules[job["input"]["of"]]).update(job["input"]["values"])


async def progress(job: rp_sdk.Job) -> None:
    wish = job["input"]
    sender = rp_sdk.ProgressSender(job, online=True)
    for percent in range(3):
        sender.put({"percent": percent})
    await (appears(wish["until"]) if "until" in wish else asyncio.sleep(wish["s"]))
    sender.put({"percent": 100})
    await (appears(wish["end"]) if "end" in wish else asyncio.sleep(0.1))
    await sender.close()


DEEDS = {
    deed.__name__: deed
    for deed in (
        *(sleep, wait, linger, stop, tune, progress),
        *(leave, leave_in_a_thread, interrupt, cancel_itself, fail),
    )
}


async def handler(job: rp_sdk.Job, *emit: rp_sdk.Emit) -> Any:
    wish = job["input"]
    for number in range(wish.get("pieces", 0)):
        emit[0]({"piece": number, "text": "x" * wish.get("size", 1)})
        if "next" in wish:
            await appears(wish["next"])
    if "do" in wish:
        await DEEDS[wish["do"]](job)
    if "answer" in wish:
        return wish["answer"]
    if "give" in wish:
        return {"it": CANNOT_BE_SENT[wish["give"]]}
    return {"echo": wish, "guarded": "rp_guards" in sys.modules}


def told() -> None:
    print(f"told to stop in {threading.current_thread().name}", flush=True)


def main() -> None:
    concurrency, closed = int(sys.argv.pop(1)), Path(sys.argv.pop(1))
    if streams := "--stream" in sys.argv:
        sys.argv.remove("--stream")
    lines = logging.StreamHandler(sys.stdout)
    # Lines of the SDK have their job beside them.
    form = "OURS %(levelname)s %(message)s %(job)s"
    lines.setFormatter(logging.Formatter(form, defaults={"job": ""}))
    logging.basicConfig(level="INFO", handlers=[lines])
    rp_sdk.preload()
    rp_sdk.serve(
        handler,
        on_stop=told,
        ready=lambda: not closed.exists(),
        concurrency=concurrency,
        chunk_bytes=100_000 if streams else None,
    )
    print("served", flush=True)


if __name__ == "__main__":
    main()
