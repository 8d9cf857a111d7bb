"""The routes that a worker's SDK calls: take, stop, done, stream, ping.

Source: runpod 1.12.0, serverless/modules/rp_job.py (take, batch, stop), rp_http.py (done, stream),
rp_ping.py and rp_fitness.py (ping), ../http_client.py (the key stands bare in Authorization).
"""

import json
from typing import Any

from aiohttp import web

from simulator.queue.job import Job
from simulator.queue.platform import PLATFORM, Platform
from simulator.queue.state import Outcome

BASE = "/v2/{endpoint}"
TWICE = web.RequestKey("twice", tuple[bool, bool])
"""Whether the jobs that a take brings are to be handed out once more, and to the same worker."""
TOLD = web.RequestKey("told", tuple[str, list[Job]])
"""Of which jobs the answer tells the worker, and what is noted of them if it never comes. There is none for
progress: whether it arrived is of no consequence."""
UNTOLD, UNTOLD_PIECE = "unacknowledged", "unacknowledged piece"


async def _take(request: web.Request) -> web.Response:
    platform = request.app[PLATFORM]
    worker = request.match_info["worker"]
    is_batch = "job-take-batch" in request.path
    count = int(request.query.get("batch_size", "1")) if is_batch else 1

    twice, same = request.get(TWICE, (False, False))

    def jobs() -> list[Job]:
        return platform.queue.take(worker, count, platform.now, twice=twice, same=same)

    taken = await platform.until(jobs, platform.options.hold_s)
    if not taken:
        return web.Response(status=204)
    request[TOLD] = (UNTOLD, taken)
    platform.notify()
    given = [job.for_worker() for job in taken]
    return web.json_response(given if is_batch else given[0])


async def _stop(request: web.Request) -> web.Response:
    platform = request.app[PLATFORM]
    worker = request.match_info["worker"]
    ids = await platform.until(lambda: platform.queue.stop_signals(worker), platform.options.hold_s)
    return web.json_response({"jobsToStop": ids}) if ids else web.Response(status=204)


async def _done(request: web.Request) -> web.Response:
    platform = request.app[PLATFORM]
    worker, job_id = request.match_info["worker"], request.match_info["job"]
    _check_request_id(request, platform, job_id)
    body = await request.read()
    try:
        message = _parse(body)
    except ValueError as error:
        platform.journal.violations.append(f"job-done {job_id}: {error}")
        platform.queue.refuse(job_id)
        return _refused(f"body is not JSON: {error}")
    outcome = platform.queue.answer(worker, job_id, message, len(body), platform.now)
    if outcome is not Outcome.UNKNOWN_JOB and not _is_progress(message):
        request[TOLD] = (UNTOLD, [platform.queue.jobs[job_id]])
    _judge(platform, job_id, message, outcome)
    platform.notify()
    if outcome is Outcome.UNKNOWN_JOB:
        return web.json_response({"error": "job not found"}, status=404)
    if outcome is Outcome.TOO_LARGE:
        return _refused(f"exceeded max body size: {len(body)} bytes")
    return web.json_response({})


def _parse(body: bytes) -> dict[str, Any]:
    """Read a JSON object as strictly as the platform's own parser, which knows no NaN."""

    def reject(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    message = json.loads(body.decode(), parse_constant=reject)
    if not isinstance(message, dict):
        raise ValueError("not an object")  # noqa: TRY004 - one error for all that cannot be read
    return message


def _is_progress(message: dict[str, Any]) -> bool:
    return message.get("status") == "IN_PROGRESS"


def _judge(platform: Platform, job_id: str, message: dict[str, Any], outcome: Outcome) -> None:
    """Write down what a correct worker does not do, apart from what only came too late."""
    if outcome in {Outcome.ACCEPTED, Outcome.TOO_LARGE}:
        return
    job = platform.queue.jobs.get(job_id)
    is_progress = _is_progress(message)
    what = "progress" if is_progress else "result"
    line = f"job-done {job_id}: {what} {outcome}"
    earlier = 0 if job is None else job.answers - (not is_progress)
    is_told = job_id in platform.unacknowledged or (job is not None and job.duplicates > 0)
    if outcome is Outcome.AFTER_THE_END and earlier and not is_told:
        platform.journal.violations.append(line)
    else:
        platform.journal.late.append(line)


async def _stream(request: web.Request) -> web.Response:
    platform = request.app[PLATFORM]
    worker, journal = request.match_info["worker"], platform.journal
    _check_request_id(request, platform, request.match_info["job"])
    job = platform.job(request.match_info["job"])
    body = await request.read()
    try:
        message = _parse(body)
    except ValueError as error:
        journal.violations.append(f"job-stream {job.id}: {error}")
        return _refused(f"body is not JSON: {error}")
    objection = platform.queue.hand_out(worker, job, message, len(body))
    if objection is Outcome.TOO_LARGE:
        journal.violations.append(f"job-stream {job.id}: {objection}: {len(body)} bytes")
        return _refused(f"exceeded max chunk size: {len(body)} bytes")
    if objection is None:
        request[TOLD] = (UNTOLD_PIECE, [job])
    else:
        # Of two workers that were handed the same job one is at it when the other has answered.
        is_wrong = job.answers > 0 and job.duplicates == 0
        lines = journal.violations if is_wrong else journal.late
        lines.append(f"job-stream {job.id}: {objection}")
    platform.notify()
    return web.json_response({})


async def _ping(request: web.Request) -> web.Response:
    platform = request.app[PLATFORM]
    worker = request.match_info["worker"]
    ids = [job_id for job_id in request.query.get("job_id", "").split(",") if job_id]
    platform.queue.ping(worker, ids, platform.now)
    if request.query.get("status") == "unhealthy":
        platform.queue.unhealthy[worker] = request.query.get("reason", "")
    return web.json_response({})


def _check_request_id(request: web.Request, platform: Platform, job_id: str) -> None:
    named = request.headers.get("X-Request-ID")
    if named != job_id:
        platform.journal.violations.append(f"{request.path}: X-Request-ID is {named!r}")


def _refused(message: str) -> web.Response:
    return web.json_response({"error": message}, status=400)


ROUTES = [
    web.get(BASE + "/job-take/{worker}", _take),
    web.get(BASE + "/job-take-batch/{worker}", _take),
    web.get(BASE + "/job-stop/{worker}", _stop),
    web.post(BASE + "/job-done/{worker}/{job}", _done),
    web.post(BASE + "/job-stream/{worker}/{job}", _stream),
    web.get(BASE + "/ping/{worker}", _ping),
]
