"""One argument of a script, judged by what A1111 tells of it. Pure.

Source: A1111 1.10.1, modules/scripts.py, what its /script-info answers (recorded: get_script_info).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from schemas.errors import InvalidInputError, shown

Arguments = Sequence[Mapping[str, Any]]
"""What A1111 tells of each argument: `label` and `value`, `minimum` and `maximum`, `choices`."""


def require_count(given: Sequence[object], most: int, field: str) -> None:
    """Refuse more arguments than a script takes.

    Raises:
        InvalidInputError: there are more than `most`.
    """
    if len(given) > most:
        raise InvalidInputError(
            f"`{field}` has {len(given)} arguments; the script takes {most}.", field=field
        )


def fitting(value: Any, told: Mapping[str, Any], field: str, *, by_index: bool = False) -> Any:
    """Return one argument as A1111 is to get it: of the type of its default, and in its range.

    Args:
        value: what the caller sent.
        told: what A1111 tells of the argument.
        field: its path in the request, which errors name.
        by_index: whether A1111 takes a choice as its number in the list.

    Raises:
        InvalidInputError: it is none.
    """
    default, choices = told.get("value"), told.get("choices")
    if not told.get("label"):
        return default  # A text on the page, which nobody reads.
    if by_index and choices and type(value) is int and 0 <= value < len(choices):
        return value
    if choices is not None:
        several = isinstance(default, list)
        found = value if several and isinstance(value, list) else [value]
        if several != isinstance(value, list) or any(entry not in choices for entry in found):
            raise unfit(value, f"one of {', '.join(map(str, choices[:40]))}", field)
        return choices.index(value) if by_index else value
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise unfit(value, "true or false", field)
        return value
    return _number(value, told, field)


def _number(value: Any, told: Mapping[str, Any], field: str) -> float:
    """Return a number in its range. What is free text is for its script to judge."""
    least, most = told.get("minimum"), told.get("maximum")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if least is None or most is None or not is_number or not least <= value <= most:
        raise unfit(value, f"a number from {least} to {most}", field)
    # Of a slider that begins at 1, only its step tells whether it takes 1.5.
    whole = isinstance(told["value"], int) and float(told.get("step") or 1).is_integer()
    if whole and value != int(value):
        raise unfit(value, "an integer", field)
    return int(value) if whole else float(value)


def unfit(value: object, wanted: str, field: str) -> InvalidInputError:
    """Return the error for a value that is not what an argument takes."""
    return InvalidInputError(f"`{field}` takes {wanted}, not {shown(value)}.", field=field)
