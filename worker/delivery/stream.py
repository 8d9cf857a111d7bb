"""Pictures handed out one by one while a job goes on: its parts, and the chunks of what they bring.

    {"index": 0, "image": "…", "image_kind": "picture", "seed": 42, "infotext": "…", "output": {…}}
    {"index": 1, "image": "<a third of it>", "part": 1, "parts": 3, …}  {"index": 1, "part": 2, …}  …

Encoding and handing out go on in a thread, beside A1111's work on the next part.
Source: RunPod's limit of 1 MB for a chunk of /stream; docs/streaming.md.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any, Self

from schemas.controlnet import SCRIPT
from schemas.errors import JobCancelledError, OutputTooLargeError
from schemas.job import Generation, Img2Img
from schemas.result import ImageKind
from worker.caller import Caller
from worker.clock import Clock
from worker.delivery.output import send, size_bytes
from worker.delivery.parcel import Sent
from worker.delivery.wish import Wish
from worker.extensions import detailer, reactor, scripts
from worker.generation.prepare import Prepared

Emit = Callable[[dict[str, Any]], None]
"""Hands one chunk, JSON values, to whoever listens; from any thread, returns at once."""

# Source: A1111 1.10.1, modules/processing.py, get_fixed_seed.
_SEEDS = 4294967294
# Of the whole answer, for what stands beside `info` and `parameters` in what comes last.
_RESERVED_BYTES = 50_000
_MOST_PARTS = 99_999
# Of `info`: lists with an entry for each picture. Source: A1111 1.10.1, modules/processing.py, Processed.
_PER_PICTURE = ("all_prompts", "all_negative_prompts", "all_seeds", "all_subseeds", "infotexts")
# Scripts that look at each picture, or each batch, by itself.
# Source: Bing-su/adetailer 36189cb, scripts/!adetailer.py, get_seed; A1111 1.10.1, soft_inpainting.py;
# Gourieff/sd-webui-reactor-force cd244cb, scripts/reactor_faceswap.py, postprocess_image.
_BY_PICTURE = frozenset({SCRIPT, detailer.SCRIPT, reactor.SCRIPT, *scripts.ALWAYS_ON})
_LATENT_NOISE = 2
# How many percent of a part are done in each stage; None: as many as it says.
_DONE: Mapping[str, int | None] = {"loading": 0, "sampling": None, "encoding": 100}


def parts_of(prepared: Prepared) -> list[Generation]:
    """Return the jobs of one iteration each that bring the pictures of a job, in their order.

    Only itself, if it has one iteration, or where an iteration alone would bring other pictures.

    Source: A1111 1.10.1, modules/processing.py, process_images_inner: the seeds of all pictures go up by
    one, unless a variation is asked for; those of the variations always do.
    """
    job = prepared.job
    if job.n_iter == 1 or not _is_divisible(prepared):
        return [job]
    seed = random.randrange(_SEEDS) if job.seed == -1 else job.seed  # noqa: S311 - hides nothing
    subseed = random.randrange(_SEEDS) if job.subseed == -1 else job.subseed  # noqa: S311
    parts = []
    for number in range(job.n_iter):
        first = number * job.batch_size
        seeds = {
            "seed": seed + (first if job.subseed_strength == 0 else 0),
            "subseed": subseed + first,
        }
        parts.append(job.model_copy(update={"n_iter": 1, **seeds}))
    return parts


def _is_divisible(prepared: Prepared) -> bool:
    """Return whether nothing in a job looks at more than one iteration."""
    job = prepared.job
    if job.script_name or not {name.lower() for name in job.alwayson_scripts} <= _BY_PICTURE:
        return False  # It draws what it likes, and lots perhaps.
    if job.save_images:
        return False  # A1111 makes a grid of what it saves.
    if isinstance(job, Img2Img):
        # Several images make the batches smaller, after the seeds were given out; the noise under a
        # mask is that of the first seeds. Source: A1111 1.10.1, StableDiffusionProcessingImg2Img.init.
        has_noise = bool(job.mask) and job.inpainting_fill == _LATENT_NOISE
        if len(job.init_images) > 1 or has_noise:
            return False
    # It shuffles by the first seed. Source: sd-webui-controlnet v1.1.455, scripts/controlnet.py,
    # set_numpy_seed.
    return not any("shuffle" in control.body["module"] for control in prepared.controls.controls)


def share_of(caller: Caller, number: int, count: int) -> Caller:
    """Return the caller of one of `count` parts of a job, whose progress is its share of the whole."""

    def report(progress: dict[str, Any]) -> None:
        is_inner = (progress["stage"], number) not in {("loading", 0), ("encoding", count - 1)}
        if count > 1 and is_inner and progress["stage"] in _DONE:
            done = _DONE[progress["stage"]]
            percent = progress["percent"] if done is None else done
            progress = {**progress, "stage": "sampling", "detail": f"{number + 1} of {count}"}
            progress["percent"] = (100 * number + percent) // count
            progress.pop("eta_s", None)  # A1111 knows of this part alone
        caller.report(progress)

    return replace(caller, report=report)


def joined(job: Generation, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the answer that A1111 would have given to `job` at once; its images are handed out already.

    Args:
        job: the whole.
        answers: A1111's to the parts of it, each with `image_kinds` beside.
    """
    kinds = [kind for answer in answers for kind in answer["image_kinds"]]
    whole = {**answers[0], "images": [], "image_kinds": kinds}
    if len(answers) == 1:
        return whole
    told = [json.loads(answer["info"]) for answer in answers]
    info = told[0] | {
        name: [entry for part in told for entry in part[name]] for name in _PER_PICTURE
    }
    asked = {"n_iter": job.n_iter, "seed": job.seed, "subseed": job.subseed}
    return {**whole, "parameters": whole["parameters"] | asked, "info": json.dumps(info)}


