"""Calls of A1111's other routes: checked, made as a generation is, and answered with A1111's own words.

What A1111 does in silence when something is wrong is an error here, as with pictures.
"""

import logging
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from schemas.errors import InvalidInputError, WorkerError, shown
from schemas.model_ref import Kind, ModelRef, parse_ref
from schemas.routes import OPTIONS, PREFIX, Call, Route
from schemas.settings import Settings
from worker.api.callcheck import Checks, require_answer
from worker.api.defaults import THIS_WORKER, Defaults, Model
from worker.caller import Caller
from worker.child.client import WebuiClient
from worker.child.watch import Attendants, Patience, Watcher
from worker.generation import overrides
from worker.generation.access import Access
from worker.generation.models import BUILT_IN_VAES, Role
from worker.generation.prepare import Preparation
from worker.generation.session import Session

log = logging.getLogger(__name__)

READ_TIMEOUT_S = 60.0
# A1111 clears its flag for interrupts when these begin, and they end early by it.
# Source: A1111 1.10.1, modules/postprocessing.py, run_postprocessing.
_DRAWS = frozenset({f"{PREFIX}extra-single-image", f"{PREFIX}extra-batch-images"})
# For these A1111 would load the first checkpoint of its list if it holds none: only to put it away, to
# keep it, or to see which embeddings fit it. The answers are those that it gives in any case.
# Source: A1111 1.10.1, modules/api/api.py, unloadapi, reloadapi, refresh_embeddings: `shared.sd_model`
# loads; recorded: unload_checkpoint_twice, reload_checkpoint, post_refresh_embeddings.
_NEED_LOADED: Mapping[str, Any] = {
    f"{PREFIX}unload-checkpoint": {},
    f"{PREFIX}reload-checkpoint": {},
    f"{PREFIX}refresh-embeddings": None,
}
# Options that tell which checkpoint A1111 holds.
_HELD = (overrides.CHECKPOINT, "sd_checkpoint_hash")
# Lists that A1111 makes when it is told to. Of LoRAs and embeddings it finds those that it is asked for.
_LISTED = frozenset({f"{PREFIX}sd-models", f"{PREFIX}sd-vae"})
_KINDS = {overrides.CHECKPOINT: Kind.CHECKPOINT, overrides.VAE: Kind.VAE}


