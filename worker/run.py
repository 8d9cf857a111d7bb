"""The path of a job: parse, fetch, ask A1111, check, return. One picture at a time."""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from threading import Event
from typing import Any

from model_cache.cache import ModelCache
from schemas.commands import Command
from schemas.errors import (
    BackendFailedError,
    BackendOutOfMemoryError,
    UploadFailedError,
    WorkerError,
)
from schemas.job import Generation
from schemas.model_ref import stem_of
from schemas.output import Output
from schemas.request import parse
from schemas.result import Result
from schemas.routes import Call
from schemas.settings import Settings
from worker.api.calls import Calls
from worker.api.commands import Commands
from worker.api.defaults import Defaults
from worker.api.health import Health
from worker.caller import Caller
from worker.child.client import WebuiClient
from worker.child.links import LinkFolder
from worker.child.watch import Attendants, Patience, Report, Watcher
from worker.child.webui import State, Webui
from worker.clock import Clock
from worker.delivery import output
from worker.delivery.parcel import Sent
from worker.delivery.stream import Emit, Stream, joined, parts_of, share_of
from worker.delivery.wish import Wish, Wishes, limit_bytes
from worker.generation import check, inputs, kinds, overrides, payload
from worker.generation.access import Access, Wear
from worker.generation.prepare import Preparation, Prepared
from worker.generation.session import Session
from worker.generation.upscalers import Upscalers
from worker.generation.used import used_models

log = logging.getLogger(__name__)

# The job that loads the default checkpoint; SDXL, too, takes so small a picture.
WARM_UP = {"prompt": "", "steps": 1, "width": 64, "height": 64}


