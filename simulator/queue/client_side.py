"""The routes that a client calls: run, runsync, status, stream, cancel, retry, purge-queue, health.

Source: RunPod docs, serverless/endpoints/operation-reference and send-requests. Not simulated: the
delivery of webhooks, rate limits, `lowPriority`.
"""

import json
from typing import Any

from aiohttp import web

from simulator.queue.job import Job
from simulator.queue.platform import PLATFORM
from simulator.queue.state import DAY_S
from simulator.queue.worker_side import BASE

WAIT_MS, LEAST_WAIT_MS, MOST_WAIT_MS = 90_000, 1_000, 300_000
LEAST_EXECUTION_MS = 5_000
LEAST_TTL_MS, MOST_TTL_MS = 10_000, 7 * DAY_S * 1000


async def _run(request: web.Request) -> web.Response:
    job = await _submit(request, sync=False)
    return web.json_response({"id": job.id, "status": job.status})


async def _runsync(request: web.Request) -> web.Response:
    platform = request.app[PLATFORM]
    job = await _submit(request, sync=True)
    asked = request.query.get("wait", "")
    wait_ms = int(asked) if asked.isdecimal() else WAIT_MS
    wait_s = min(max(wait_ms, LEAST_WAIT_MS), MOST_WAIT_MS) / 1000
    await platform.until(lambda: job.status.is_final, wait_s)
    return web.json_response(job.as_json())


async def _submit(request: web.Request, *, sync: bool) -> Job:
    """Queue the job of the request's body.

    Raises:
        web.HTTPBadRequest: too large, not JSON, no input, or a policy beyond its limits.
    """
    platform = request.app[PLATFORM]
    body = await request.read()
    limit = platform.queue.limits.body(sync=sync)
    if len(body) > limit:
        raise bad_request(f"exceeded max body size of {limit} bytes")
    try:
        wish = json.loads(body, parse_constant=_no_constant)
    except ValueError as error:
        raise bad_request(f"body is not JSON: {error}") from error
    if not isinstance(wish, dict) or "input" not in wish:
        raise bad_request("the body must be an object with the key input")
    _check_policy(wish.get("policy") or {})
    job = platform.queue.submit(wish, sync=sync, now=platform.now)
    platform.notify()
    return job


def _no_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _check_policy(policy: Any) -> None:
    if not isinstance(policy, dict):
        raise bad_request("policy must be an object")
    timeout = policy.get("executionTimeout", LEAST_EXECUTION_MS + 1)
    if not isinstance(timeout, int) or timeout <= LEAST_EXECUTION_MS:
        raise bad_request(f"policy.executionTimeout must be above {LEAST_EXECUTION_MS}")
    ttl = policy.get("ttl", LEAST_TTL_MS)
    if not isinstance(ttl, int) or not LEAST_TTL_MS <= ttl <= MOST_TTL_MS:
        raise bad_request(f"policy.ttl must be within {LEAST_TTL_MS} and {MOST_TTL_MS:.0f}")


async def _status(request: web.Request) -> web.Response:
    return web.json_response(_job(request).as_json())


async def _stream(request: web.Request) -> web.Response:
    job = _job(request)
    new, job.stream_read = job.stream[job.stream_read :], len(job.stream)
    return web.json_response({"status": job.status, "stream": new})


async def _cancel(request: web.Request) -> web.Response:
    platform, job = request.app[PLATFORM], _job(request)
    platform.queue.cancel(job, platform.now)
    platform.notify()
    return web.json_response({"id": job.id, "status": job.status})


async def _retry(request: web.Request) -> web.Response:
    platform, job = request.app[PLATFORM], _job(request)
    if not platform.queue.retry(job, platform.now):
        raise bad_request(f"a job that is {job.status} cannot be retried")
    platform.notify()
    return web.json_response({"id": job.id, "status": job.status})


async def _purge(request: web.Request) -> web.Response:
    platform = request.app[PLATFORM]
    removed = platform.queue.purge(platform.now)
    platform.notify()
    return web.json_response({"removed": removed, "status": "completed"})


async def _health(request: web.Request) -> web.Response:
    platform = request.app[PLATFORM]
    if platform.queue.tick(platform.now):
        platform.notify()
    return web.json_response(platform.queue.health(platform.now))


def _job(request: web.Request) -> Job:
    return request.app[PLATFORM].job(request.match_info["job"])


def bad_request(message: str) -> web.HTTPBadRequest:
    """Return the exception that answers 400 with `message` as JSON."""
    text = json.dumps({"error": message})
    return web.HTTPBadRequest(text=text, content_type="application/json")


ROUTES = [
    web.post(BASE + "/run", _run),
    web.post(BASE + "/runsync", _runsync),
    web.get(BASE + "/status/{job}", _status),
    web.post(BASE + "/status/{job}", _status),
    web.get(BASE + "/stream/{job}", _stream),
    web.post(BASE + "/stream/{job}", _stream),
    web.post(BASE + "/cancel/{job}", _cancel),
    web.post(BASE + "/retry/{job}", _retry),
    web.post(BASE + "/purge-queue", _purge),
    web.get(BASE + "/health", _health),
]
