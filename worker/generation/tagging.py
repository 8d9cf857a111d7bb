"""The prompts of a job with a tag for each LoRA, every tag naming a file that is there.

A1111 drops a tag whose LoRA is missing or ambiguous in silence
(recorded: lora_missing, lora_dup_alias), so each is resolved to one file before.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from model_cache.cache import ModelCache
from model_cache.models import CachedModel
from schemas.errors import (
    InvalidInputError,
    ModelCorruptError,
    ModelIncompatibleError,
    ModelNotFoundError,
    ModelUnsafeError,
    WorkerError,
    shown,
)
from schemas.job import Generation, Txt2Img
from schemas.model_ref import Kind, LoraRef, ModelRef, RecalledLora, parse_ref
from worker.generation import prompt as syntax

Ensure = Callable[[str], CachedModel]
Knows = Callable[[str], bool]
Show = Callable[[CachedModel], str]
Fits = Callable[[CachedModel, str], bool]

MAX_TAGS = 100
"""In one prompt: A1111 applies the LoRA of each to every layer, one named again as one more."""


@dataclass
class Tagged:
    """What the prompts became."""

    fields: dict[str, str] = field(default_factory=dict)
    """Prompt fields to send."""
    loras: dict[str, CachedModel] = field(default_factory=dict)
    """Every LoRA in them by the name in its tag."""
    hypernetworks: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def tagged(
    job: Generation,
    listed: Mapping[LoraRef, CachedModel],
    ensure: Ensure,
    knows: Knows,
    show: Show,
    fits: Fits,
) -> Tagged:
    """Return the prompts of `job` with a tag before them for each of its `loras`.

    A LoRA that does not fit gets no tag, and a tag of it that the caller wrote is taken out, as
    A1111 itself takes out tags before it reads a prompt.

    A tag that the caller wrote for the same file wins over the list. The hires pass reads its own
    prompt, when there is one, and drops LoRAs that it does not name, so that gets the tags too.
    Source: A1111 1.10.1, modules/processing.py, sample_hr_pass.

    Args:
        job: the request.
        listed: the models of its `loras`.
        ensure: the model of a name in a tag; raises ModelNotFoundError, after a look at the volume.
        knows: whether a name in a tag seems to be one; looks nowhere, as most are tried in vain.
        show: the name under which A1111 lists a model.
        fits: whether a model, named in a field of the request, is used; may raise.

    Raises:
        InvalidInputError: a tag that A1111 would drop.
        ModelNotFoundError: a tag names no file.
    """
    out = Tagged()
    asked = {ref.name: model for ref, model in listed.items() if ref.name is not None}
    # Those of an infotext are in its prompt already.
    own = {ref: model for ref, model in listed.items() if not isinstance(ref, RecalledLora)}
    links = {show(model): model for model in own.values()}
    _require_distinct(len(own), len(links))

    resolve = partial(_one_of, asked, links, ensure)
    taken = {
        show(model): (ref, model)
        for index, (ref, model) in enumerate(own.items())
        if fits(model, f"loras[{index}]")
    }

    def is_name(name: str) -> bool:
        return name in asked or name in links or knows(name)

    prompts = {"prompt": job.prompt}
    if isinstance(job, Txt2Img) and job.enable_hr and job.hr_prompt:
        prompts["hr_prompt"] = job.hr_prompt
    for at, text in prompts.items():
        if job.disable_extra_networks:
            continue
        cleaned, present = _resolved(text, at, (resolve, is_name, show, fits), out)
        new = [
            syntax.lora_tag(name, ref.scale)
            for name, (ref, _) in taken.items()
            if name not in present
        ]
        out.loras |= {name: model for name, (_, model) in taken.items()}
        done = syntax.with_tags(cleaned, new)
        if done != text:
            out.fields[at] = done
    if any(tag.type in syntax.KNOWN_TYPES for tag in syntax.tags(job.negative_prompt)):
        out.warnings.append("A1111 does not act on tags in `negative_prompt`.")
    return out


def _require_distinct(given: int, files: int) -> None:
    if given > MAX_TAGS:
        raise InvalidInputError(f"More than {MAX_TAGS} `loras` are given.", field="loras")
    if files < given:
        raise InvalidInputError("`loras` names one file twice.", field="loras")


def _one_of(
    asked: Mapping[str, CachedModel],
    links: Mapping[str, CachedModel],
    ensure: Ensure,
    name: str,
) -> CachedModel:
    """Return the LoRA that a tag means: by the request's own name, a file's, or at last a link's."""
    if name in asked:
        return asked[name]
    try:
        return ensure(name)
    except ModelNotFoundError:
        if name in links:
            return links[name]
        raise


