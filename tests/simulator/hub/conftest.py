from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from simulator import hub, loopback
from simulator.hub.site import Site


@dataclass
class Client:
    """A hub on real sockets, in this process, and a session to ask it with."""

    url: str
    site: Site
    session: requests.Session

    @property
    def root(self) -> Path:
        return self.site.root

    def put(self, name: str, data: bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def get(self, path: str, *, hops: bool = False, **more: Any) -> requests.Response:
        more.setdefault("timeout", 30)
        return self.session.get(self.url + path, allow_redirects=hops, **more)

    def journal(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.get("/simulator/journal").json()
        return answer


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    site = Site(tmp_path)
    with (
        loopback.in_background(lambda: hub.hosts(site)) as url,
        requests.Session() as session,
    ):
        session.trust_env = False
        session.headers["Accept-Encoding"] = "identity"
        yield Client(url, site, session)