class Runner:
    """Runs jobs against one A1111; only the GPU part takes turns.

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
        links = LinkFolder(settings.webui.links)
        self._preparation = Preparation(cache, links, settings)
        self.access = Access(
            client,
            links,
            webui,
            wear=Wear(max_rss_bytes, settings.webui.max_switches),
            on_opened=self._preparation.tell_hashes,
            came_later=Upscalers(cache, links).came_later,
        )
        self._watcher = Watcher(client)
        self._defaults = Defaults()
        self._calls = Calls(
            client, self.access, self._watcher, self._preparation, self._defaults, settings
        )
        self._wishes = Wishes(settings)
        self.health = Health(settings, cache, client, webui)
        self._commands = Commands(
            self.health,
            cache,
            settings.cache,
            ask=lambda route, cancelled: self.access.asked(cancelled, lambda _: client.get(route)),
            shown=self._preparation.look_again,
        )

    def show_models(self) -> None:
        """Link every model of every root, so that A1111's lists show them; before it starts, ideally."""
        self._preparation.show_models()

    def check_storage(self) -> None:
        """Prove that pictures can be uploaded, where storage is set; what hinders that is logged.

        The worker goes on without: an upload that fails is passed by, and its job says so.
        """
        bucket = self._wishes.bucket
        if bucket is None:
            return
        try:
            bucket.check()
        except UploadFailedError as error:
            log.error(f"Pictures cannot be uploaded: {error}")  # noqa: TRY400 - the message says it
        else:
            log.info("Pictures can be uploaded.")

    def warm_up(self, cancelled: Event) -> None:
        """Load the default checkpoint; what hinders that is logged, and left to the jobs."""
        start = time.monotonic()
        try:
            self.run({"id": "warm-up", "input": WARM_UP}, cancelled, lambda _: None)
        except WorkerError as error:
            log.warning(f"The default checkpoint was not loaded: {error.code}: {error}")
        else:
            log.info(f"The default checkpoint was loaded in {time.monotonic() - start:.1f} s.")

    def run(
        self, job: dict[str, Any], cancelled: Event, report: Report, emit: Emit | None = None
    ) -> Any:
        """Return the answer to one RunPod job, in JSON values: a `Result`, or what a call answers.

        Blocks; call it in a thread. `report` gets progress as JSON objects, from any thread. So does
        `emit` the pictures of a generation, each as soon as it is there; the answer has none then.

        Raises:
            WorkerError: whatever the caller should be told.
        """
        clock, job_id = Clock(self._settings.job.price_per_s), str(job.get("id", ""))
        request = parse(job.get("input"), self._settings.job)
        asked = request.job
        if isinstance(asked, Command):
            self.access.line.leave()
            answer = self._commands.run(asked, cancelled, report)
            return output.fitting(answer, limit_bytes(job_id, self._settings.output))
        wish = self._wishes.of(asked.output or Output(), job)
        with self.health.running(job_id, report) as noted, ExitStack() as held:
            caller = Caller(cancelled, noted, held, clock)
            if isinstance(asked, Call):
                return self._called(asked, wish, caller)
            output.foresee(wish, asked)
            prepared = self._prepared(asked, request.warnings, caller)
            if emit is not None:
                return self._streamed(prepared, wish, emit, caller)
            with self._turn(caller):
                answer = self._drawn(prepared, caller)
            return output.send(
                answer["images"],
                wish,
                lambda sent: self._result(sent, answer, prepared, clock),
                caller,
            )

    def _streamed(self, prepared: Prepared, wish: Wish, emit: Emit, caller: Caller) -> Any:
        """Return the answer without its pictures, which are handed out while it is made."""
        parts, answers = parts_of(prepared), []
        most = self._settings.output.max_chunk_bytes
        with Stream(wish, emit, caller, most, len(parts)) as stream, self._turn(caller):
            for number, part in enumerate(parts):
                share = share_of(caller, number, len(parts))
                drawn = self._drawn(replace(prepared, job=part), share)
                stream.add(drawn, is_last=part is parts[-1])
                answers.append({**drawn, "images": []})
        answer = joined(prepared.job, answers)
        result = self._result(Sent([], None), answer, prepared, caller.clock)
        result["image_kinds"] = []
        return output.fitting(result, stream.left_bytes)

    def _called(self, call: Call, wish: Wish, caller: Caller) -> Any:
        """Return A1111's own answer to `call`, with the pictures in it as the caller wants them."""
        if not call.route.in_turn:
            self.access.line.leave()
        answer = self._calls.run(call, caller)
        key = _picture_key(answer) if call.output is not None else None
        if key is None:
            return output.fitting(answer, wish.limit_bytes)
        pictures = [answer["image"]] if key == "image" else answer["images"]
        return output.send(
            pictures,
            wish,
            lambda sent: {
                **answer,
                key: sent.images[0] if key == "image" else sent.images,
                **({"warnings": [*sent.warnings]} if sent.warnings else {}),
            },
            caller,
        )

    def _prepared(self, job: Generation, warnings: Sequence[str], caller: Caller) -> Prepared:
        """Return the job with all that it needs, judged to be possible."""
        job, told = self._defaults.applied(job)
        job = inputs.brought(job, self._settings, caller.cancelled)
        if self._webui.state is not State.STARTING:
            # So that a mistake is told before gigabytes are fetched.
            self.access.asked(
                caller.cancelled, lambda session: self._preparation.check(job, session)
            )
        found = self._preparation.fetch(job, caller)
        caller.clock.lap("download_s")
        prepared = self.access.asked(
            caller.cancelled,
            lambda session: self._preparation.complete(job, found, session, caller),
        )
        prepared.warnings[:0] = [*warnings, *told]
        return prepared

    @contextmanager
    def _turn(self, caller: Caller) -> Iterator[None]:
        with self.access.turn(caller.cancelled):
            caller.clock.lap("webui_wait_s")
            yield

    def _drawn(self, prepared: Prepared, caller: Caller) -> dict[str, Any]:
        """Return A1111's answer, found to be right, with `image_kinds` beside. It is our turn."""
        answer = self.access.again(
            lambda: self._generate(self._told(prepared, caller), prepared, caller)
        )
        caller.clock.lap("generate_s")
        return answer

    def _told(self, prepared: Prepared, caller: Caller) -> Session:
        """Return the session once A1111 can be asked and knows of the job's files."""

        def tell(session: Session) -> Session:
            prepared.require_files()
            session.refresh()
            prepared.controls.name_models(session.controlnet)
            return session

        return self.access.asked(caller.cancelled, tell)

    def _generate(self, session: Session, prepared: Prepared, caller: Caller) -> dict[str, Any]:
        clock = caller.clock
        patience = self._patience(prepared)
        asked = overrides.checked(prepared.job.override_settings, session.originals)
        options = session.options(asked) | prepared.controls.options
        body = payload.body(prepared.job, prepared.chosen, prepared.changes, options)
        attendants = Attendants(
            caller.cancelled,
            caller.report,
            has_ended=lambda: session.life.has_ended,
            give_up=lambda reason: self.access.replace(
                session, reason, is_broken=not caller.cancelled.is_set()
            ),
            previews=prepared.job.previews,
            loads=prepared.checkpoint_name,
            on_sampling=partial(clock.lap, "load_s") if session.loads(prepared.chosen) else None,
        )
        is_first = session.switches == 0
        session.begin(prepared.chosen, prepared.vae)
        try:
            if is_first:
                self._select(prepared, patience, attendants)
                clock.lap("load_s")
            answer = self._watcher.post(payload.route(prepared.job), body, patience, attendants)
            self._check(answer, session, prepared)
        except WorkerError as error:
            self._mend(session, error)
            raise
        session.end(prepared.chosen)
        self.access.served(session)
        checked: dict[str, Any] = answer
        return checked

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
        may_be_half = isinstance(error, BackendFailedError | BackendOutOfMemoryError)
        if self.access.replace_lost(session, error):
            return
        if may_be_half and session.is_doubtful(error):
            self.access.replace(session, f"a checkpoint may be half loaded: {error}")
        else:
            self.access.replace_worn(session)

    def _check(self, answer: Any, session: Session, prepared: Prepared) -> None:
        """Raise unless `answer` is what was asked for; put `image_kinds` beside it."""
        info = check.info_of(answer)
        checkpoint = prepared.checkpoint
        check.require_checkpoint(info, stem_of(prepared.chosen.checkpoint), checkpoint.sha256)
        check.require_vae(info, prepared.chosen.vae)
        if prepared.chosen.refiner is not None:
            check.require_refiner(info, stem_of(prepared.chosen.refiner))
        listed = session.originals.get("lora_add_hashes_to_infotext", True)
        if listed and not prepared.job.disable_extra_networks:
            check.require_loras(info, prepared.tagged.loras)
        job = prepared.job
        options = {**session.originals, **job.override_settings}
        answer["image_kinds"] = kinds.settled(answer, job, prepared.controls, options)

    def _result(
        self, sent: Sent, answer: dict[str, Any], prepared: Prepared, clock: Clock
    ) -> Result:
        info = check.info_of(answer)
        cached = self._cache.info()
        return Result(
            images=sent.images,
            image_kinds=answer["image_kinds"],
            output=sent.output,
            parameters=answer["parameters"],
            info=answer["info"],
            seed=info["seed"],
            seeds=info["all_seeds"],
            cache_info={
                "checkpoints_cached": cached.checkpoints_cached,
                "loras_cached": cached.loras_cached,
                "total_cache_size_mb": cached.total_cache_size_mb,
            },
            models=used_models(prepared),
            warnings=[*prepared.warnings, *sent.warnings],
            timings=clock.timings(answer["image_kinds"].count("picture")),
            backend=self._client.backend,
        )


def _picture_key(answer: Any) -> str | None:
    """Return where A1111's answer to a call holds its pictures, None if it has none."""
    found = [name for name in ("image", "images") if isinstance(answer, dict) and answer.get(name)]
    return found[0] if found else None
