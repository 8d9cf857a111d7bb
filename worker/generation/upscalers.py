"""Upscalers that came to the volume after A1111 had looked for its own, which it does when it starts."""

import logging
from threading import Event

from model_cache.cache import ModelCache
from schemas.errors import WorkerError
from schemas.model_ref import Kind, parse_ref
from worker.child.links import LinkFolder

log = logging.getLogger(__name__)


class Upscalers:
    """Those of the store, as A1111 would list them. Safe to use from several threads."""

    def __init__(self, cache: ModelCache, links: LinkFolder) -> None:
        self._cache = cache
        self._links = links

    def came_later(self, name: str, started: float) -> bool:
        """Tell whether A1111 would list an upscaler if it were started now; link it, if it is there.

        Of one that it does not list all the same this is true for one start: after that, no link is
        younger.

        Args:
            name: what A1111 would call it.
            started: when the present A1111 was started, by the monotonic clock.
        """
        return self._is_shown(name) and self._links.changed(Kind.UPSCALER) >= started

    def _is_shown(self, name: str) -> bool:
        if self._links.path_of(Kind.UPSCALER, name) is not None:
            return True
        try:
            # Another worker may have fetched it a moment ago.
            ref = parse_ref({"name": name}, Kind.UPSCALER, "upscaler")
            found = self._cache.present(ref, cancelled=Event()).model
            return self._links.show(self._cache.inspected(found))[0] == name
        except WorkerError as error:
            log.info(f"There is no upscaler {name[:80]!r}: {error}")
            return False
