"""Hugging Face's routes: `resolve`, which tells size and digest and redirects, and two of the API.

Source: as in `huggingface_world`. A repository has an organisation and a name here, as all new ones do.
"""

from aiohttp import web

from simulator.hub import huggingface_world as world
from simulator.hub.site import SITE, bearer


async def _resolve(request: web.Request) -> web.StreamResponse:
    site = request.app[SITE]
    repo = _repo(request)
    if isinstance(repo, world.Refusal):
        return _refused(repo)
    name = request.match_info["path"]
    path = site.find(f"{repo.folder.relative_to(site.root).as_posix()}/{name}")
    if path is None:
        return _refused(world.Refusal(404, "EntryNotFound", "Entry not found"))
    headers = {"X-Repo-Commit": repo.commit}
    if path.suffix not in world.LARGE:
        return await site.send(request, path, headers | {"ETag": f'"{world.blob_id(path)}"'})
    headers["X-Linked-Etag"] = f'"{await site.digests.sha256(path)}"'
    headers["X-Linked-Size"] = str(path.stat().st_size)
    return site.redirect(request, path, 302, headers)


async def _tree(request: web.Request) -> web.Response:
    repo = _repo(request)
    if isinstance(repo, world.Refusal):
        return _refused(repo)
    entries = []
    for name in repo.files():
        path = repo.folder / name
        is_large = path.suffix in world.LARGE
        digest = await request.app[SITE].digests.sha256(path) if is_large else None
        entries.append(world.tree_entry(name, path, digest))
    return web.json_response(entries, headers={"X-Repo-Commit": repo.commit})


async def _info(request: web.Request) -> web.Response:
    repo = _repo(request)
    if isinstance(repo, world.Refusal):
        return _refused(repo)
    return web.json_response(
        {
            "id": repo.name,
            "modelId": repo.name,
            "sha": repo.commit,
            "private": False,
            "gated": "manual" if repo.is_gated else False,
            "siblings": [{"rfilename": name.as_posix()} for name in repo.files()],
        }
    )


def _repo(request: web.Request) -> world.Repo | world.Refusal:
    info = request.match_info
    name = f"{info['org']}/{info['repo']}"
    revision = info.get("revision", "main")
    return world.find(request.app[SITE].root, name, revision, bearer(request))


def _refused(refusal: world.Refusal) -> web.Response:
    headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
    return web.json_response({"error": refusal.message}, status=refusal.status, headers=headers)


ROUTES = [
    web.get("/{org}/{repo}/resolve/{revision}/{path:.+}", _resolve),
    web.get("/api/models/{org}/{repo}", _info),
    web.get("/api/models/{org}/{repo}/revision/{revision}", _info),
    web.get("/api/models/{org}/{repo}/tree/{revision}", _tree),
]
