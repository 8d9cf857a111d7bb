"""The queue as an aiohttp application: keys, faults and the journal around the routes of both sides."""

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator

from aiohttp import web
from aiohttp.typedefs import Handler

from simulator.queue import client_side, faults, worker_side
from simulator.queue.faults import Fault
from simulator.queue.platform import PLATFORM, Platform
from simulator.queue.worker_side import TOLD, TWICE, UNTOLD

CONTROL = "/simulator/"
WORKER_ROUTES = frozenset(
    {"job-take", "job-take-batch", "job-stop", "job-done", "job-stream", "ping"}
)
# Above every limit of the platform, so that what is too large is refused by its rules and not by ours.
MOST_BYTES = 256 << 20


def application(platform: Platform) -> web.Application:
    """Return the application that serves `platform` and keeps its time."""
    app = web.Application(middlewares=[_watch], client_max_size=MOST_BYTES)
    app[PLATFORM] = platform
    app.cleanup_ctx.append(_keep_time)
    app.add_routes([*worker_side.ROUTES, *client_side.ROUTES, *_CONTROL_ROUTES])
    return app


async def _keep_time(app: web.Application) -> AsyncIterator[None]:
    task = asyncio.create_task(app[PLATFORM].keep_time())
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@web.middleware
async def _watch(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Check the key, make go wrong what shall, and write all of it down."""
    platform = request.app[PLATFORM]
    parts = request.path.split("/")
    if request.path.startswith(CONTROL):
        return await handler(request)
    if len(parts) < 4 or parts[2] != platform.options.endpoint:
        return web.json_response({"error": "endpoint not found"}, status=404)
    route = parts[3]
    entry = _entry(request, platform, route)
    if not _is_allowed(request, platform, route):
        entry["status"] = 401
        return web.json_response({"error": "unauthorized"}, status=401)
    fault = next((f for f in platform.faults if f.strikes(route)), None)
    try:
        response = await _answer(request, handler, fault)
    except web.HTTPException as error:
        entry["status"] = error.status
        raise
    except asyncio.CancelledError:  # Whoever asked hung up.
        entry["status"] = 0
        raise
    entry["status"] = response.status
    return response


async def _answer(
    request: web.Request, handler: Handler, fault: Fault | None
) -> web.StreamResponse:
    if fault is None:
        return await handler(request)
    await asyncio.sleep(fault.delay_s)
    request[TWICE] = fault.twice, fault.same
    if fault.status is None or fault.twice:
        answer = await handler(request)
        await asyncio.sleep(fault.late_s)
        return await _torn(request, answer, fault.body_s)
    if fault.after:
        await handler(request)
        _forsake(request)
    else:
        await request.read()
    if fault.status == 0 and request.transport is not None:
        request.transport.abort()
        return web.Response()
    return web.Response(status=fault.status, text="This answer was asked to be wrong.")


def _forsake(request: web.Request) -> None:
    """Note that the worker does not learn what became of its result or piece, or which jobs it was given."""
    platform = request.app[PLATFORM]
    what, jobs = request.get(TOLD, ("", []))
    for job in jobs:
        platform.queue.note(job, what, request.match_info["worker"], platform.now)
    if what == UNTOLD and "job" in request.match_info:
        platform.unacknowledged.update(job.id for job in jobs)


async def _torn(
    request: web.Request, answer: web.StreamResponse, pause_s: float
) -> web.StreamResponse:
    """Send the head of `answer`, and its body after a pause."""
    if pause_s == 0 or not isinstance(answer, web.Response) or not isinstance(answer.body, bytes):
        return answer
    torn = web.StreamResponse(status=answer.status)
    torn.content_type, torn.content_length = answer.content_type, len(answer.body)
    await torn.prepare(request)
    await asyncio.sleep(pause_s)
    await torn.write(answer.body)
    await torn.write_eof()
    return torn


def _entry(request: web.Request, platform: Platform, route: str) -> dict[str, object]:
    entry: dict[str, object] = {
        "t": round(platform.now, 3),
        "method": request.method,
        "route": route,
        "worker": request.match_info.get("worker"),
        "job": request.match_info.get("job"),
        "query": request.query_string,
        "bytes": request.content_length or 0,
        "status": None,
    }
    platform.journal.counts[route] += 1
    platform.journal.requests.append(entry)
    return entry


def _is_allowed(request: web.Request, platform: Platform, route: str) -> bool:
    """Check the key: workers send it bare; clients bare or as a bearer token, as the docs show both."""
    given, key = request.headers.get("Authorization", ""), platform.options.api_key
    if route in WORKER_ROUTES:
        if given != key:
            platform.journal.violations.append(f"{route}: wrong key in Authorization")
        return given == key
    return platform.options.open or given in {key, f"Bearer {key}"}


async def _journal(request: web.Request) -> web.Response:
    return web.json_response(request.app[PLATFORM].journal_as_json())


async def _reset_journal(request: web.Request) -> web.Response:
    journal = request.app[PLATFORM].journal
    for part in (journal.counts, journal.requests, journal.violations, journal.late):
        part.clear()
    request.app[PLATFORM].queue.forgotten.clear()
    return web.json_response({})


async def _ended(request: web.Request) -> web.Response:
    """Answer what became of the jobs that ended after the first `?after=` ones, in their order."""
    platform = request.app[PLATFORM]
    after = int(request.query.get("after", "0"))
    jobs = [
        {**job.as_json(), "history": job.history, "duplicates": job.duplicates}
        for job in platform.queue.ended[after:]
    ]
    return web.json_response({"now": platform.now, "jobs": jobs})


async def _environment(request: web.Request) -> web.Response:
    worker = request.query.get("worker", "worker-1")
    url = f"{request.scheme}://{request.host}"
    return web.json_response(request.app[PLATFORM].environment(url, worker))


async def _add_fault(request: web.Request) -> web.Response:
    try:
        fault = faults.parse(await request.json())
    except ValueError as error:
        raise client_side.bad_request(str(error)) from error
    request.app[PLATFORM].faults.append(fault)
    return web.json_response(dataclasses.asdict(fault))


async def _list_faults(request: web.Request) -> web.Response:
    return web.json_response([dataclasses.asdict(f) for f in request.app[PLATFORM].faults])


async def _clear_faults(request: web.Request) -> web.Response:
    request.app[PLATFORM].faults.clear()
    return web.json_response({})


_CONTROL_ROUTES = [
    web.get(CONTROL + "journal", _journal),
    web.post(CONTROL + "reset-journal", _reset_journal),
    web.get(CONTROL + "ended", _ended),
    web.get(CONTROL + "env", _environment),
    web.post(CONTROL + "faults", _add_fault),
    web.get(CONTROL + "faults", _list_faults),
    web.delete(CONTROL + "faults", _clear_faults),
]
