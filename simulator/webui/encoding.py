"""Prompts on their way into the model: LoRAs made the wanted ones, text encoded, and remembered.

The last text that was encoded is kept. Taking it again skips the text encoder, and with it what the
encoder would have noted or brought up to date: hashes of embeddings, weights of LoRAs.

Source: A1111 1.10.1, modules/processing.py, get_conds_with_caching, modules/extra_networks.py,
activate, and modules/sd_hijack_clip.py.
"""

import sys
from dataclasses import dataclass, field

from simulator.webui import prompts
from simulator.webui.failure import WebuiError
from simulator.webui.job import Job
from simulator.webui.model import Model, Parts
from simulator.webui.networks import Signature
from simulator.webui.prompts import Tag

_LORA_TAGS = {"lora", "lyco"}
_SYMBOLS = str.maketrans("", "", ":,")


@dataclass(frozen=True)
class Condition:
    """A prompt as the text encoder sees it: its words, what stands for some of them, the LoRAs."""

    text: str
    embeddings: tuple[str, ...]
    networks: Signature


# Of one picture: what is wanted, and what is not.
Conditions = tuple[Condition, Condition]


@dataclass
class _Cache:
    key: object = None
    conditions: list[Condition] = field(default_factory=list)


class TextEncoder:
    """Encodes prompts with the model's text encoder."""

    def __init__(self, parts: Parts, model: Model) -> None:
        self._parts = parts
        self._model = model
        self._positive = _Cache()
        self._negative = _Cache()

    def encode(
        self, job: Job, indices: list[int], *, second_pass: bool = False
    ) -> list[Conditions]:
        """Return the conditions of some of the job's pictures, which make one batch.

        Raises:
            WebuiError: for null and for a number of steps that is null or 0.
        """
        steps = job.steps
        positive, negative = job.all_prompts, job.all_negative_prompts
        if second_pass:
            steps = job.hr_second_pass_steps or job.steps
            positive, negative = job.all_hr_prompts, job.all_hr_negative_prompts
        taken = [prompts.take_tags(positive[index]) for index in indices]
        # The tags of the first prompt count for the whole batch.
        tags = taken[0][1]
        self._activate(job, tags)
        self._check(job, steps)
        batches = (
            (self._negative, [negative[index] for index in indices]),
            (self._positive, [text for text, _ in taken]),
        )
        hashes: dict[str, str] = {}
        settings = tuple(
            self._parts.options[key] for key in ("CLIP_stop_at_last_layers", "emphasis")
        )
        for cache, batch in batches:
            key = (batch, steps, tags, self._model.checkpoint, job.width, job.height, settings)
            # Without the option A1111 forgets after each job; within one, the same text is the same.
            if cache.key != key or not self._parts.options["persistent_cond_cache"]:
                cache.conditions = [self._condition(text, hashes) for text in batch]
                cache.key = key
        if hashes and self._parts.options["textual_inversion_add_hashes_to_infotext"]:
            listed = (f"{name}: {shorthash}" for name, shorthash in hashes.items())
            job.extra["TI hashes"] = ", ".join(listed)
        return list(zip(self._positive.conditions, self._negative.conditions, strict=True))

    def _activate(self, job: Job, tags: dict[str, list[Tag]]) -> None:
        """Make the LoRAs of the prompt the wanted ones. A bad tag drops all of them, in silence."""
        if job.disable_extra_networks:
            return
        wanted = [tag for name in tags if name in _LORA_TAGS for tag in tags[name]]
        try:
            job.lora_hashes |= self._parts.networks.activate(wanted)
        except WebuiError as error:
            print(f"activating extra network lora: {error}", file=sys.stderr)
            self._parts.networks.activate([])
        if job.lora_hashes and self._parts.options["lora_add_hashes_to_infotext"]:
            listed = (f"{name}: {shorthash}" for name, shorthash in job.lora_hashes.items())
            job.extra["Lora hashes"] = ", ".join(listed)

    def _check(self, job: Job, steps: int | None) -> None:
        """Refuse what encoding trips over.

        Source: recorded from A1111 1.10.1: txt2img_neg_null, txt2img_after_wrong_type_option; and
        seen with 0 steps.
        """
        if steps is None:
            text = "unsupported operand type(s) for //: 'NoneType' and 'NoneType'"
            raise WebuiError("TypeError", text)
        if steps == 0 or job.steps == 0:
            raise WebuiError("ZeroDivisionError", "integer division or modulo by zero")
        if job.negative_prompt is None:
            raise WebuiError("TypeError", "'NoneType' object is not iterable")
        skipped = self._parts.options["CLIP_stop_at_last_layers"]
        if not isinstance(skipped, int | float):
            kind = type(skipped).__name__
            raise WebuiError("TypeError", f"bad operand type for unary -: {kind!r}")

    def _condition(self, text: str, hashes: dict[str, str]) -> Condition:
        used = self._parts.embeddings.used_in(text)
        for embedding in used:
            if not embedding.sha256:
                continue
            hashes[embedding.name.translate(_SYMBOLS)] = embedding.sha256[:12]
        networks = self._parts.networks.apply_to_text_encoder(self._model.width)
        # The tokenizer sees neither case nor how much space there is.
        words = " ".join(text.lower().split())
        return Condition(words, tuple(embedding.content for embedding in used), networks)
