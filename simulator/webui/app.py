"""HTTP as FastAPI and uvicorn speak it: routing, bodies, authentication, error shapes, headers.

    /sdapi/v1/…         A1111's API, in 40 threads
    /simulator/faults   what shall go wrong; answered in the event loop, past threads and lock
    /simulator/journal, /simulator/reset-journal

Source: FastAPI 0.94 and Starlette 0.26.1, which A1111 1.10.1 pins; A1111 1.10.1, modules/api/api.py.
"""

import asyncio
import base64
import binascii
import email.message
import gzip
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiohttp import web

from simulator.webui import catalogue, extensions, failure, forge
from simulator.webui.endpoints import Call, Endpoint, Text, endpoints
from simulator.webui.failure import HttpError, InvalidRequestError, WebuiError
from simulator.webui.faults import Fault
from simulator.webui.program import Program

# Source: anyio, the limiter of threads that Starlette runs plain functions in.
THREADS = 40
_COMPRESS_FROM = 1000
_LEVEL = 9
_MAX_BODY = 1 << 30
_NO_BODY: object = None
_ANY_METHOD = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")

_PAGE = """<!DOCTYPE html>
<html>
<head>
<link type="text/css" rel="stylesheet" href="https://cdn.jsdelivr.net/npm/swagger-ui-dist@4/swagger-ui.css">
<title>FastAPI - Swagger UI</title>
</head>
<body>
<div id="swagger-ui"></div>
<script src="https://cdn.jsdelivr.net/npm/swagger-ui-dist@4/swagger-ui-bundle.js"></script>
<script>const ui = SwaggerUIBundle({url: '/openapi.json', "dom_id": "#swagger-ui"})</script>
</body>
</html>
"""


