"""Prompts: styles, comments, and the `<lora:…>` tags that are taken out before the text is read.

Source: A1111 1.10.1, modules/styles.py, modules/extra_networks.py,
modules/processing_scripts/comments.py.
"""

import csv
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_TAG = re.compile(r"<(\w+):([^>]+)>")
_WHOLE_LINE_COMMENT = re.compile(r"(^|\n)#[^\n]*(\n|$)")
_END_OF_LINE_COMMENT = re.compile(r"#[^\n]*(\n|$)")


@dataclass(frozen=True)
class Style:
    """A style: texts that are put around, or behind, a prompt."""

    name: str
    prompt: str
    negative_prompt: str


@dataclass(frozen=True)
class Tag:
    """The arguments of one tag, `<name:a:b:c=d>`: those without `=` in order, those with it by name."""

    positional: tuple[str, ...]
    named: dict[str, str]


def read_styles(files: Iterable[Path]) -> dict[str, Style]:
    """Return the styles in CSV files; of two with one name the later counts."""
    styles = {}
    for file in files:
        if not file.exists():
            continue
        with file.open(encoding="utf-8-sig", newline="") as lines:
            for row in csv.DictReader(lines, skipinitialspace=True):
                name = row.get("name")
                if name and not name.startswith("#"):
                    prompt = row["prompt"] if "prompt" in row else row.get("text")
                    styles[name] = Style(name, prompt or "", row.get("negative_prompt") or "")
    return styles


def with_styles(prompt: str, texts: Iterable[str]) -> str:
    """Return `prompt` with each style text around it (at `{prompt}`) or behind it."""
    for text in texts:
        if "{prompt}" in text:
            prompt = text.replace("{prompt}", prompt)
        else:
            prompt = ", ".join(part for part in (prompt.strip(), text.strip()) if part)
    return prompt


def without_comments(text: str) -> str:
    """Return `text` without what stands between a `#` and the end of its line."""
    text = _WHOLE_LINE_COMMENT.sub("\n", text)
    return _END_OF_LINE_COMMENT.sub("\n", text)


def take_tags(prompt: str) -> tuple[str, dict[str, list[Tag]]]:
    """Return the prompt without its tags, and the tags by their first word, as written."""
    tags: dict[str, list[Tag]] = {}

    def found(match: re.Match[str]) -> str:
        positional, named = [], {}
        for item in match[2].split(":"):
            parts = item.split("=", 2)
            if len(parts) == 2:
                named[parts[0]] = parts[1]
            else:
                positional.append(item)
        tags.setdefault(match[1], []).append(Tag(tuple(positional), named))
        return ""

    return _TAG.sub(found, prompt), tags


def extract_styles(
    prompt: str, negative_prompt: str, styles: Iterable[Style]
) -> tuple[list[str], str, str]:
    """Return the names of the styles that a finished prompt carries, and both prompts without them.

    Source: A1111 1.10.1, modules/styles.py, extract_styles_from_prompt.
    """
    remaining = [style for style in styles if style.prompt or style.negative_prompt]
    extracted: list[str] = []
    while True:
        for style in remaining:
            bare = _without_style(prompt, style.prompt)
            bare_negative = _without_style(negative_prompt, style.negative_prompt)
            if bare is not None and bare_negative is not None:
                extracted.append(style.name)
                prompt, negative_prompt = bare, bare_negative
                remaining.remove(style)
                break
        else:
            return extracted[::-1], prompt, negative_prompt


def _without_style(prompt: str, text: str) -> str | None:
    """Return `prompt` as it was before the style `text` was put to it, or None if it was not."""
    if not text:
        return prompt
    prompt = prompt.strip()
    text = text.strip()
    if "{prompt}" in text:
        left, _, right = text.partition("{prompt}")
        if prompt.startswith(left) and prompt.endswith(right) and len(prompt) >= len(left + right):
            return prompt[len(left) : len(prompt) - len(right)]
        return None
    if not prompt.endswith(text):
        return None
    return prompt.removesuffix(text).removesuffix(", ")