def _meant(
    tag: syntax.Tag, at: str, resolve: Ensure, is_name: Knows
) -> tuple[str, tuple[str, ...], CachedModel]:
    """Return name, weights and LoRA of a tag in the field `at`, which errors name."""
    try:
        name, weights = syntax.split_name(tag, is_name)
        parse_ref({"name": name}, Kind.LORA, at)  # it goes where file names go
        return name, weights, resolve(name)
    except WorkerError as error:
        error.details.setdefault("field", at)
        raise


def _resolved(
    text: str, at: str, how: tuple[Ensure, Knows, Show, Fits], out: Tagged
) -> tuple[str, set[str]]:
    """Return `text` with its own LoRA tags made good, and the names in them."""
    resolve, is_name, show, fits = how
    present: set[str] = set()
    texts: dict[str, str] = {}
    found = syntax.tags(text)
    if len(found) > MAX_TAGS:
        raise InvalidInputError(f"`{at}` holds {len(found)} tags, more than {MAX_TAGS}.", field=at)
    for tag in found:
        if tag.type == "hypernet":
            out.hypernetworks.append(tag.items[0])
        elif tag.type.lower() in syntax.KNOWN_TYPES and tag.type not in syntax.KNOWN_TYPES:
            raise InvalidInputError(
                f"A1111 does not act on the tag {shown(tag.text)}.",
                hint=f"Write it in lower case: <{tag.type.lower()}:…>.",
                field=at,
            )
        elif tag.type not in syntax.LORA_TYPES:
            out.warnings.append(f"A1111 knows no tag of the kind {shown(tag.text)}.")
        else:
            name, weights, model = _meant(tag, at, resolve, is_name)
            if not fits(model, at):
                texts[tag.text] = ""
                continue
            listed = show(model)
            if listed != name:
                texts[tag.text] = syntax.renamed(tag, listed, weights)
            present.add(listed)
            out.loras[listed] = model
    return syntax.replaced(text, texts), present


def knows_lora(cache: ModelCache, name: str) -> bool:
    """Tell whether a LoRA is called so, by what is known: a scan of the volume takes its time."""
    try:
        return cache.find(Kind.LORA, name) is not None or any(
            model.alias == name for model in aliased(cache)
        )
    except ModelNotFoundError:
        return True  # Several are.


def lora_by_name(cache: ModelCache, ensure: Callable[[str], CachedModel], name: str) -> CachedModel:
    """Return the LoRA that a tag means: a file's name, or the name that its training gave it.

    Raises:
        ModelNotFoundError: no LoRA has that name; near matches in the hint.
        InvalidInputError: several have it as their alias; A1111 would apply none of them.
    """
    # By what is known: to look for a file of that name anew takes a scan of the volume.
    is_file = cache.find(Kind.LORA, name) is not None
    found = [] if is_file else [model for model in aliased(cache) if model.alias == name]
    if len(found) > 1:
        files = ", ".join(f"`{model.name}`" for model in found)
        raise InvalidInputError(
            f"The LoRA name {shown(name)} means several files: {files}.",
            hint="Write the file's name.",
        )
    return ensure(found[0].name if found else name)


def aliased(cache: ModelCache) -> list[CachedModel]:
    """Return the LoRAs with what their headers say; a broken file cannot be meant by an alias."""
    found = []
    for model in cache.models(Kind.LORA):
        try:
            found.append(cache.inspected(model))
        except (ModelCorruptError, ModelUnsafeError, ModelIncompatibleError):
            continue
    return found


def mentions(job: Generation, ref: ModelRef, name: str, field: str) -> list[str]:
    """Return a warning if no prompt has the embedding's name, which is how A1111 applies it.

    Raises:
        InvalidInputError: a prompt has the name that was asked for, and the file got another one,
            so that A1111 would apply another file or none.
    """
    hires = (job.hr_prompt, job.hr_negative_prompt) if isinstance(job, Txt2Img) else ()
    words = " ".join((job.prompt, job.negative_prompt, *hires)).lower()
    has_name = _has_word(words, name)
    if ref.name not in {None, name} and not has_name and _has_word(words, ref.label):
        raise InvalidInputError(
            f"`{field}` is called `{name}` here, and the prompt says `{ref.name}`.",
            hint=f"Write `{name}` in the prompt, or give the embedding a name that is free.",
            field=field,
        )
    return [] if has_name else [f"The prompt does not mention the embedding `{name}`."]


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word.lower())}(?!\w)", text) is not None