class Server:
    """Answers requests to one program."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="handler")
        # Compression is not part of a handler and must not wait for one.
        self._compressor = ThreadPoolExecutor(2, thread_name_prefix="gzip")
        self._routes = endpoints(program)
        self._routes["GET", "/openapi.json"] = Endpoint(
            lambda _: _schema(program), is_protected=False
        )
        self._routes["GET", "/docs"] = Endpoint(lambda _: Text(_PAGE), is_protected=False)
        self._paths = {path for _, path in self._routes}
        self._in_flight = 0
        program.faults.is_busy = lambda: self._in_flight > 0
        self.idle = asyncio.Event()
        """Set while no request is being answered."""
        self.idle.set()

    def application(self) -> web.Application:
        """Return the application to serve."""
        app = web.Application(client_max_size=_MAX_BODY)
        app.on_cleanup.append(self._end_threads)
        app.router.add_post("/simulator/faults", self._set_faults)
        app.router.add_get("/simulator/faults", self._show_faults)
        app.router.add_get("/simulator/journal", self._show_journal)
        app.router.add_post("/simulator/reset-journal", self._reset_journal)
        for method in _ANY_METHOD:
            app.router.add_route(method, "/{path:.*}", self._serve)
        return app

    async def _end_threads(self, _: web.Application) -> None:
        for pool in (self._threads, self._compressor):
            pool.shutdown(wait=False, cancel_futures=True)

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self._in_flight += 1
        self.idle.clear()
        try:
            return await self._answered(request)
        finally:
            self._in_flight -= 1
            if not self._in_flight:
                self.idle.set()

    async def _answered(self, request: web.Request) -> web.StreamResponse:
        started = time.monotonic()
        raw = await request.read()
        parsed = _parsed(raw)
        entry = self._program.journal.note(request.method, request.path, _noted(raw, parsed))
        fault = self._program.faults.for_request(request.path)
        if fault is not None and fault.kind != "half":
            spoilt = await self._spoilt(fault, request)
            if spoilt is not None:
                entry["status"] = spoilt.status
                return spoilt
        response = await self._routed(request, raw, parsed)
        # A failure that is no HTTPException passes by the code that would add this header.
        if not isinstance(response, _Unhandled):
            response.headers["X-Process-Time"] = str(round(time.monotonic() - started, 4))
        entry["status"] = response.status
        response.headers["Server"] = "uvicorn"
        # The one thing that A1111 does not say: by it a client knows that the pictures are drawn.
        response.headers["X-Simulator"] = "webui"
        await self._compress(request, response)
        if fault is not None and fault.kind == "half":
            return await self._cut_off(request, response)
        self._program.faults.at("answering", request.path)
        return response

    async def _routed(self, request: web.Request, raw: bytes, parsed: object) -> web.Response:
        endpoint = self._routes.get((request.method, request.path))
        if endpoint is not None:
            return await self._called(endpoint, request, (raw, parsed))
        if request.path in self._paths:
            allowed = [method for method, path in self._routes if path == request.path]
            response = _json(failure.routing_shape(405), 405)
            response.headers["Allow"] = ", ".join(allowed[:1])
            return response
        other = request.path[:-1] if request.path.endswith("/") else f"{request.path}/"
        if other in self._paths:
            query = f"?{request.query_string}" if request.query_string else ""
            location = f"{request.scheme}://{request.host}{other}{query}"
            return web.Response(status=307, headers={"Location": location})
        return _json(failure.routing_shape(404), 404)

    async def _called(
        self, endpoint: Endpoint, request: web.Request, sent: tuple[bytes, object]
    ) -> web.Response:
        try:
            body = _body(request, *sent) if endpoint.takes_body else _NO_BODY
            if endpoint.is_protected:
                _authenticate(request, self._program.flags.credentials)
            call = Call(body, dict(request.query))
            loop = asyncio.get_running_loop()
            answer = await loop.run_in_executor(self._threads, _answer, endpoint, call)
        except InvalidRequestError as error:
            return _json({"detail": error.errors}, 422)
        except HttpError as error:
            return _json(failure.handler_shape("HTTPException", detail=error.detail), error.status)
        except WebuiError as error:
            shape = failure.handler_shape(error.kind, text=error.text)
            return _Unhandled(shape)
        if isinstance(answer, Text):
            kind = "text/html" if answer.content.startswith("<") else None
            return web.Response(text=answer.content, status=answer.status, content_type=kind)
        return web.Response(body=answer, content_type="application/json")

    async def _compress(self, request: web.Request, response: web.Response) -> None:
        """Compress as Starlette's middleware does, but in a thread, as the loop shall not stand."""
        accepted = request.headers.get("Accept-Encoding", "")
        body = response.body
        if not isinstance(body, bytes) or len(body) < _COMPRESS_FROM or "gzip" not in accepted:
            return
        loop = asyncio.get_running_loop()
        response.body = await loop.run_in_executor(self._compressor, gzip.compress, body, _LEVEL)
        response.headers["Content-Encoding"] = "gzip"
        response.headers["Vary"] = "Accept-Encoding"

    async def _spoilt(self, fault: Fault, request: web.Request) -> web.Response | None:
        """Return the answer of a fault; None when the true answer shall follow after all."""
        if fault.kind == "hang":
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(ThreadPoolExecutor(1), fault.cleared.wait)
            return None
        if fault.kind == "drop" and request.transport is not None:
            request.transport.abort()
        return _instead(fault)

    async def _cut_off(self, request: web.Request, response: web.Response) -> web.StreamResponse:
        """Send the head and half of the body, and close the connection."""
        body = response.body if isinstance(response.body, bytes) else b""
        partial = web.StreamResponse(status=response.status, headers=response.headers)
        partial.content_length = len(body)
        await partial.prepare(request)
        await partial.write(body[: len(body) // 2])
        self._program.faults.at("answering", request.path)
        if request.transport is not None:
            request.transport.abort()
        return partial

    async def _set_faults(self, request: web.Request) -> web.Response:
        try:
            self._program.faults.set(await request.json())
        except InvalidRequestError as error:
            return _json({"detail": error.errors}, 422)
        return _json(self._program.faults.shown())

    async def _show_faults(self, _: web.Request) -> web.Response:
        return _json(self._program.faults.shown())

    async def _show_journal(self, _: web.Request) -> web.Response:
        loaded = self._program.model.checkpoint
        title = loaded.title if loaded else None
        return _json(self._program.journal.shown(self._program.counted(), title))

    async def _reset_journal(self, _: web.Request) -> web.Response:
        self._program.journal.reset(self._program.counted())
        return _json(None)


class _Unhandled(web.Response):
    """A 500 for an exception that is no HTTPException."""

    def __init__(self, shape: dict[str, str]) -> None:
        super().__init__(
            body=json.dumps(shape, ensure_ascii=False).encode("utf-8", "replace"),
            status=500,
            content_type="application/json",
        )


def _instead(fault: Fault) -> web.Response:
    """Return what a fault answers in place of the program."""
    if fault.kind == "oom":
        error = failure.out_of_memory()
        return _Unhandled(failure.handler_shape(error.kind, text=error.text))
    if fault.kind == "huge":
        body = b'{"images": ["' + b"A" * fault.bytes + b'"]}'
        return web.Response(body=body, content_type="application/json")
    content = fault.body()
    if isinstance(content, str):
        kind = "text/html" if content.startswith("<") else "text/plain"
        return web.Response(text=content, status=fault.status, content_type=kind)
    return _json(content, fault.status)


def _schema(program: Program) -> dict[str, Any]:
    """Return what /openapi.json serves."""
    schema = catalogue.openapi(controlnet=program.controlnet is not None)
    if program.flags.forge:
        schema["paths"] = forge.paths(schema["paths"])
    # Not into the catalogue's own, which is kept.
    return {**schema, "paths": schema["paths"] | extensions.paths(program.flags.extensions)}


def _answer(endpoint: Endpoint, call: Call) -> bytes | Text:
    """Call the handler and write its answer, in its thread.

    Raises:
        WebuiError: also when the answer holds what JSON has no word for.
    """
    answer = endpoint.answer(call)
    if isinstance(answer, Text):
        return answer
    try:
        return _dumped(answer)
    except UnicodeEncodeError as error:
        raise WebuiError("UnicodeEncodeError", str(error)) from error
    except ValueError as error:
        raise WebuiError("ValueError", str(error)) from error


def _dumped(content: object) -> bytes:
    """Return JSON as Starlette writes it: no spaces, not escaped, and without NaN."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode()


def _json(content: object, status: int = 200) -> web.Response:
    return web.Response(body=_dumped(content), status=status, content_type="application/json")


def _parsed(raw: bytes) -> object:
    """Return a body as JSON, or the exception that says why it is none."""
    if not raw:
        return None
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        return error


def _noted(raw: bytes, parsed: object) -> object:
    """Return what the journal keeps of a body."""
    return raw.decode("utf-8", "replace") if isinstance(parsed, Exception) else parsed


def _body(request: web.Request, raw: bytes, parsed: object) -> object:
    """Return the request's body as FastAPI sees it: as JSON if its type says so, else the bytes.

    Raises:
        InvalidRequestError: it is no JSON.
        HttpError: 400, when it is not even text.
    """
    if not raw:
        return None
    if (written := request.headers.get("Content-Type")) is not None:
        message = email.message.Message()
        message["content-type"] = written
        subtype = message.get_content_subtype()
        if message.get_content_maintype() != "application" or not (
            subtype == "json" or subtype.endswith("+json")
        ):
            return raw
    if isinstance(parsed, json.JSONDecodeError):
        raise InvalidRequestError([_undecodable(parsed)]) from parsed
    if isinstance(parsed, Exception):
        raise HttpError(400, "There was an error parsing the body") from parsed
    return parsed


def _undecodable(error: json.JSONDecodeError) -> dict[str, Any]:
    """Return the entry for a body that is no JSON, in which the whole body comes back."""
    return {
        "loc": ["body", error.pos],
        "msg": str(error),
        "type": "value_error.jsondecode",
        "ctx": {
            "msg": error.msg,
            "doc": error.doc,
            "pos": error.pos,
            "lineno": error.lineno,
            "colno": error.colno,
        },
    }


def _authenticate(request: web.Request, credentials: dict[str, str] | None) -> None:
    """Refuse a request without the user and password of --api-auth.

    Raises:
        HttpError: 401.
    """
    if credentials is None:
        return
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "basic" or not given:
        raise HttpError(401, "Not authenticated")
    try:
        user, separator, password = base64.b64decode(given).decode("ascii").partition(":")
    except (binascii.Error, UnicodeDecodeError) as error:
        raise HttpError(401, "Invalid authentication credentials") from error
    if not separator:
        raise HttpError(401, "Invalid authentication credentials")
    if credentials.get(user) != password:
        raise HttpError(401, "Incorrect username or password")
