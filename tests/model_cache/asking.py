"""What tests of resolvers share: somebody who asks the hub, and a secret that must show nowhere."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

from model_cache import sources
from model_cache.engine.download import Download
from model_cache.engine.web import Web
from model_cache.hosts.metadata import Asker
from schemas.errors import JobCancelledError
from schemas.model_ref import Kind
from schemas.settings import CacheSettings
from tests.model_cache.conftest import Hub

SECRET = "planted-secret"


@contextlib.contextmanager
def deaf() -> Iterator[str]:
    """Yield the URL of a host that completes no connection: its queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/m"


def asker_for(
    hub: Hub,
    tokens: dict[str, str] | None = None,
    cancelled: threading.Event | None = None,
    *,
    silent_s: float = 2,
    **more: Any,
) -> Asker:
    """Return somebody who finds all three companies at the hub."""
    endpoints = {
        "hf_endpoint": hub.url,
        "civitai_endpoint": hub.url,
        "s3_endpoint": f"{hub.url}/s3",
    }
    settings = CacheSettings.model_validate({**endpoints, "allow_private_hosts": True, **more})
    over = cancelled or threading.Event()

    def require() -> None:
        if over.is_set():
            raise JobCancelledError("The job was cancelled.")

    web = Web(stall_s=silent_s, allow_private_hosts=True, require=require)
    return Asker(settings, tokens or {}, web, over, waits_s=(0.0, 0.0))


def resolved(
    hub: Hub,
    url: str,
    kind: Kind = Kind.LORA,
    *,
    tokens: dict[str, str] | None = None,
    **more: Any,
) -> Download:
    """Read and resolve a reference, as a job does that misses."""
    asker = asker_for(hub, tokens, **more)
    try:
        return sources.resolve(sources.read(url, asker.settings), kind, asker)
    finally:
        asker.web.close()


def fetched(hub: Hub, download: Download) -> bytes:
    """Return the bytes that a download brings."""
    asker = asker_for(hub)
    answer = asker.web.ask(download.url, authorization=download.authorization)
    with answer.response as response:
        assert response.status_code == 200, response.text
        body: bytes = response.content
    asker.web.close()
    return body
