"""The log."""

from typing import Literal

from pydantic import Field

from schemas.sections.base import Section


class LogSettings(Section):
    """What is said."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="Least severe message that is logged."
    )
    prompts: bool = Field(
        False, description="Let prompts be read in the log, where they would appear in it."
    )
