"""The hub's two hosts as aiohttp applications.

The first serves plain files, redirects, and answers like Hugging Face and Civitai; the second serves
only what the first has signed a link for. Every request but those to `/simulator/` is written down and
may go wrong on the way.
"""

import asyncio
import dataclasses

from aiohttp import web
from aiohttp.typedefs import Handler

from simulator.hub import civitai, huggingface, s3
from simulator.hub.faults import Fault
from simulator.hub.journal import Entry
from simulator.hub.site import ENTRY, FAULT, SITE, Site

HOST = web.AppKey("host", str)
CONTROL = "/simulator/"

# Where a redirect must not lead. Nothing is ever sent there: following them is the client's mistake.
_INSIDE = {
    "file": "file:///etc/passwd",
    "private": "http://10.0.0.1/model.safetensors",
    "metadata": "http://169.254.169.254/latest/meta-data/",
}


def first_host(site: Site) -> web.Application:
    """Return the host that clients are given; `site.links.base_url` must be the second one's URL."""
    named = [*civitai.ROUTES, *huggingface.ROUTES, *s3.ROUTES]
    routes = [*_CONTROL_ROUTES, *named, *_PLAIN_ROUTES]
    return _application(site, "hub", routes)


def second_host(site: Site) -> web.Application:
    """Return the host that knows signed links only, as an object store behind a model host does."""
    return _application(site, "cdn", [web.get("/signed/{path:.+}", _signed)])


def _application(site: Site, host: str, routes: list[web.RouteDef]) -> web.Application:
    app = web.Application(middlewares=[_watch])
    app[SITE] = site
    app[HOST] = host
    app.add_routes(routes)
    return app


@web.middleware
async def _watch(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Write the request down and make go wrong what shall."""
    if request.path.startswith(CONTROL):
        return await handler(request)
    site, host = request.app[SITE], request.app[HOST]
    entry = request[ENTRY] = site.journal.open(_entry(host, request))
    try:
        fault = site.faults.of(host, request.method, request.path, request.query)
    except ValueError as error:
        entry.status = 400
        return web.json_response({"error": str(error)}, status=400)
    request[FAULT] = fault
    await asyncio.sleep(fault.delay_s)
    if fault.drop and request.transport is not None:
        request.transport.abort()
        return web.Response()
    site.journal.under_way += 1
    try:
        response = _spoilt(request, fault) or await handler(request)
    except web.HTTPException as answer:
        entry.status = answer.status
        raise
    finally:
        site.journal.under_way -= 1
    entry.status = response.status
    return response


def _entry(host: str, request: web.Request) -> Entry:
    return Entry(
        host=host,
        method=request.method,
        path=request.path,
        query=request.query_string,
        range=request.headers.get("Range"),
        if_range=request.headers.get("If-Range"),
        user_agent=request.headers.get("User-Agent"),
        authorization="Authorization" in request.headers,
    )


def _spoilt(request: web.Request, fault: Fault) -> web.Response | None:
    """Return what is answered instead of a file, or None when the fault lets the request through."""
    if fault.redirect is not None:
        known = _INSIDE | {"loop": str(request.rel_url)}
        location = known.get(fault.redirect, fault.redirect)
        return web.Response(status=302, headers={"Location": location})
    headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
    if fault.busy_above is not None and request.app[SITE].journal.under_way > fault.busy_above:
        return web.json_response({"error": "Too many requests"}, status=429, headers=headers)
    if fault.html:
        return web.Response(
            status=fault.status or 200,
            headers=headers,
            text=civitai.LOGIN_PAGE,
            content_type="text/html",
        )
    if fault.status is not None or fault.json_error:
        body = {"error": "Simulated", "message": "This answer was asked to be wrong."}
        return web.json_response(body, status=fault.status or 200, headers=headers)
    return None


async def _redirect(request: web.Request) -> web.Response:
    path = request.app[SITE].find(request.match_info["path"])
    return _missing() if path is None else request.app[SITE].redirect(request, path, 302)


async def _plain(request: web.Request) -> web.StreamResponse:
    path = request.app[SITE].find(request.match_info["path"])
    return _missing() if path is None else await request.app[SITE].send(request, path)


async def _signed(request: web.Request) -> web.StreamResponse:
    site = request.app[SITE]
    if "Authorization" in request.headers:
        # Source: R2's answer to a signed link with a second way to authenticate
        # (caru-ini/modal-comfyui#19).
        return _xml(400, "InvalidArgument", "Only one auth mechanism allowed")
    name = request.match_info["path"]
    if not site.links.is_valid(name, request.query):
        return _xml(403, "AccessDenied", "Request has expired")
    path = site.find(name)
    return _xml(404, "NoSuchKey", "No such key") if path is None else await site.send(request, path)


def _missing() -> web.Response:
    return web.json_response({"error": "Not Found"}, status=404)


def _xml(status: int, code: str, message: str) -> web.Response:
    """Answer an error as object stores do."""
    text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return web.Response(status=status, text=text, content_type="application/xml")


async def _get_journal(request: web.Request) -> web.Response:
    return web.json_response(request.app[SITE].journal.as_json())


async def _reset_journal(request: web.Request) -> web.Response:
    request.app[SITE].journal.entries.clear()
    return web.json_response({})


async def _add_fault(request: web.Request) -> web.Response:
    try:
        rule = request.app[SITE].faults.add(await request.json())
    except (ValueError, TypeError) as error:
        return web.json_response({"error": str(error)}, status=400)
    return web.json_response(dataclasses.asdict(rule))


async def _list_faults(request: web.Request) -> web.Response:
    return web.json_response([dataclasses.asdict(rule) for rule in request.app[SITE].faults.rules])


async def _clear_faults(request: web.Request) -> web.Response:
    request.app[SITE].faults.rules.clear()
    return web.json_response({})


_CONTROL_ROUTES = [
    web.get(CONTROL + "journal", _get_journal),
    web.post(CONTROL + "reset-journal", _reset_journal),
    web.post(CONTROL + "faults", _add_fault),
    web.get(CONTROL + "faults", _list_faults),
    web.delete(CONTROL + "faults", _clear_faults),
]
# `{path:.+}` matches whatever none of the other routes does, so these come last.
_PLAIN_ROUTES = [web.get("/redirect/{path:.+}", _redirect), web.get("/{path:.+}", _plain)]
