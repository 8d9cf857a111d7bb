"""`python -m benchmarks.bare_worker`: the least that a worker under the SDK can be, to measure others by.

Its jobs' input goes to A1111 as it is, over a new connection, and A1111's pictures come back. It is async,
as the SDK runs several jobs at a time of no other handler.
"""

import argparse
import asyncio
from typing import Any

from benchmarks.direct import Direct


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser("python -m benchmarks.bare_worker", description=__doc__)
    parser.add_argument("--port", type=int, default=3000, help="A1111's port on this machine")
    parser.add_argument("--concurrency", type=int, default=1, help="jobs at a time")
    options = parser.parse_args()

    async def handler(job: dict[str, Any]) -> dict[str, Any]:
        direct = Direct(options.port, job["input"], keep=False)
        return {"images": await asyncio.to_thread(direct.images)}

    # Imported late: the SDK reads the command line of whoever imports it.
    import runpod  # noqa: PLC0415

    concurrency: int = options.concurrency
    runpod.serverless.start(
        {"handler": handler, "concurrency_modifier": lambda _current: concurrency}
    )


if __name__ == "__main__":
    main()
