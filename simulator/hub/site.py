"""What the hub's hosts share: the folder, the journal, the faults, and two ways to answer with a file."""

import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from aiohttp import web

from simulator.hub import files
from simulator.hub.civitai_world import MARKS
from simulator.hub.faults import QUERY_PREFIX, Fault, Faults
from simulator.hub.journal import Entry, Journal
from simulator.hub.links import Links

ENTRY = web.RequestKey("entry", Entry)
FAULT = web.RequestKey("fault", Fault)


@dataclass
class Site:
    """The files under `root` and how they are given out.

    `token` is the one that the Civitai-like routes take, and `s3_keys` the secrets of the access keys
    that buckets take. `faults`, `journal` and `links` may be used
    directly by a test that runs the hub in its own process.
    """

    root: Path
    token: str = "simulated-token"  # noqa: S105 - stands in for a secret, is none
    s3_keys: Mapping[str, str] = field(default_factory=lambda: {"SIMULATEDKEY": "simulated-secret"})
    faults: Faults = field(default_factory=Faults)
    journal: Journal = field(default_factory=Journal)
    links: Links = field(default_factory=Links)
    digests: files.Digests = field(default_factory=files.Digests)

    def find(self, path: str) -> Path | None:
        """Return the file under `root` that `path` means; what is there for the hub itself is hidden."""
        parts = PurePosixPath(path).parts
        if any(part in {"/", MARKS} or part.startswith(".") for part in parts):
            return None
        found = self.root.joinpath(*parts)
        return found if found.is_file() else None

    async def send(
        self, request: web.Request, path: Path, headers: Mapping[str, str] | None = None
    ) -> web.StreamResponse:
        """Answer with the bytes of `path`."""
        entry = request[ENTRY]
        entry.file = path.relative_to(self.root).as_posix()
        return await files.send(request, path, entry, request[FAULT], headers or {})

    def redirect(
        self,
        request: web.Request,
        path: Path,
        status: int,
        headers: Mapping[str, str] | None = None,
    ) -> web.Response:
        """Answer with a signed link to `path` on the second host.

        Faults asked for in the query go along, so that those of the transfer spoil the transfer; those
        that replace the answer have struck before.
        `?link-ttl-s=` sets how long this one link lives.
        """
        passed = {name: v for name, v in request.query.items() if name.startswith(QUERY_PREFIX)}
        ttl = request.query.get("link-ttl-s")
        location = self.links.sign(
            path.relative_to(self.root).as_posix(), passed, ttl_s=float(ttl) if ttl else None
        )
        return web.Response(status=status, headers={"Location": location, **(headers or {})})


SITE = web.AppKey("site", Site)


def bearer(request: web.Request) -> str | None:
    """Return the token of `Authorization: Bearer …`, or None."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    return token.strip() or None if scheme.lower() == "bearer" else None


def base_url(request: web.Request) -> str:
    """Return the URL of the host as the client called it."""
    return urllib.parse.urljoin(str(request.url), "/").rstrip("/")
