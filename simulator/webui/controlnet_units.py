"""ControlNet's units as a request gives them: coerced, refused, and written into the infotext.

A unit that breaks a rule here fails the whole request with 500, before anything is drawn.

Source: sd-webui-controlnet v1.1.455 (56cec5b), internal_controlnet/args.py; the texts were recorded
from it (cn_weight_3, cn_module_null, cn_guidance_bad, …).
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simulator.webui import catalogue, coerce
from simulator.webui.failure import WebuiError

_ALIASES = {"guidance": "guidance_end", "lowvram": "low_vram", "input_image": "image"}
_CONTROL_MODES = {
    "BALANCED": "Balanced",
    "PROMPT": "My prompt is more important",
    "CONTROL": "ControlNet is more important",
}
_RESIZE_MODES = {
    "RESIZE": "Just Resize",
    "INNER_FIT": "Crop and Resize",
    "OUTER_FIT": "Resize and Fill",
}
_RESIZE_ALIASES = {
    "Inner Fit (Scale to Fit)": "Crop and Resize",
    "Outer Fit (Shrink to Fit)": "Resize and Fill",
    "Scale to Fit (Inner Fit)": "Crop and Resize",
    "Envelope (Outer Fit)": "Resize and Fill",
}
# What stands in for a slider that a module does not have.
_NO_SLIDER = {"value": 0.5, "min": 0.0, "max": 1.0}


@dataclass(frozen=True)
class Unit:
    """One enabled unit."""

    module: str
    model: str
    weight: float
    image: Any
    mask: Any
    resize_mode: str
    processor_res: float
    threshold_a: float
    threshold_b: float
    guidance_start: float
    guidance_end: float
    pixel_perfect: bool
    control_mode: str
    save_detected_map: bool

    def infotext(self) -> str:
        """Return what the infotext says of the unit: what was asked for, whether it worked or not."""
        shown = {
            "Module": self.module,
            "Model": self.model,
            "Weight": self.weight,
            "Resize Mode": self.resize_mode,
            "Processor Res": self.processor_res,
            "Threshold A": self.threshold_a,
            "Threshold B": self.threshold_b,
            "Guidance Start": self.guidance_start,
            "Guidance End": self.guidance_end,
            "Pixel Perfect": self.pixel_perfect,
            "Control Mode": self.control_mode,
        }
        return ", ".join(f"{label}: {value}" for label, value in shown.items())


@functools.cache
def modules() -> dict[str, dict[str, Any]]:
    """Return the preprocessors by each of their two names."""
    found = catalogue.load("controlnet")["modules"]
    return {entry["name"]: entry for entry in found} | {entry["label"]: entry for entry in found}


def parse(script: Mapping[str, Any], slots: int) -> list[Unit]:
    """Return the enabled units of a request's entry for the script.

    Args:
        script: `{"args": […]}`; what is no object among the arguments is passed over.
        slots: how many arguments count; the rest is dropped in silence.

    Raises:
        WebuiError: a unit that is refused, or `args` that is no list.
    """
    if "args" not in script:
        return []
    arguments = script["args"]
    if isinstance(arguments, dict) and arguments:
        raise WebuiError("KeyError", "0")
    if not isinstance(arguments, list | str | dict):
        kind = "NoneType" if arguments is None else type(arguments).__name__
        raise WebuiError("TypeError", f"object of type {kind!r} has no len()")
    units = [_parsed(one) for one in list(arguments)[:slots] if isinstance(one, dict)]
    return [unit for unit in units if unit is not None]


def _parsed(given: Mapping[str, Any]) -> Unit | None:
    values = dict(given)
    for alias, name in _ALIASES.items():
        if alias in values:
            if name in values:
                text = f"Conflict of field '{alias}' and '{name}'"
                raise WebuiError("AssertionError", text)
            values[name] = values.pop(alias)
    if values.get("mask_image") is not None:
        if values.get("mask") is not None:
            raise WebuiError("ValueError", "Cannot specify both 'mask' and 'mask_image'!")
        values["mask"] = values["mask_image"]
    reader = _Reader(values)
    unit = reader.unit()
    if reader.errors:
        plural = "s" if len(reader.errors) > 1 else ""
        heading = f"{len(reader.errors)} validation error{plural} for ControlNetUnit"
        raise WebuiError("ValidationError", "\n".join([heading, *reader.errors]))
    return unit if reader.enabled else None


class _Reader:
    """Reads one unit's fields, and gathers what is wrong with them."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self.errors: list[str] = []
        self.enabled = self._typed("enabled", "boolean", default=False)

    def unit(self) -> Unit:
        module = self._values.get("module", "none")
        if not isinstance(module, str) or module not in modules():
            self._refuse("module", f"module({module}) not found in supported modules.")
            module = "none"
        sliders = _sliders(module)
        model = self._values.get("model", "None")
        if model is None:
            self._refuse("model", "none is not an allowed value", "type_error.none.not_allowed")
        start, end = self._bound("guidance_start", 0.0, 1.0), self._bound("guidance_end", 1.0, 1.0)
        if not self.errors and start > end:
            self._refuse("__root__", f"guidance_start({start}) > guidance_end({end})")
        return Unit(
            module=module,
            model=str(model),
            weight=self._bound("weight", 1.0, 2.0),
            image=self._values.get("image"),
            mask=self._values.get("mask"),
            resize_mode=self._resize_mode(),
            processor_res=self._slid("processor_res", "integer", sliders[0]),
            threshold_a=self._slid("threshold_a", "number", sliders[1]),
            threshold_b=self._slid("threshold_b", "number", sliders[2]),
            guidance_start=start,
            guidance_end=end,
            pixel_perfect=self._typed("pixel_perfect", "boolean", default=False),
            control_mode=self._control_mode(),
            save_detected_map=self._typed("save_detected_map", "boolean", default=True),
        )

    def _refuse(self, name: str, message: str, kind: str = "value_error") -> None:
        self.errors.append(f"{name}\n  {message} (type={kind})")

    def _typed(self, name: str, kind: str, *, default: Any) -> Any:
        value = self._values.get(name, default)
        if value is None:
            self._refuse(name, "none is not an allowed value", "type_error.none.not_allowed")
            return default
        try:
            return coerce.option({"type": kind}, value)
        except ValueError as error:
            self.errors.append(f"{name}\n  {error}")
            return default

    def _bound(self, name: str, default: float, most: float) -> float:
        value = float(self._typed(name, "number", default=default))
        if value > most:
            text = f"ensure this value is less than or equal to {most}"
            self._refuse(name, text, f"value_error.number.not_le; limit_value={most}")
        if value < 0:
            text = "ensure this value is greater than or equal to 0.0"
            self._refuse(name, text, "value_error.number.not_ge; limit_value=0.0")
        return value

    def _slid(self, name: str, kind: str, slider: Mapping[str, Any]) -> float:
        """Return a slider's value; one out of its range becomes the default, in silence."""
        value = self._typed(name, kind, default=-1)
        within = slider["min"] <= value <= slider["max"]
        chosen: float = value if within else slider["value"]
        return chosen

    def _resize_mode(self) -> str:
        value = self._values.get("resize_mode", "Crop and Resize")
        if not isinstance(value, str):
            self._refuse("resize_mode", "", "assertion_error")
            return ""
        mode = _RESIZE_ALIASES.get(value, value)
        if mode not in _RESIZE_MODES.values():
            self._refuse("resize_mode", f"{value!r} is not a valid ResizeMode")
        return mode

    def _control_mode(self) -> str:
        value = self._values.get("control_mode", "Balanced")
        if value not in _CONTROL_MODES.values():
            permitted = ", ".join(repr(mode) for mode in _CONTROL_MODES.values())
            listed = ", ".join(
                f"<ControlMode.{name}: {mode!r}>" for name, mode in _CONTROL_MODES.items()
            )
            text = f"value is not a valid enumeration member; permitted: {permitted}"
            self._refuse("control_mode", text, f"type_error.enum; enum_values=[{listed}]")
        return str(value)


def _sliders(module: str) -> list[Mapping[str, Any]]:
    """Return the three sliders of a module.

    "none" lists a resolution, and the infotext shows 512 for it; modules without any show 0.5.
    """
    found = [*modules()[module]["sliders"]]
    return [found[n] if n < len(found) else _NO_SLIDER for n in range(3)]
