"""Lists of models as people write them: one a line, for preloading and `pull -f`.

    # kind       reference                                      name=… and hash=… where wanted
    checkpoint   hf:org/repo/model.safetensors@main             name=base
    lora         https://civitai.com/models/123?modelVersionId=456
    vae          s3://bucket/vae.safetensors                    hash=6c5d…

Empty lines and what follows a `#` at the start of a line or after a space do not count.
"""

import re
from collections.abc import Iterator

from schemas.errors import InvalidInputError, shown
from schemas.model_ref import Kind, ModelRef, as_fields, parse_ref

_COMMENT = re.compile(r"(^|\s)#.*$")
_OPTIONS = ("name", "hash")


def parse(text: str) -> tuple[ModelRef, ...]:
    """Return the references that the lines of `text` stand for.

    Raises:
        InvalidInputError: a line stands for none; the message names it by number.
    """
    return tuple(_references(text))


def _references(text: str) -> Iterator[ModelRef]:
    for number, line in enumerate(text.splitlines(), start=1):
        words = _COMMENT.sub("", line).split()
        if words:
            yield _reference(words, f"line {number}")


def _reference(words: list[str], where: str) -> ModelRef:
    kind, *rest = words
    if kind not in list(Kind) or not rest:
        raise InvalidInputError(
            f"{where} is not `KIND REFERENCE`: {shown(' '.join(words))}.",
            hint=f"The kinds are: {', '.join(Kind)}.",
            field=where,
        )
    fields = as_fields(rest[0], Kind(kind))
    for word in rest[1:]:
        option, _, value = word.partition("=")
        if option not in _OPTIONS or not value:
            raise InvalidInputError(
                f"{where}: {shown(word)} is neither name=… nor hash=….", field=where
            )
        fields[option] = value
    return parse_ref(fields, Kind(kind), where)
