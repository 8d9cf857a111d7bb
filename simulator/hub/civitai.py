"""Civitai's routes: the download that redirects to a signed link, and the API that describes models.

Source: civitai/civitai as in `civitai_world`. HEAD is answered 401 and a User-Agent of urllib 403, both
as users report of the live site (vast-ai/base-image#215).
"""

from typing import Any

from aiohttp import web

from simulator.hub import civitai_world as world
from simulator.hub.site import SITE, Site, base_url, bearer

LOGIN_PAGE = (
    "<!DOCTYPE html><html><head><title>Sign in</title></head><body>Please sign in.</body></html>"
)
# Source: civitai/civitai, src/server/utils/request-helpers.ts, isRequestFromBrowser.
_BROWSERS = ("mozilla", "chrome", "safari", "firefox", "opera", "edge")


async def _download(request: web.Request) -> web.Response:
    site = request.app[SITE]
    agent = request.headers.get("User-Agent", "").lower()
    if agent.startswith("python-urllib"):
        return web.Response(status=403, text=LOGIN_PAGE, content_type="text/html")
    version = world.find(site.root, request.match_info["id"])
    path = None if version is None else version.pick(request.query)
    status = _refusal(site, request, version)
    if status is None and path is not None:
        return site.redirect(request, path, 307, {"Cache-Control": "no-store"})
    if any(name in agent for name in _BROWSERS):
        return web.Response(status=307, headers={"Location": "/login"})
    return web.json_response(world.REFUSALS[status or 404], status=status or 404)


def _refusal(site: Site, request: web.Request, version: world.Version | None) -> int | None:
    """Return the status by which the version is marked to be refused to this request."""
    if version is None:
        return None
    token = bearer(request) or request.query.get("token")
    if version.marks.get("requires_token") and token != site.token:
        return 401
    answer = version.marks.get("answer")
    return None if answer is None else int(answer)


async def _refuse_head(_: web.Request) -> web.Response:
    return web.Response(status=401)


async def _version_by_id(request: web.Request) -> web.Response:
    version = world.find(request.app[SITE].root, request.match_info["id"])
    if version is None or not version.files or not version.is_published:
        return _unknown(f"No model version with id {request.match_info['id']}")
    return web.json_response(await _describe(request, version))


async def _version_by_hash(request: web.Request) -> web.Response:
    site = request.app[SITE]
    wanted = request.match_info["hash"].lower()
    for version in world.versions(site.root):
        described = await _describe(request, version)
        for file in described["files"]:
            if wanted in map(str.lower, file["hashes"].values()):
                return web.json_response(described)
    return _unknown("Model not found")


async def _model(request: web.Request) -> web.Response:
    wanted = request.match_info["id"]
    known = world.versions(request.app[SITE].root)
    found = [v for v in known if str(v.model_id) == wanted and v.is_published]
    if not found:
        return _unknown(f"No model with id {wanted}")
    # The newest version is the first one, and the one that a page without a version means.
    described = [await _describe(request, version) for version in reversed(found)]
    model = {"id": int(wanted), **described[0]["model"]}
    for version in described:
        del version["model"]
    return web.json_response(model | {"modelVersions": described})


async def _login(_: web.Request) -> web.Response:
    return web.Response(text=LOGIN_PAGE, content_type="text/html")


async def _describe(request: web.Request, version: world.Version) -> dict[str, Any]:
    digests = {path: await request.app[SITE].digests.sha256(path) for path in version.files}
    return version.as_json(base_url(request), digests)


def _unknown(message: str) -> web.Response:
    return web.json_response({"error": message}, status=404)


ROUTES = [
    web.get("/api/download/models/{id}", _download, allow_head=False),
    web.head("/api/download/models/{id}", _refuse_head),
    web.get("/api/v1/model-versions/by-hash/{hash}", _version_by_hash),
    web.get("/api/v1/model-versions/{id}", _version_by_id),
    web.get("/api/v1/models/{id}", _model),
    web.get("/login", _login),
]
