"""Hugging Face's routes: `resolve`, which tells size and digest and redirects, and two of the API.

Source: as in `huggingface_world`. A repository has an organisation and a name here, as all new ones do.
"""

from aiohttp import web

from simulator.hub import huggingface_world as world
from simulator.hub.site import SITE, bearer


async def _resolve(request: web.Request) -> web.StreamResponse:
    site = request.app[SITE]
    repo = _repo(request)
    if not isinstance(repo, world.Repo):
        return _elsewhere(request, repo)
    name = request.match_info["path"]
    path = site.find(f"{repo.folder.relative_to(site.root).as_posix()}/{name}")
    if path is None:
        return _elsewhere(request, world.Refusal(404, "EntryNotFound", "Entry not found"))
    headers = {"X-Repo-Commit": repo.commit}
    if path.suffix not in world.LARGE:
        return await site.send(request, path, headers | {"ETag": f'"{world.blob_id(path)}"'})
    headers["X-Linked-Etag"] = f'"{await site.digests.sha256(path)}"'
    headers["X-Linked-Size"] = str(path.stat().st_size)
    return site.redirect(request, path, 302, headers)


async def _tree(request: web.Request) -> web.Response:
    repo = _repo(request)
    if not isinstance(repo, world.Repo):
        return _elsewhere(request, repo)
    entries = []
    for name in repo.files():
        path = repo.folder / name
        is_large = path.suffix in world.LARGE
        digest = await request.app[SITE].digests.sha256(path) if is_large else None
        entries.append(world.tree_entry(name, path, digest))
    return web.json_response(entries, headers={"X-Repo-Commit": repo.commit})


async def _info(request: web.Request) -> web.Response:
    repo = _repo(request)
    if not isinstance(repo, world.Repo):
        return _elsewhere(request, repo)
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


def _repo(request: web.Request) -> world.Repo | world.Refusal | world.Renamed:
    info = request.match_info
    name = f"{info['org']}/{info['repo']}"
    revision = info.get("revision", "main")
    return world.find(request.app[SITE].root, name, revision, bearer(request))


def _elsewhere(request: web.Request, answer: world.Refusal | world.Renamed) -> web.Response:
    """Refuse, or send on to the repository's new name by a path without a host."""
    if isinstance(answer, world.Renamed):
        old = "{org}/{repo}".format(**request.match_info)
        location = request.rel_url.raw_path_qs.replace(old, answer.name, 1)
        return web.Response(status=307, headers={"Location": location})
    headers = {"X-Error-Message": answer.message}
    if answer.code:
        headers["X-Error-Code"] = answer.code
    return web.json_response({"error": answer.message}, status=answer.status, headers=headers)


ROUTES = [
    web.get("/{org}/{repo}/resolve/{revision}/{path:.+}", _resolve),
    web.get("/api/models/{org}/{repo}", _info),
    web.get("/api/models/{org}/{repo}/revision/{revision}", _info),
    web.get("/api/models/{org}/{repo}/tree/{revision}", _tree),
]
