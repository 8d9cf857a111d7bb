"""ControlNet's units: every field of the extension's, and the ways in which callers write them. Pure.

    {"controlnet_args": [unit, …]}                                RandomSeed
    {"alwayson_scripts": {"controlnet": {"args": [unit, …]}}}     A1111's own, in any case

Both mean the same. What the extension would take in silence for something else is refused or told.

Source: sd-webui-controlnet v1.1.455 (56cec5b), internal_controlnet/args.py and scripts/enums.py.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from schemas.errors import InvalidInputError, shown
from schemas.model_ref import Kind, ModelRef, as_fields

FIELD = "controlnet_args"
SCRIPT = "controlnet"
NONE = "none"
_MAX_SHOWN = 10
_IMAGE = (
    'an image is base64, a data URI or an https URL; with its mask {"image", "mask"} or [image, mask];'
    ' several images are written as [{"image": "…"}, …]'
)

ControlMode = Literal["Balanced", "My prompt is more important", "ControlNet is more important"]
ResizeMode = Literal["Just Resize", "Crop and Resize", "Resize and Fill"]

# By number, as other clients write them; the extension itself fails at a number
# (recorded: cn_control_mode_int, cn_resize_mode_int).
_CONTROL_MODES = ("Balanced", "My prompt is more important", "ControlNet is more important")
_RESIZE_MODES = ("Just Resize", "Crop and Resize", "Resize and Fill")
_RESIZE_ALIASES = {
    "Inner Fit (Scale to Fit)": "Crop and Resize",
    "Outer Fit (Shrink to Fit)": "Resize and Fill",
    "Scale to Fit (Inner Fit)": "Crop and Resize",
    "Envelope (Outer Fit)": "Resize and Fill",
}
_ALIASES = {
    "input_image": "image",
    "lowvram": "low_vram",
    "guidance": "guidance_end",
    "mask_image": "mask",
}
# Of the extension's page: folders on the server, and what a page alone needs. Their defaults say nothing.
_OF_THE_PAGE: dict[str, object] = {
    "is_ui": False,
    "input_mode": "simple",
    "batch_images": None,
    "output_dir": "",
    "loopback": False,
    "batch_mask_dir": None,
    "animatediff_batch": False,
    "batch_modifiers": [],
    "batch_image_files": [],
    "batch_keyframe_idx": None,
    # It would be unpickled by torch.load.
    "ipadapter_input": None,
}
_SHORT_HASH = re.compile(r"(.+) \[([0-9a-f]{8})\]", re.DOTALL)

# What a model's name tells of its preprocessor; the first that is in the name. Where RandomSeed's page
# offers several, the first of them.
_MODULES = (
    ("lineart_anime", "lineart_anime"),
    ("lineart", "lineart"),
    ("canny", "canny"),
    ("mlsd", "mlsd"),
    ("depth", "depth"),
    ("normal", "normal_bae"),
    ("inpaint", "inpaint"),
    ("openpose", "openpose"),
    ("scribble", "scribble_pidinet"),
    ("softedge", "softedge_hed"),
    ("tile", "tile_resample"),
    ("shuffle", "shuffle"),
    ("ip2p", NONE),
    ("qrcode", NONE),
    ("grcode", NONE),  # as that page spells it
)
_SEGMENTATION = re.compile(r"(^|[^a-z])seg([^a-z]|$|mentation)")


def _numbered(names: Sequence[str], aliases: Mapping[str, str]) -> BeforeValidator:
    def named(value: object) -> object:
        number = int(value) if isinstance(value, str) and value.isdecimal() else value
        if isinstance(number, int) and not isinstance(number, bool) and 0 <= number < len(names):
            return names[number]
        return aliases.get(value, value) if isinstance(value, str) else value

    return BeforeValidator(named)


class UnitPicture(BaseModel):
    """What a unit looks at. Both are base64, a data URI or an https URL, never a path."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    image: str = Field(min_length=1)
    mask: str | None = None


def _pictures(value: object) -> object:
    if isinstance(value, str):
        return [{"image": value}] if value else []
    if isinstance(value, dict):
        return [value] if any(value.values()) else []
    if not isinstance(value, list | tuple):
        raise ValueError(_IMAGE)  # noqa: TRY004 - what pydantic takes for the caller's mistake
    if all(isinstance(one, dict | UnitPicture) for one in value):
        return value
    if len(value) > 2 or not all(isinstance(one, str | None) for one in value) or not value[0]:
        raise ValueError(_IMAGE)
    return [dict(zip(("image", "mask"), value, strict=False))]


