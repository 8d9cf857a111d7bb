"""What ControlNet's own routes answer.

Source: sd-webui-controlnet v1.1.455 (56cec5b), scripts/api.py; recorded from it on A1111 1.10.1.
"""

from typing import Any

from PIL import Image

from simulator.webui import catalogue, coerce, controlnet_units, pictures
from simulator.webui.controlnet import DEFAULT_UNITS, UNIT_COUNT, ControlNet
from simulator.webui.failure import HttpError, InvalidRequestError

Fields = dict[str, Any]

API_VERSION = 3
_MAP_STEP = 64
_NOT_DETECTED = {"clip_vision", "revision_clipvision", "revision_ignore_prompt", "ip-adapter-auto"}
_TYPE_FILTERS = {
    "instructp2p": ("ip2p",),
    "segmentation": ("seg",),
    "normalmap": ("normal",),
    "t2i-adapter": ("t2i_adapter", "t2iadapter", "t2ia"),
    "ip-adapter": ("ip_adapter", "ipadapter"),
    "openpose": ("densepose",),
    "instant-id": ("instant_id", "instantid"),
    "scribble": ("sketch",),
    "tile": ("blur",),
}


def models(extension: ControlNet, *, update: bool) -> Fields:
    """Answer model_list."""
    if update:
        extension.update()
    return {"model_list": list(extension.models)}


def modules(*, alias_names: bool) -> Fields:
    """Answer module_list."""
    key = "label" if alias_names else "name"
    found = catalogue.load("controlnet")["modules"]
    return {
        "module_list": [entry[key] for entry in found],
        "module_detail": {
            entry[key]: {"model_free": entry["model_free"], "sliders": entry["sliders"]}
            for entry in found
        },
    }


def types(extension: ControlNet) -> Fields:
    """Answer control_types."""
    found = catalogue.load("controlnet")["types"]
    return {"control_types": {name: _type(extension, name, entry) for name, entry in found.items()}}


def _type(extension: ControlNet, name: str, entry: Fields) -> Fields:
    words = (name.lower(), *_TYPE_FILTERS.get(name.lower(), ()))
    fitting = [
        model
        for model in extension.models
        if name == "All" or any(word in model.lower() for word in words)
    ]
    default = next((model for model in fitting if "11" in model.partition("[")[0]), None)
    return {
        "module_list": entry["module_list"],
        "model_list": ["None", *fitting],
        "default_option": entry["default_option"],
        "default_model": "None" if name == "All" else default or [*fitting, "None"][0],
    }


def settings(extension: ControlNet) -> Fields:
    """Answer settings: the option, which counts only from the next start on."""
    return {UNIT_COUNT: extension.options.data.get(UNIT_COUNT, DEFAULT_UNITS)}


def detect(extension: ControlNet, body: Fields) -> Fields:
    """Answer detect.

    Raises:
        HttpError: 422 for the module or no image, 500 for a picture that cannot be read.
        WebuiError: the module's weights are not there.
        InvalidRequestError: a list that is none.
    """
    wanted = _typed(body, "controlnet_module", "string", "none")
    module = controlnet_units.modules().get(wanted)
    images = _texts(body, "controlnet_input_images")
    masks = _texts(body, "controlnet_masks")
    if module is None:
        raise HttpError(422, "Module not available")
    name = module["name"]
    if name in _NOT_DETECTED:
        raise HttpError(422, "Module not supported")
    if not images:
        raise HttpError(422, "No image selected")
    if "inpaint" in name and len(masks) != len(images):
        raise HttpError(422, f"Preprocessor {name} requires `controlnet_masks` param.")
    found = [extension.detected(name, extension.picture(text), None) for text in images]
    if name != "none":
        resolution = _typed(body, "controlnet_processor_res", "integer", -1)
        found = [_scaled(image, resolution) for image in found]
    return {
        "info": "Success",
        "images": [pictures.encode(image, extension.options) for image in found],
    }


def poses(extension: ControlNet, body: Any) -> Fields:
    """Answer render_openpose_json: an empty canvas for each, as no pose is drawn here.

    Raises:
        InvalidRequestError: something is no list of poses.
    """
    if not isinstance(body, list | None):
        raise InvalidRequestError([_no_list("pose_data")])
    if not body:
        return {"info": "No pose data detected."}
    sizes = [
        tuple(
            _typed(coerce.mapping(pose), side, "integer", None)
            for side in ("canvas_width", "canvas_height")
        )
        for pose in body
    ]
    canvases = [Image.new("RGB", (max(1, width), max(1, height))) for width, height in sizes]
    encoded = [pictures.encode(canvas, extension.options) for canvas in canvases]
    return {"images": encoded, "info": "Success"}


def _scaled(image: Image.Image, resolution: int) -> Image.Image:
    """Return a map whose shorter side is about `resolution` pixels, 512 if it is out of range."""
    wanted = resolution if 64 <= resolution <= 2048 else 512
    factor = wanted / min(image.size)
    size = [max(1, round(side * factor / _MAP_STEP)) * _MAP_STEP for side in image.size]
    return image.resize((size[0], size[1]))


def _texts(body: Fields, name: str) -> list[str]:
    value = body.get(name, [])
    if isinstance(value, list):
        return value
    raise InvalidRequestError([_no_list(name)])


def _no_list(name: str) -> Fields:
    return {"loc": ["body", name], "msg": "value is not a valid list", "type": "type_error.list"}


def _typed(body: Fields, name: str, kind: str, default: Any) -> Any:
    """Return a field as pydantic takes it; one without a default must be there.

    Raises:
        InvalidRequestError: it has another type, or is missing.
    """
    try:
        value = coerce.option({"type": kind}, body.get(name, default))
    except ValueError as error:
        message, _, kind = str(error).rstrip(")").partition(" (type=")
        entry = {"loc": ["body", name], "msg": message, "type": kind}
        raise InvalidRequestError([entry]) from error
    if value is None:
        entry = {"loc": ["body", name], "msg": "field required", "type": "value_error.missing"}
        raise InvalidRequestError([entry])
    return value