class Calls:
    """Makes calls. Safe to use from several threads.

    Args:
        client: the way to A1111.
        access: who may use it when.
        watcher: sends what occupies A1111.
        preparation: shows it new models.
        defaults: what `POST options` sets.
        settings: all of them.
    """

    def __init__(
        self,
        client: WebuiClient,
        access: Access,
        watcher: Watcher,
        preparation: Preparation,
        defaults: Defaults,
        settings: Settings,
    ) -> None:
        self._client = client
        self._access = access
        self._watcher = watcher
        self._preparation = preparation
        self._defaults = defaults
        self._settings = settings
        self._checks = Checks(settings)

    def run(self, call: Call, caller: Caller) -> Any:
        """Return what A1111 answers to `call`, JSON values.

        Raises:
            WorkerError: what the caller should be told.
        """
        route = call.route
        if (route.method, route.path) == ("POST", OPTIONS):
            return self._set_options(call.payload, caller)
        given = self._checks.fetched(call, caller.cancelled)
        payload = self._access.asked(
            caller.cancelled, lambda session: self._checked(route, given, session)
        )
        if route.path.startswith(f"{PREFIX}refresh-"):
            self._preparation.look_again()
        # The extension's list, as it is, is read as any other.
        if not route.in_turn or payload == {"update": False}:
            return self._access.asked(
                caller.cancelled,
                lambda session: self._read(route, payload, session),
                is_plain=not payload,
            )
        with self._access.turn(caller.cancelled):
            return self._access.again(lambda: self._occupy(route, payload, caller))

    def _checked(self, route: Route, payload: Any, session: Session) -> Any:
        # An extension may leave its routes out of what /openapi.json tells; A1111 says itself then.
        if not route.is_free and not session.offers(route.method, route.path):
            raise InvalidInputError(
                f"This WebUI has no {route.method} {route.path}.",
                hint=_way_round(route),
                field="api.endpoint",
            )
        return self._checks.checked(route, payload, session)

    def _read(self, route: Route, payload: Any, session: Session) -> Any:
        """Ask what waits for nothing."""
        if route.method == "POST":
            return self._client.post(route.path, payload, timeout_s=READ_TIMEOUT_S)
        if route.path in _LISTED:
            self._access.when_idle(session.refresh)
        query = f"?{urlencode(_as_query(payload))}" if payload else ""
        answer = self._client.get(route.path + query, timeout_s=READ_TIMEOUT_S)
        if route.path != OPTIONS:
            return answer
        # Every job overrides some, and what A1111 restores of them is not all.
        before = {name: session.originals[name] for name in answer.keys() & session.originals}
        held = {name: answer[name] for name in _HELD if name in answer}
        return self._defaults.shown({**answer, **before, **held})

    def _occupy(self, route: Route, payload: Any, caller: Caller) -> Any:
        """Ask what waits for A1111's one place, which is ours now."""
        session = self._access.asked(caller.cancelled, _cleared)
        if route.method == "GET":
            return self._read(route, payload, session)
        if route.path in _NEED_LOADED and session.switches == 0:
            return _NEED_LOADED[route.path]
        webui = self._settings.webui
        # A1111 shows no steps of these, so silence means nothing.
        patience = Patience(
            total_s=webui.job_timeout_s,
            stall_s=webui.job_timeout_s,
            load_s=0,
            reload_s=0,
            stop_s=webui.stop_s,
        )
        attendants = Attendants(
            caller.cancelled,
            caller.report,
            has_ended=lambda: session.life.has_ended,
            give_up=lambda reason: self._access.replace(
                session, reason, is_broken=not caller.cancelled.is_set()
            ),
            loads=route.path,
            draws=route.path in _DRAWS,
        )
        try:
            answer = self._watcher.post(route.path, payload, patience, attendants)
        except WorkerError as error:
            if not self._access.replace_lost(session, error):
                self._access.replace_worn(session)
            raise
        self._access.served(session)
        require_answer(route, answer)
        return answer

    def _set_options(self, payload: Mapping[str, Any], caller: Caller) -> None:
        """Set this worker's own checkpoint, VAE and options; everything or nothing.

        Raises:
            InvalidInputError: an option that may not be set, or a value that it does not take.
            WorkerError: a model cannot be had.
        """
        models = {name: payload[name] for name in _KINDS if name in payload}
        others = {name: value for name, value in payload.items() if name not in _KINDS}
        for name in others:
            if name not in self._settings.job.options:
                raise InvalidInputError(
                    f"The option {shown(name)} is not set for a whole worker.",
                    hint="Send it with each job, in `override_settings`; or A1111_JOB_OPTIONS allows"
                    " it here.",
                    field=name[:80] or "payload",
                )
        given = {name: value for name, value in others.items() if value is not None}
        if given:
            self._require_good(given, caller)
        self._defaults.set(self._found(models, caller), others)
        if payload:
            log.warning(f"A job set {', '.join(payload)}: {THIS_WORKER}")

    def _require_good(self, options: Mapping[str, Any], caller: Caller) -> None:
        """Refuse a value that an option does not take, under the name that the option has here."""
        try:
            self._access.asked(
                caller.cancelled, lambda session: overrides.checked(options, session.originals)
            )
        except InvalidInputError as error:
            field = str(error.details["field"]).removeprefix("override_settings.")
            raise InvalidInputError(str(error), hint=error.hint, field=field) from None

    def _found(self, models: Mapping[str, Any], caller: Caller) -> dict[str, Model | None]:
        """Return the models that stand in from now on, each of them present."""
        refs: dict[str, ModelRef] = {}
        found: dict[str, Model | None] = {}
        for name, value in models.items():
            if value is None:
                found[name] = None
            elif name == overrides.VAE and isinstance(value, str) and value in BUILT_IN_VAES:
                found[name] = Model(value, value)
            else:
                refs[name] = parse_ref(value, _KINDS[name], name)
        if refs:
            wanted = [Role(name, ref) for name, ref in refs.items()]
            obtained = self._preparation.obtain(wanted, caller)
            if not all(ensured.cached for ensured in obtained.values()):
                self._preparation.look_again()
            for name, ensured in obtained.items():
                model = ensured.model
                file = model.name + model.suffix
                digest = model.sha256 if name == overrides.CHECKPOINT else None
                title = f"{file} [{digest[:10]}]" if digest else file
                found[name] = Model(refs[name], title)
        return found


def _way_round(route: Route) -> str:
    if route.brought_by:
        return f"It comes with {route.brought_by}, which is not installed here."
    if route.path == f"{PREFIX}sd-vae":
        return f"Forge has {PREFIX}sd-modules in its place."
    return "Another version of the WebUI may have it."


def _cleared(session: Session) -> Session:
    """Return the session with nothing in A1111 that an earlier job left there."""
    session.refresh()
    session.restore()
    return session


def _as_query(values: Mapping[str, Any]) -> dict[str, Any]:
    words = {True: "true", False: "false"}
    return {
        name: words[value] if isinstance(value, bool) else value for name, value in values.items()
    }
