"""What A1111's parser of prompts can bear. Pure."""

import re

from schemas.errors import InvalidInputError

# A1111 strips these before it looks at a prompt, while `enable_prompt_comments` is on (the default).
# Source: A1111 1.10.1, modules/processing_scripts/comments.py.
COMMENT = re.compile(r"#[^\n]*")

# What A1111 pays for dearly, and how many of it a prompt may have. Its parser of brackets takes time
# with the third power of their number: `a castle, (soft light:1.2), ` took lark 1.1.2 with A1111's
# grammar 1.4 s fifty times over, 9 s a hundred times, 56 s and 600 MB two hundred times. Each AND is
# one more picture to compute in every step.
# Source: A1111 1.10.1, modules/prompt_parser.py, schedule_parser and get_multicond_prompt_list.
_COSTLY = (
    ("brackets", re.compile(r"(?<!\\)[()\[\]]"), 300),
    ("colons", re.compile(":"), 2000),
    ("ANDs", re.compile(r"\bAND\b"), 32),
)


def require_readable(prompt: str, field: str) -> None:
    """Refuse a prompt that would hold A1111 for minutes, in which it can be neither asked nor stopped.

    Raises:
        InvalidInputError: it does; `field` names the prompt.
    """
    text = COMMENT.sub("", prompt)
    for what, costly, most in _COSTLY:
        number = sum(1 for _ in costly.finditer(text))
        if number > most:
            raise InvalidInputError(
                f"`{field}` has {number} {what}; A1111 reads {most} in a bearable time.",
                hint="Emphasize less.",
                field=field,
            )