class Stream:
    """The pictures of one job on their way out, in order. Leave it to wait until all are handed out.

    Args:
        wish: what is to become of them.
        emit: takes the chunks.
        caller: of whom; its clock and its progress are those of what goes on meanwhile.
        max_chunk_bytes: most that one chunk may have.
        parts: how many answers will be added.
    """

    def __init__(
        self, wish: Wish, emit: Emit, caller: Caller, max_chunk_bytes: int, parts: int
    ) -> None:
        self._wish = wish
        self._emit = emit
        self._cancelled = caller.cancelled
        self._caller = replace(caller, report=lambda _: None, clock=Clock())
        self._most = max_chunk_bytes
        self._parts = parts
        self._left = wish.limit_bytes
        self._kept = 0
        """Of what is left, for what comes after the pictures."""
        self._index = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stream")
        self._last: Future[None] | None = None

    @property
    def left_bytes(self) -> int:
        """How much of the whole answer is left when all is handed out."""
        return self._left

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown()
        if error is None and self._last is not None:
            self._last.result()

    def add(self, answer: dict[str, Any], *, is_last: bool) -> None:
        """Hand out the images of `answer`, A1111's with `image_kinds` beside; returns at once.

        Detect maps go out with the last answer alone, as A1111 itself answers those of several iterations.

        Raises:
            WorkerError: a picture that was added before could not be handed out.
            JobCancelledError: there is no need of any more.
        """
        if self._last is not None and self._last.done():
            self._last.result()
        hand_out = partial(self._hand_out, answer, self._last, is_last=is_last)
        self._last = self._thread.submit(copy_context().run, hand_out)
        if self._cancelled.is_set():
            raise JobCancelledError("The job was cancelled between two pictures.")

    def _hand_out(
        self, answer: dict[str, Any], before: Future[None] | None, *, is_last: bool
    ) -> None:
        if before is None:
            beside = self._parts * size_bytes(answer["info"]) + size_bytes(answer["parameters"])
            self._kept = _RESERVED_BYTES + beside
        else:
            before.result()  # After one that failed, none goes out.
        told = _told(answer["image_kinds"], json.loads(answer["info"]))
        for image, about in zip(answer["images"], told, strict=True):
            if is_last or about["image_kind"] != "detect_map":
                for chunk in self._chunks(image, {"index": self._index, **about}):
                    self._left -= size_bytes(chunk)
                    self._emit(chunk)
                self._index += 1

    def _chunks(self, image: str, about: dict[str, Any]) -> list[dict[str, Any]]:
        """Return an image as one chunk, or as several: whole as it was asked for, as long as that is possible.

        Raises:
            OutputTooLargeError: it goes in no way into what is left of the answer.
        """
        wish = replace(
            self._wish, first_index=self._index, limit_bytes=max(0, self._left - self._kept)
        )
        elsewhere = {"upload", "volume"} if wish.asks_for_volume else {"upload"}
        ways = tuple(way for way in wish.ways if way == "inline" or way in elsewhere)
        told: tuple[str, ...] = ()
        if ways != ("inline",):
            near = replace(wish, ways=ways, limit_bytes=min(self._most, wish.limit_bytes))
            try:
                return [self._chunk(image, about, near)]
            except OutputTooLargeError as error:
                told = (str(error),)
        try:
            whole = self._chunk(image, about, wish, told)
        except OutputTooLargeError as error:
            what = f"Picture {self._index} has no room in what the others left of the answer."
            raise OutputTooLargeError(
                f"{what} {error}", hint=error.hint, **error.details
            ) from error
        return list(_pieces(whole, self._most))

    def _chunk(
        self, image: str, about: dict[str, Any], wish: Wish, told: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        def made(sent: Sent) -> dict[str, Any]:
            warnings = [*told, *sent.warnings]
            beside = {"warnings": warnings} if warnings else {}
            return {**about, "image": sent.images[0], "output": sent.output, **beside}

        chunk: dict[str, Any] = send([image], wish, made, self._caller)
        return chunk


def _told(kinds: Sequence[ImageKind], info: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield what stands beside each image: of a picture its seeds and its infotext, too."""
    infotexts = info["infotexts"][info["index_of_first_image"] :]
    pictures = zip(info["all_seeds"], info["all_subseeds"], infotexts, strict=False)
    for kind in kinds:
        about: dict[str, Any] = {"image_kind": kind}
        if kind == "picture":
            about |= zip(("seed", "subseed", "infotext"), next(pictures, ()), strict=False)
        yield about


def _pieces(chunk: dict[str, Any], most: int) -> Iterator[dict[str, Any]]:
    """Yield `chunk`, in parts if it has more than `most` bytes: whoever joins their `image` has it again."""
    if size_bytes(chunk) <= most:
        yield chunk
        return
    image = chunk["image"]
    beside = size_bytes({**chunk, "image": "", "part": _MOST_PARTS, "parts": _MOST_PARTS})
    room = (most - beside) // 4 * 4  # so that each part is base64 by itself
    if room <= 0:
        raise OutputTooLargeError(
            f"What stands beside a picture has more than {most} bytes already.",
            hint="Make the prompt shorter.",
            size_bytes=beside,
            limit_bytes=most,
        )
    pieces = [image[start : start + room] for start in range(0, len(image), room)]
    for number, piece in enumerate(pieces, start=1):
        which = {"part": number, "parts": len(pieces)}
        yield {**(chunk if number == 1 else {"index": chunk["index"]}), **which, "image": piece}
