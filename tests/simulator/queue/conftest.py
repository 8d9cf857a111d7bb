import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import requests

from simulator import loopback, queue
from simulator.queue.platform import Options, Platform

CLIENT = {"Authorization": "Bearer simulated-key"}
WORKER = {"Authorization": "simulated-key"}


@dataclass
class Endpoint:
    """A queue on a real socket, in this process, with the calls of a client and of a bare worker."""

    url: str
    platform: Platform
    session: requests.Session

    def call(self, method: str, path: str, **more: Any) -> requests.Response:
        more.setdefault("headers", CLIENT)
        return self.session.request(method, f"{self.url}/v2/sim/{path}", timeout=30, **more)

    def run(self, job_input: object = None, **beside: Any) -> str:
        answer = self.call("POST", "run", json={"input": job_input or {"op": "echo"}, **beside})
        return str(answer.json()["id"])

    def status(self, job_id: str) -> dict[str, Any]:
        shown: dict[str, Any] = self.call("GET", f"status/{job_id}").json()
        return shown

    def take(self, worker: str = "w1") -> dict[str, Any]:
        job: dict[str, Any] = self.call("GET", f"job-take/{worker}?gpu=X", headers=WORKER).json()
        return job

    def done(self, job_id: str, body: Any, worker: str = "w1") -> int:
        answer = self.call(
            "POST",
            f"job-done/{worker}/{job_id}?gpu=X&isStream=false",
            headers=WORKER | {"X-Request-ID": job_id},
            **({"data": body} if isinstance(body, bytes) else {"json": body}),
        )
        return int(answer.status_code)

    def fault(self, **wish: Any) -> requests.Response:
        return self.session.post(self.url + "/simulator/faults", json=wish, timeout=30)

    def journal(self) -> dict[str, Any]:
        shown: dict[str, Any] = self.session.get(self.url + "/simulator/journal", timeout=30).json()
        return shown


@contextlib.contextmanager
def endpoint_with(options: Options) -> Iterator[Endpoint]:
    with (
        contextlib.ExitStack() as stack,
        requests.Session() as session,
    ):
        platform = Platform(options)
        url = stack.enter_context(loopback.in_background(lambda: queue.serving(platform)))
        session.trust_env = False
        yield Endpoint(url, platform, session)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with endpoint_with(Options(hold_s=0.6)) as served:
        yield served
