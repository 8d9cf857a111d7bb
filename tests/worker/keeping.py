"""A WebUI that somebody else started, as the worker sees it."""

from schemas.errors import WorkerError
from worker.child.client import WebuiClient
from worker.child.webui import Webui


def kept(client: WebuiClient) -> Webui:
    """Return a keeper of whatever listens there; it starts and ends nothing."""

    def answers() -> bool:
        try:
            client.get("memory", timeout_s=2)
        except WorkerError:
            return False
        return True

    return Webui(None, None, answers, ready_timeout_s=30)
