"""A worker on the real SDK loop, for test_queue_sdk.py: does what a job's input says."""

import asyncio
import sys
import types
from pathlib import Path
from typing import Any


class Cpuinfo(types.ModuleType):
    """Stands in for a module that the SDK asks about the processor, which takes it a second.

    Source: runpod 1.12.0, serverless/utils/rp_debugger.py; the answer is used nowhere here.
    """

    @staticmethod
    def get_cpu_info() -> dict[str, Any]:
        return {}


sys.modules["cpuinfo"] = Cpuinfo("cpuinfo")

import runpod  # noqa: E402 - after the stand-in
from runpod.http_client import AsyncClientSession  # noqa: E402
from runpod.serverless.modules.rp_http import stream_result  # noqa: E402
from runpod.serverless.modules.rp_progress import _async_progress_update  # noqa: E402


async def echo(job: dict[str, Any]) -> Any:
    return {"echo": job["input"]}


async def fail(_: dict[str, Any]) -> Any:
    return {"error": "CODE: what happened.", "code": "CODE"}


async def crash(_: dict[str, Any]) -> Any:
    raise RuntimeError("raised on request")


async def big(job: dict[str, Any]) -> Any:
    return {"text": "x" * job["input"]["size"]}


async def nan(_: dict[str, Any]) -> Any:
    return {"number": float("nan")}


async def progress(job: dict[str, Any]) -> Any:
    async with AsyncClientSession() as session:
        for step in range(3):
            await _async_progress_update(session, job, {"step": step})
    while not Path(job["input"]["until"]).exists():  # noqa: ASYNC110, ASYNC240 - a file of a test
        await asyncio.sleep(0.02)
    return {"steps": 3}


async def stream(job: dict[str, Any]) -> Any:
    # A generator handler would stream, but then all jobs of this worker would; so it is done by hand.
    async with AsyncClientSession() as session:
        for item in range(2):
            await stream_result(session, {"output": item}, job)
    return {"streamed": 2}


async def sleep(job: dict[str, Any]) -> Any:
    note = job["input"]["note"]
    write(note, "started")
    try:
        await asyncio.sleep(job["input"]["seconds"])
    except asyncio.CancelledError:
        write(note, "cancelled")
        raise
    return {"slept": True}


def write(note: str, text: str) -> None:
    """Leave word for the test; renamed so that it never reads half a word."""
    part = Path(note + ".part")
    part.write_text(text)
    part.replace(note)


OPERATIONS = {
    "echo": echo,
    "fail": fail,
    "raise": crash,
    "big": big,
    "nan": nan,
    "progress": progress,
    "sleep": sleep,
    "stream": stream,
}


async def handler(job: dict[str, Any]) -> Any:
    return await OPERATIONS[job["input"]["op"]](job)


if __name__ == "__main__":
    runpod.serverless.start({"handler": handler})