Pictures = Annotated[
    tuple[UnitPicture, ...],
    BeforeValidator(
        _pictures, json_schema_input_type=str | UnitPicture | list[UnitPicture] | list[str]
    ),
]
Model = Annotated[
    ModelRef,
    BeforeValidator(
        lambda value: as_fields(value, Kind.CONTROLNET), json_schema_input_type=str | ModelRef
    ),
]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Slider = Annotated[float, Field(allow_inf_nan=False)]


class ControlNetUnit(BaseModel):
    """One ControlNet, what it looks at, and how much it says."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    enabled: bool = Field(True, description="The extension's own default is false.")
    module: str | None = Field(
        None,
        max_length=100,
        description="Preprocessor; without one it is taken from the model's name.",
    )
    model: Model | None = Field(None, description="A name, or a reference that is fetched.")
    weight: float = Field(1.0, ge=0, le=2, allow_inf_nan=False)
    image: Pictures = Field((), description="Without one, img2img's init image.")
    mask: str | None = None
    resize_mode: Annotated[ResizeMode, _numbered(_RESIZE_MODES, _RESIZE_ALIASES)] = (
        "Crop and Resize"
    )
    low_vram: bool = False
    processor_res: int = Field(-1, description="Pixels; -1 is the module's default.")
    threshold_a: Slider = -1
    threshold_b: Slider = -1
    guidance_start: Share = 0.0
    guidance_end: Share = 1.0
    pixel_perfect: bool = False
    control_mode: Annotated[ControlMode, _numbered(_CONTROL_MODES, {})] = "Balanced"
    inpaint_crop_input_image: bool = True
    hr_option: Literal["Both", "Low res only", "High res only"] = "Both"
    save_detected_map: bool = Field(True, description="Whether the answer ends with its map.")
    advanced_weighting: list[Slider] | None = None
    effective_region_mask: str | None = None
    pulid_mode: Literal["Fidelity", "Extremely style"] = "Fidelity"
    union_control_type: Literal[
        "OpenPose",
        "Depth",
        "Soft Edge",
        "Hard Edge",
        "Normal Map",
        "Segmentation",
        "Unknown",
    ] = "Unknown"

    _at: str = PrivateAttr(FIELD)
    _short_hash: str = PrivateAttr("")

    @property
    def at(self) -> str:
        """The path of the unit in the request."""
        return self._at

    @property
    def short_hash(self) -> str:
        """The 8 hex digits of "name [30d35062]", as A1111 lists models; empty without."""
        return self._short_hash

    @property
    def pictures(self) -> tuple[UnitPicture, ...]:
        """The pictures, the one mask of the unit with the only one."""
        if self.mask and len(self.image) == 1 and not self.image[0].mask:
            return (self.image[0].model_copy(update={"mask": self.mask}),)
        return self.image

    @model_validator(mode="before")
    @classmethod
    def _respell(cls, value: Any) -> Any:
        """Take every spelling; null and nothing count as not given."""
        if not isinstance(value, dict):
            return value
        given = {name: entry for name, entry in value.items() if entry is not None and entry != ""}
        for alias, name in _ALIASES.items():
            if alias in given and given.setdefault(name, given[alias]) != given.pop(alias):
                raise ValueError(f"`{alias}` and `{name}` mean the same, and say different things")
        for name, default in _OF_THE_PAGE.items():
            if given.get(name, default) not in (default, [], "", None):
                raise ValueError(f"`{name}` is not taken here")
        for name in ("model", "module"):
            asked = given.get(name)
            if isinstance(asked, str) and asked.lower() == NONE:
                given[name] = NONE if name == "module" else None
        return given

    @model_validator(mode="after")
    def _has_an_order(self) -> "ControlNetUnit":
        if self.guidance_start > self.guidance_end:
            raise ValueError("`guidance_start` is after `guidance_end`")
        if self.mask and not self.image:
            raise ValueError("`mask` needs `image`")
        if self.mask and len(self.image) > 1:
            raise ValueError("with several images, each brings its own `mask`")
        return self


_KNOWN = ControlNetUnit.model_fields.keys() | _ALIASES.keys() | _OF_THE_PAGE.keys()


def taken(fields: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of a request with all units in `controlnet_args`, typed, and warnings.

    Raises:
        InvalidInputError: a unit is wrong, or they are given in both places.
    """
    scripts = fields.get("alwayson_scripts")
    scripts = scripts if isinstance(scripts, dict) else {}
    names = [name for name in scripts if name.lower() == SCRIPT]
    places = [(f"alwayson_scripts.{name}.args", _arguments(scripts[name], name)) for name in names]
    if FIELD in fields:
        places.append((FIELD, fields[FIELD]))
    places = [(at, entries) for at, entries in places if entries not in (None, [], {}, "")]
    rest = {name: entry for name, entry in fields.items() if name != FIELD}
    if names:  # Also without units: A1111 asks for the number of arguments, and fails at `null`.
        others = {name: entry for name, entry in scripts.items() if name not in names}
        rest["alwayson_scripts"] = others
    if not places:
        return rest, []
    if len(places) > 1:
        raise InvalidInputError(
            f"`{places[0][0]}` and `{places[1][0]}` are both given.", field=places[1][0]
        )
    warnings: list[str] = []
    rest[FIELD] = _units(*places[0], warnings)
    return rest, warnings


