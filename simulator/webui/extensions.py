"""Two extensions of which only the page is simulated, ADetailer and ReActor, and the former's list of models.

They are listed with their arguments, which a request may then give, and do nothing to a picture.

Source: Bing-su/adetailer 36189cb, adetailer/ui.py, args.py and common.py; Gourieff/sd-webui-reactor,
scripts/reactor_faceswap.py and reactor_ui/; A1111 1.10.1, modules/scripts.py. Unverified against a live
server.
"""

from collections.abc import Sequence
from typing import Any

from simulator.webui import catalogue

ADETAILER, REACTOR = "adetailer", "reactor"
NAMES = (ADETAILER, REACTOR)

Fields = dict[str, Any]

MODELS_PATH = "/adetailer/v1/ad_model"
# Those that ADetailer fetches for itself.
_MODELS = (
    *("face_yolov8n.pt", "face_yolov8s.pt", "hand_yolov8n.pt"),
    *("person_yolov8n-seg.pt", "person_yolov8s-seg.pt", "yolov8x-worldv2.pt"),
    *("mediapipe_face_full", "mediapipe_face_short", "mediapipe_face_mesh"),
    "mediapipe_face_mesh_eyes_only",
)


def listed(installed: Sequence[str], scripts: list[str]) -> list[str]:
    """Return the scripts that a tab offers, with those of the extensions."""
    at = scripts.index("refiner")
    return [*scripts[:at], *installed, *scripts[at:]]


def script_info(installed: Sequence[str], upscalers: list[str]) -> list[Fields]:
    """Return what /script-info tells of their scripts, for both tabs."""
    arguments = {ADETAILER: _adetailer, REACTOR: _reactor}
    return [
        {"name": name, "is_alwayson": True, "is_img2img": tab, "args": arguments[name](upscalers)}
        for tab in (False, True)
        for name in installed
    ]


def paths(installed: Sequence[str]) -> Fields:
    """Return the part of the API's schema that tells their routes."""
    answer = {"description": "Successful Response", "content": {"application/json": {"schema": {}}}}
    told = {"get": {"summary": "Ad Model", "responses": {"200": answer}}}
    return {MODELS_PATH: told} if ADETAILER in installed else {}


def models() -> Fields:
    """Return what MODELS_PATH answers."""
    return {"ad_model": list(_MODELS)}


def _argument(label: str, value: Any = None, **more: Any) -> Fields:
    told = {"label": label, "value": value, "minimum": None, "maximum": None, "step": None}
    return {**told, "choices": None, **more}


def _slider(label: str, value: float, least: float, most: float, step: float) -> Fields:
    return _argument(label, value, minimum=least, maximum=most, step=step)


def _choice(label: str, value: str | None, choices: list[str]) -> Fields:
    return _argument(label, value, choices=choices)


def _adetailer(_upscalers: list[str]) -> list[Fields]:
    unit: Fields = catalogue.load("adetailer")
    later = {**unit, "ad_model": "None"}
    return [
        _argument("Enable ADetailer", False),
        _argument("Skip img2img", False),
        _argument("", unit),
        _argument("", later),
    ]


def _reactor(upscalers: list[str]) -> list[Fields]:
    genders = ["No", "Female Only", "Male Only"]
    restorers = [entry["name"] for entry in catalogue.load("lists")["face_restorers"]]
    return [
        _argument("Single Source Image"),
        _argument("ReActor", False),
        _argument("Comma separated face number(s); Example: 0,2,1", "0"),
        _argument("Comma separated face number(s); Example: 1,0,2", "0"),
        _choice("Model", "inswapper_128.onnx", ["inswapper_128.onnx"]),
        _choice("Restore Face", restorers[0], ["None", *restorers]),
        _slider("Restore Face Visibility", 1, 0, 1, 0.1),
        _argument("1. Restore Face -> 2. Upscale (-Uncheck- if you want vice versa)", True),
        _choice("Upscaler", "None", upscalers),
        _slider("Scale by", 1, 1, 8, 0.1),
        _slider("Upscaler Visibility (if scale = 1)", 1, 0, 1, 0.1),
        _argument("Swap in source image", False),
        _argument("Swap in generated image", True),
        _choice("Console Log Level", "Minimum", ["No log", "Minimum", "Default"]),
        _choice("Gender Detection (Source)", "No", genders),
        _choice("Gender Detection (Target)", "No", genders),
        _argument("Save Original", False),
        _slider("CodeFormer Weight (Fidelity)", 0.5, 0, 1, 0.1),
        _argument("Source Image Hash Check", True),
        _argument("Target Image Hash Check", False),
        _choice("Execution Provider", "CPU", ["CPU", "CUDA"]),
        _argument("Face Mask Correction", False),
        _choice("Select Source", "Image(s)", ["Image(s)", "Face Model", "Folder"]),
        _choice("Choose Face Model", "None", ["None", "elena.safetensors"]),
        _argument("Source Folder", ""),
        _argument("Multiple Source Images"),
        _argument("Random Image", False),
        _argument("Force Upscale", False),
        _slider("Threshold", 0.5, 0.1, 1.0, 0.01),
        _slider("Max Faces", 0, 0, 20, 1),
        _argument("", "tab_single"),
    ]
