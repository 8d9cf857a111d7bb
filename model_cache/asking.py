"""Questions to model hosts on behalf of a job: within its time, its tokens, and the operator's limits."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from model_cache.engine.limits import Limits
from model_cache.hosts.metadata import Asker
from model_cache.turns import Errand
from schemas.settings import CacheSettings


@contextmanager
def asking(
    settings: CacheSettings, tokens: Mapping[str, str], errand: Errand, what: str
) -> Iterator[Asker]:
    """Yield who asks for the lines inside; `what` names the matter in messages.

    Inside, JobCancelledError and DownloadBudgetExceededError are raised as the errand says.
    """
    web = Limits.of(settings).web(lambda: errand.require_time(what))
    with web.watching():
        yield Asker(settings, tokens, web, errand.cancelled)