def _arguments(script: object, name: str) -> object:
    if script is None:
        return None
    if isinstance(script, dict):
        return script.get("args")
    field = f"alwayson_scripts.{name}"
    raise InvalidInputError(f'`{field}` must be an object: {{"args": [unit, …]}}.', field=field)


def _units(at: str, entries: object, warnings: list[str]) -> list[ControlNetUnit]:
    if not isinstance(entries, list):
        raise InvalidInputError(f"`{at}` must be a list of units.", field=at)
    # The extension passes over what is no object; clients put a true before the units.
    return [
        _unit(f"{at}[{index}]", entry, warnings)
        for index, entry in enumerate(entries)
        if not isinstance(entry, bool) and entry is not None
    ]


def _unit(at: str, entry: object, warnings: list[str]) -> ControlNetUnit:
    if not isinstance(entry, dict):
        raise InvalidInputError(f"`{at}` must be an object.", field=at)
    unknown = [shown(name) for name in entry if name not in _KNOWN]
    if unknown:
        warnings.append(f"`{at}`: unknown fields were left out: {', '.join(unknown[:_MAX_SHOWN])}.")
    named = _SHORT_HASH.fullmatch(entry["model"]) if isinstance(entry.get("model"), str) else None
    try:
        unit = ControlNetUnit.model_validate({**entry, "model": named[1]} if named else entry)
    except ValidationError as error:
        raise _invalid(at, error) from None
    unit._at = at  # noqa: SLF001 - of our own class
    unit._short_hash = named[2] if named else ""  # noqa: SLF001
    return unit


def _invalid(at: str, error: ValidationError) -> InvalidInputError:
    problems = [
        {
            "field": at + _path(problem["loc"]),
            "message": problem["msg"].removeprefix("Value error, "),
        }
        for problem in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    text = "; ".join(f"`{problem['field']}`: {problem['message']}" for problem in problems)
    return InvalidInputError(f"{text}.", field=problems[0]["field"], problems=problems)


def _path(loc: tuple[int | str, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)


def images(units: Sequence[ControlNetUnit]) -> dict[str, str]:
    """Return every image that units bring, by its path in the request."""
    found: dict[str, str] = {}
    for unit in units:
        if unit.enabled:
            found |= {at: text for at, text in _images(unit).items() if text is not None}
    return found


def _images(unit: ControlNetUnit) -> dict[str, str | None]:
    found = {f"{unit.at}.effective_region_mask": unit.effective_region_mask}
    for index, picture in enumerate(unit.pictures):
        at = f"{unit.at}.image" + (f"[{index}]" if len(unit.image) > 1 else "")
        found |= {at: picture.image, f"{at}.mask": picture.mask}
    return found


def with_images(
    units: Sequence[ControlNetUnit], replaced: Mapping[str, str]
) -> list[ControlNetUnit]:
    """Return `units` with other images, by their paths, as `images` names them."""
    return [_with_images(unit, _images(unit) | dict(replaced)) for unit in units]


def _with_images(unit: ControlNetUnit, found: Mapping[str, str | None]) -> ControlNetUnit:
    pictures = []
    for index, picture in enumerate(unit.pictures):
        at = f"{unit.at}.image" + (f"[{index}]" if len(unit.image) > 1 else "")
        both = {"image": found[at], "mask": found[f"{at}.mask"]}
        pictures.append(picture.model_copy(update=both))
    region = found[f"{unit.at}.effective_region_mask"]
    update: dict[str, Any] = {"image": tuple(pictures), "mask": None}
    update["effective_region_mask"] = region
    return unit.model_copy(update=update)


def module_of(model_name: str) -> str | None:
    """Return the preprocessor that goes with a model of this name, None if the name does not tell."""
    name = model_name.lower().replace("-", "_")
    if _SEGMENTATION.search(name):
        return "segmentation"
    return next((module for part, module in _MODULES if part in name), None)
