"""The path of a job: parse, fetch, ask A1111, check, return. One picture at a time."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from threading import Event, Lock
from typing import Any, TypeVar

from model_cache.cache import ModelCache
from schemas.errors import (
    BackendCrashedError,
    BackendFailedError,
    BackendNotReadyError,
    BackendOutOfMemoryError,
    BackendStalledError,
    JobCancelledError,
    WorkerError,
)
from schemas.job import Command, Generation
from schemas.model_ref import stem_of
from schemas.request import parse
from schemas.result import ModelUsed, Result
from schemas.settings import Settings
from worker import check, output, overrides, payload
from worker.client import WebuiClient
from worker.clock import Clock
from worker.health import Health
from worker.links import LinkFolder
from worker.prepare import Caller, Preparation, Prepared
from worker.session import Session
from worker.watch import Attendants, Patience, Report, Watcher
from worker.webui import State, Webui

log = logging.getLogger(__name__)

WAIT_S = 0.2
# The job that loads the default checkpoint; SDXL, too, takes so small a picture.
WARM_UP = {"prompt": "", "steps": 1, "width": 64, "height": 64}
T = TypeVar("T")


class Runner:
    """Runs jobs against one A1111; its lock guards the GPU part alone.

    Args:
        cache: where models come from.
        client: the way to A1111.
        webui: tells whether it can be asked, and replaces it.
        settings: all of them.
        max_rss_bytes: memory of A1111 above which it is replaced between two jobs.
    """

    def __init__(
        self,
        cache: ModelCache,
        client: WebuiClient,
        webui: Webui,
        settings: Settings,
        *,
        max_rss_bytes: int | None = None,
    ) -> None:
        self._cache = cache
        self._client = client
        self._webui = webui
        self._settings = settings
        self._max_rss_bytes = max_rss_bytes
        self._links = LinkFolder(settings.webui.links)
        self._preparation = Preparation(cache, self._links, settings)
        self._watcher = Watcher(client)
        self.health = Health(settings, cache, client, webui)
        self._gpu = Lock()
        self._opening = Lock()
        self._opened: Session | None = None

    def show_models(self) -> None:
        """Link every model of every root, so that A1111's lists show them; before it starts, ideally."""
        self._preparation.show_models()

    def warm_up(self, cancelled: Event) -> None:
        """Load the default checkpoint; what hinders that is logged, and left to the jobs."""
        start = time.monotonic()
        try:
            self.run({"id": "warm-up", "input": WARM_UP}, cancelled, lambda _: None)
        except WorkerError as error:
            log.warning(f"The default checkpoint was not loaded: {error.code}: {error}")
        else:
            log.info(f"The default checkpoint was loaded in {time.monotonic() - start:.1f} s.")

    def run(self, job: dict[str, Any], cancelled: Event, report: Report) -> Mapping[str, Any]:
        """Return the result of one RunPod job: a `Result`, or what a command answers.

        Blocks; call it in a thread. `report` gets progress as JSON objects, from any thread.

        Raises:
            WorkerError: whatever the caller should be told.
        """
        clock, job_id = Clock(), str(job.get("id", ""))
        request = parse(job.get("input"), self._settings.job)
        if isinstance(request.job, Command):
            return self.health.report()
        with self.health.running(job_id, report) as noted, ExitStack() as held:
            result = self._generated(
                request.job, request.warnings, Caller(cancelled, noted, held), clock
            )
        output.require_fitting(dict(result), job_id, self._settings.output)
        return result

    def _generated(
        self, job: Generation, warnings: Sequence[str], caller: Caller, clock: Clock
    ) -> Result:
        if self._webui.state is not State.STARTING:
            # So that a mistake is told before gigabytes are fetched.
            self._asked(caller, lambda session: self._preparation.check(job, session))
        found = self._preparation.fetch(job, caller)
        clock.lap("download_s")
        prepared = self._asked(
            caller, lambda session: self._preparation.complete(job, found, session, caller)
        )
        prepared.warnings[:0] = warnings
        answer, info = self._in_turn(prepared, clock, caller)
        clock.lap("generate_s")
        return self._result(answer, info, prepared, clock)

    def _asked(self, caller: Caller, work: Callable[[Session], T], *, holds_gpu: bool = False) -> T:
        """Do what only asks A1111, once more if its process ends meanwhile."""
        for is_last in (False, True):
            life = self._webui.ready(caller.cancelled)
            try:
                return work(self._session(caller))
            except (BackendNotReadyError, BackendCrashedError, BackendStalledError) as error:
                # While another job has it, silence may come from that job, which is watched.
                is_busy = isinstance(error, BackendStalledError) and self._gpu.locked()
                if error.refresh_worker or (is_busy and not holds_gpu):
                    raise
                self._webui.replace(life, f"it did not answer: {error}", is_broken=True)
                if is_last:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def _session(self, caller: Caller) -> Session:
        life = self._webui.ready(caller.cancelled)
        with self._opening:
            if self._opened is None or self._opened.life is not life:
                self._opened = Session(self._client, self._links, life)
                self._preparation.tell_hashes()
            return self._opened

    def _in_turn(
        self, prepared: Prepared, clock: Clock, caller: Caller
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return A1111's answer and the `info` in it, both found to be right."""
        while not self._gpu.acquire(timeout=WAIT_S):
            _stop_if(caller.cancelled)
        try:
            _stop_if(caller.cancelled)
            clock.lap("webui_wait_s")
            try:
                return self._generate(self._told(prepared, caller), prepared, caller)
            except BackendNotReadyError as error:
                if error.refresh_worker:
                    raise
                # It ended a moment before it was asked: nothing was lost but that moment.
                return self._generate(self._told(prepared, caller), prepared, caller)
        finally:
            self._gpu.release()

    def _told(self, prepared: Prepared, caller: Caller) -> Session:
        """Return the session once A1111 can be asked and knows of the job's files."""

        def tell(session: Session) -> Session:
            prepared.require_files()
            session.refresh()
            return session

        return self._asked(caller, tell, holds_gpu=True)

    def _generate(
        self, session: Session, prepared: Prepared, caller: Caller
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        patience = self._patience(prepared)
        asked = overrides.checked(prepared.job.override_settings, session.originals)
        options = session.options(asked)
        body = payload.body(prepared.job, prepared.chosen, prepared.changes, options)
        attendants = Attendants(
            caller.cancelled,
            caller.report,
            has_ended=lambda: session.life.has_ended,
            give_up=lambda reason: self._webui.replace(
                session.life, reason, is_broken=not caller.cancelled.is_set()
            ),
            previews=prepared.job.previews,
            loads=prepared.checkpoint_name,
        )
        is_first = session.switches == 0
        session.begin(prepared.chosen, prepared.vae)
        try:
            if is_first:
                self._select(prepared, patience, attendants)
            answer = self._watcher.post(payload.route(prepared.job), body, patience, attendants)
            info = self._checked(answer, session, prepared)
        except WorkerError as error:
            self._mend(session, error)
            raise
        session.end(prepared.chosen)
        self._webui.served(session.life)
        self._replace_worn(session)
        return answer, info

    def _select(self, prepared: Prepared, patience: Patience, attendants: Attendants) -> None:
        """Make A1111 load the checkpoint of its first job, which it else does after its default one.

        Source: A1111 1.10.1, modules/api/api.py, text2imgapi asks for `shared.sd_model`, which loads
        what the options select, before process_images looks at the overrides.
        """
        selected = {overrides.CHECKPOINT: prepared.chosen.checkpoint}
        try:
            self._watcher.post("options", selected, patience, attendants)
        except BackendFailedError as error:
            # The job is asked for all the same: its own answer is what is judged.
            log.info(f"A1111 did not select {prepared.chosen.checkpoint}: {error}")

    def _patience(self, prepared: Prepared) -> Patience:
        """Return how long A1111 may take, by the bytes that it is about to read."""
        webui = self._settings.webui
        later = {"refiner_checkpoint", "hr_checkpoint_name"}
        sizes = {model.path: model.size_bytes for model in prepared.models}
        second = {prepared.found[field].model.path for field in later if field in prepared.found}
        bytes_per_s = webui.load_mb_s * 1e6
        reload_s = sum(sizes[path] for path in second) / bytes_per_s
        first = sum(size for path, size in sizes.items() if path not in second)
        return Patience(
            total_s=webui.job_timeout_s,
            stall_s=webui.stall_s,
            load_s=first / bytes_per_s,
            reload_s=reload_s,
            stop_s=webui.stop_s,
        )

    def _mend(self, session: Session, error: WorkerError) -> None:
        """Replace A1111 if its next picture could be a wrong one, or none."""
        if isinstance(error.__cause__, WorkerError):
            # The job was cancelled or took too long, and failed besides: see Watcher.post.
            error = error.__cause__
        if isinstance(error, BackendCrashedError | BackendNotReadyError):
            self._webui.replace(session.life, str(error), is_broken=True)
        elif isinstance(
            error, BackendFailedError | BackendOutOfMemoryError
        ) and session.is_doubtful(error):
            self._webui.replace(session.life, f"a checkpoint may be half loaded: {error}")
        else:
            self._replace_worn(session)

    def _replace_worn(self, session: Session) -> None:
        """Replace A1111 between two jobs if it has become too large, or loaded too much."""
        webui, process = self._settings.webui, session.life.process
        rss_bytes = (process.rss_bytes() if process is not None else None) or 0
        if self._max_rss_bytes is not None and rss_bytes > self._max_rss_bytes:
            self._webui.replace(session.life, f"it occupies {rss_bytes / 1e9:.1f} GB")
        elif webui.max_switches is not None and session.switches >= webui.max_switches:
            self._webui.replace(session.life, f"it loaded {session.switches} checkpoints")

    def _checked(self, answer: Any, session: Session, prepared: Prepared) -> dict[str, Any]:
        info = check.info_of(answer)
        checkpoint = prepared.checkpoint
        check.require_checkpoint(info, stem_of(prepared.chosen.checkpoint), checkpoint.sha256)
        check.require_vae(info, prepared.chosen.vae)
        if prepared.chosen.refiner is not None:
            check.require_refiner(info, stem_of(prepared.chosen.refiner))
        listed = session.originals.get("lora_add_hashes_to_infotext", True)
        if listed and not prepared.job.disable_extra_networks:
            check.require_loras(info, prepared.tagged.loras)
        return info

    def _result(
        self, answer: Any, info: dict[str, Any], prepared: Prepared, clock: Clock
    ) -> Result:
        cached = self._cache.info()
        return Result(
            images=answer["images"],
            parameters=answer["parameters"],
            info=answer["info"],
            seed=info["seed"],
            seeds=info["all_seeds"],
            cache_info={
                "checkpoints_cached": cached.checkpoints_cached,
                "loras_cached": cached.loras_cached,
                "total_cache_size_mb": cached.total_cache_size_mb,
            },
            models=_used(prepared),
            warnings=prepared.warnings,
            timings=clock.timings(),
            backend=self._client.backend,
        )


def _used(prepared: Prepared) -> list[ModelUsed]:
    """Return the models of a job: those that its fields name, then LoRAs that tags alone name."""
    listed = [
        ModelUsed(
            kind=ensured.model.kind.value,
            name=prepared.names[field],
            sha256=ensured.model.sha256,
            checked=ensured.checked,
            cached=ensured.cached,
            download_s=round(ensured.download_s, 3),
        )
        for field, ensured in prepared.found.items()
    ]
    named = {ensured.model.path for ensured in prepared.found.values()}
    by_tag = [
        ModelUsed(
            kind="lora", name=name, sha256=lora.sha256, checked="", cached=True, download_s=0.0
        )
        for name, lora in prepared.tagged.loras.items()
        if lora.path not in named
    ]
    return listed + by_tag


def _stop_if(cancelled: Event) -> None:
    if cancelled.is_set():
        raise JobCancelledError("The job was cancelled before it was generated.")
