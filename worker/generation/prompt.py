"""A1111's extra-network tags, `<lora:name:0.8>`: read, checked and written. Pure.

Source: A1111 1.10.1, modules/extra_networks.py (`re_extra_net`, ExtraNetworkParams) and
extensions-builtin/Lora/extra_networks_lora.py (`activate`).
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from schemas.errors import InvalidInputError, shown
from schemas.model_ref import MAX_NAME_BYTES
from worker.child.parser import COMMENT

_TAG = re.compile(r"<(\w+):([^>]+)>")
LORA_TYPES = frozenset({"lora", "lyco"})  # `<lyco:…>` is an alias: recorded, lora_lyco
KNOWN_TYPES = LORA_TYPES | {"hypernet"}


@dataclass(frozen=True)
class Tag:
    """One tag: `<type:items[0]:items[1]:…>`."""

    type: str
    items: tuple[str, ...]
    text: str


def tags(prompt: str) -> list[Tag]:
    """Return the tags that A1111 would act upon, in order; those in a comment are not seen."""
    text = COMMENT.sub("", prompt)
    # Not beyond the last end of a tag: each unfinished one would be searched for its end.
    text = text[: text.rfind(">") + 1]
    return [Tag(match[1], tuple(match[2].split(":")), match[0]) for match in _TAG.finditer(text)]


def lora_tag(name: str, scale: float) -> str:
    """Return the tag that applies the LoRA `name` with `scale`."""
    return f"<lora:{name}:{scale:g}>"


def split_name(tag: Tag, known: Callable[[str], bool]) -> tuple[str, tuple[str, ...]]:
    """Return a LoRA tag's name and its weights, the name being the longest that is `known`.

    A colon in a name splits it in A1111; here the whole name is tried first, so that a tag written
    by hand for such a file works. An unknown name comes back as A1111 would read it.

    Raises:
        InvalidInputError: a weight is no number. A1111 would drop every LoRA of the prompt in
            silence (recorded: lora_bad_weight, lora_comma_weight). Whoever knows the prompt's
            field adds it.
    """
    for end in range(min(len(tag.items), MAX_NAME_BYTES), 0, -1):
        name = ":".join(tag.items[:end])
        if known(name) and _are_weights(tag.items[end:]):
            return name, tag.items[end:]
    weights = tag.items[1:]
    wrong = next((w for at, w in enumerate(weights) if not _is_weight(w, at)), None)
    if wrong is not None:
        raise InvalidInputError(
            f"The weight {shown(wrong)} in the tag {shown(tag.text)} is not a number.",
            hint="Write <lora:name:0.8>.",
        )
    return tag.items[0], weights


def _are_weights(items: tuple[str, ...]) -> bool:
    return all(_is_weight(item, position) for position, item in enumerate(items))


def _is_weight(item: str, position: int) -> bool:
    """Return whether A1111 takes `item`: te, unet, dyn in this order, or by these names."""
    key, equals, value = item.partition("=")
    if equals and key not in {"te", "unet", "dyn"}:
        return False
    text = value if equals else item
    try:
        if key == "dyn" or (not equals and position == 2):
            return int(text) > 0
        return math.isfinite(float(text))
    except ValueError:
        return False


def renamed(tag: Tag, name: str, weights: tuple[str, ...]) -> str:
    """Return the text of `tag` with another name."""
    return f"<{':'.join((tag.type, name, *weights))}>"


def replaced(prompt: str, texts: Mapping[str, str]) -> str:
    """Return `prompt` with the texts of tags replaced, all at once."""
    return _TAG.sub(lambda match: texts.get(match[0], match[0]), prompt) if texts else prompt


def with_tags(prompt: str, new: list[str]) -> str:
    """Return `prompt` with tags put before it, each followed by a space."""
    return " ".join([*new, prompt]) if new else prompt
