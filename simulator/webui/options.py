"""The options: what was ever set, the defaults of the rest, and config.json.

Only what was set is in `data`; that is why an override of a key that was never set is not restored
after a job ("leak"): A1111 stores the old value only of keys that are in there.

Source: A1111 1.10.1, modules/options.py, and modules/processing.py, process_images.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from simulator.webui import catalogue, coerce
from simulator.webui.failure import WebuiError

# Texts on the settings page, not settings.
_NOT_SAVED = {"profiling_explanation", "sd_vae_explanation", "infotext_explanation"}
# Source: A1111 1.10.1, modules/shared_options.py, options with restrict_api.
_RESTRICTED = {"api_enable_requests", "api_forbid_local_requests", "api_useragent"}


class Options:
    """The program's settings; `options["eta_ddim"]` is what was set or else the default."""

    def __init__(
        self,
        file: Path,
        more: Mapping[str, dict[str, Any]] | None = None,
        hidden: Collection[str] = (),
    ) -> None:
        """Read `file` (config.json) if it exists; `save` writes it.

        `more` are options besides A1111's, by name, with their JSON schema; `hidden` are the names of
        some that an extension keeps and GET /options does not show.
        """
        self._file = file
        self._hidden = hidden
        self._schema: dict[str, dict[str, Any]] = {**catalogue.load("options"), **(more or {})}
        self.data: dict[str, Any] = {}
        if file.exists():
            self.data = json.loads(file.read_text("utf-8"))

    def __getitem__(self, key: str) -> Any:
        if key in self.data:
            return self.data[key]
        return self._schema[key].get("default")

    def set(self, key: str, value: Any) -> bool:
        """Set an option as the API does and return whether it changed.

        Raises:
            WebuiError: KeyError, for an unknown key with a value.
        """
        if self.data.get(key) == value:
            return False
        if key not in self._schema and key not in self._hidden:
            raise WebuiError("KeyError", repr(key))
        if key in _NOT_SAVED | _RESTRICTED:
            return False
        self.data[key] = value
        return True

    def stored(self, keys: list[str]) -> dict[str, Any]:
        """Return the values to restore after a job: of `keys`, only those that were set before."""
        return {key: self.data[key] for key in keys if key in self.data}

    def save(self) -> None:
        """Write config.json."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(self.data, indent=4), "utf-8")

    def shown(self) -> dict[str, Any]:
        """Return what GET /options answers: all options, those that were set coerced to their type.

        Raises:
            WebuiError: ValidationError, when a value that was set has a type that does not fit.
        """
        shown: dict[str, Any] = {}
        errors = []
        for key, schema in self._schema.items():
            if key not in self.data:
                shown[key] = schema.get("default")
                continue
            try:
                shown[key] = coerce.option(schema, self.data[key])
            except ValueError as error:
                errors.append(f"response -> {key}\n  {error}")
        if errors:
            plural = "s" if len(errors) > 1 else ""
            heading = f"{len(errors)} validation error{plural} for Options"
            raise WebuiError("ValidationError", "\n".join([heading, *errors]))
        return shown

    def cast(self, key: str, value: Any) -> Any:
        """Return `value`, read from an infotext, as the type of the option's default.

        Source: A1111 1.10.1, modules/options.py, cast_value.
        """
        example = self._schema[key].get("default")
        if example is None:
            example = self[key]
        if example is None or value is None:
            return None
        if isinstance(example, bool) and value == "False":
            return False
        try:
            return type(example)(value)
        except ValueError as error:
            raise WebuiError("ValueError", str(error)) from error
