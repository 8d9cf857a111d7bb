"""The routes of A1111, Forge and their extensions that a job may call, and the shape of what each takes.

    {"api": {"method": "POST", "endpoint": "/sdapi/v1/png-info"}, "payload": {"image": "…"}}

txt2img and img2img are not here: in the envelope they mean what the flat form means.

Source: the OpenAPI schema that A1111 1.10.1 serves; recorded from sd-webui-controlnet 1.1.455:
cn_openapi_paths. Of Forge, ADetailer, ReActor and the tagger only the sources were read:
lllyasviel/stable-diffusion-webui-forge dfdcbab, modules/api/api.py; Bing-su/adetailer 36189cb,
scripts/!adetailer.py; Gourieff/sd-webui-reactor 2c6a6e6, scripts/reactor_api.py;
picobyte/stable-diffusion-webui-wd14-tagger d92f46c, tagger/api.py and api_models.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from schemas.job import Count, Float, Int, Text
from schemas.output import Output

PREFIX = "/sdapi/v1/"
OPTIONS = f"{PREFIX}options"
CONTROLNET = "the extension sd-webui-controlnet"
ADETAILER = "the extension ADetailer"
REACTOR = "the extension ReActor"
TAGGER = "the extension wd14-tagger"
FORGE = "Forge"

Share = Annotated[Float, Field(ge=0, le=1)]


class Payload(BaseModel):
    """What a route takes. What it does not know goes on to the WebUI as it is."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())


class Drawing(Payload):
    """What a route that answers with pictures takes."""

    output: Output = Output()
    """Ours: how the pictures are wanted."""


class Extras(Drawing):
    """What both routes of the Extras tab take."""

    resize_mode: Annotated[Int, Field(ge=0, le=1)] = 0
    show_extras_results: bool = True
    gfpgan_visibility: Share = 0
    codeformer_visibility: Share = 0
    codeformer_weight: Share = 0
    upscaling_resize: Annotated[Float, Field(gt=0)] = 2
    upscaling_resize_w: Count = 512
    upscaling_resize_h: Count = 512
    upscaling_crop: bool = True
    upscaler_1: Text = "None"
    upscaler_2: Text = "None"
    extras_upscaler_2_visibility: Share = 0
    upscale_first: bool = False


class ExtraSingleImage(Extras):
    """One picture, upscaled or with its faces restored."""

    image: str


class FileData(Payload):
    """One picture of several."""

    data: str
    name: Text


class ExtraBatchImages(Extras):
    """Several pictures, all treated alike."""

    imageList: Annotated[list[FileData], Field(min_length=1)]  # noqa: N815 - A1111's spelling


class PngInfo(Payload):
    """A picture that carries the parameters that made it."""

    image: str


class Interrogate(Payload):
    """A picture to describe."""

    image: str
    model: Literal["clip", "deepdanbooru"] = "clip"


class Progress(Payload):
    """How a look at the running job is to be."""

    skip_current_image: bool = False


class Options(Payload):
    """Options and their values; a null means what it was before any job set it."""


class ModelList(Payload):
    """Whether to look at the folder again."""

    update: bool = True


class ModuleList(Payload):
    """How to spell the modules."""

    alias_names: bool = False


class Detect(Drawing):
    """Pictures that a ControlNet module makes maps of."""

    controlnet_module: Text = "none"
    controlnet_input_images: Annotated[list[str], Field(min_length=1)]
    controlnet_processor_res: Annotated[Int, Field(ge=-1, le=4096)] = -1
    controlnet_threshold_a: Float = -1
    controlnet_threshold_b: Float = -1
    controlnet_masks: list[str] = Field(default_factory=list)
    low_vram: bool = False

    @model_validator(mode="before")
    @classmethod
    def _respelled(cls, value: Any) -> Any:
        # As the client webuiapi 0.9.17 spells it; the extension does not look at that name.
        if isinstance(value, dict) and "controlnet_images" in value:
            given = dict(value)
            return {"controlnet_input_images": given.pop("controlnet_images"), **given}
        return value


class FaceSwap(Drawing):
    """Two pictures whose faces are exchanged. What names files of the server is not taken."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    source_image: str | None = None
    target_image: str
    source_faces_index: list[Int] = Field(default_factory=lambda: [0])
    face_index: list[Int] = Field(default_factory=lambda: [0])
    upscaler: Text = "None"
    scale: Annotated[Float, Field(gt=0, le=8)] = 1
    upscale_visibility: Share = 1
    face_restorer: Text = "None"
    restorer_visibility: Share = 1
    codeformer_weight: Share = 0.5
    restore_first: Int = 1
    model: Annotated[Text, Field(pattern=r"^[^/\\]*$")] = "inswapper_128.onnx"
    gender_source: Int = 0
    gender_target: Int = 0
    save_to_file: Literal[0] = 0
    result_file_path: Literal[""] = ""
    device: Literal["CPU", "CUDA"] = "CPU"
    mask_face: Int = 0
    select_source: Literal[0, 1] = 0
    face_model: Annotated[Text, Field(pattern=r"^[^/\\]*$")] = "None"
    source_folder: Literal[""] = ""
    random_image: Literal[0] = 0
    upscale_force: Int = 0
    det_thresh: Share = 0.5
    det_maxnum: Annotated[Int, Field(ge=0)] = 0


class Tag(Payload):
    """A picture to tag. Queues, which would outlive the job, are not taken."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    image: str
    model: Text
    threshold: Float = 0.0
    queue: Literal[""] = ""
    name_in_queue: Text = ""


@dataclass(frozen=True)
class Route:
    """One route, and how a job calls it."""

    method: Literal["GET", "POST"]
    path: str
    answer: str
    """What it answers, for people."""
    payload: type[Payload] | None = None
    """Shape of the JSON that a POST sends, or of the query of a GET; None: it takes nothing."""
    in_turn: bool = False
    """Whether it waits for A1111's one place: it takes the queue lock there, or the GPU."""
    brought_by: str = ""
    """What a WebUI needs to have it; empty: every A1111 has it."""
    is_free: bool = False
    """Whether a setting added it: any payload goes through."""

    @property
    def is_verified(self) -> bool:
        """Whether the answers of a live server were seen."""
        return self.brought_by in {"", CONTROLNET}


@dataclass(frozen=True)
class Call:
    """A route to call."""

    route: Route
    payload: Any
    """JSON to send, checked; or the values of the query. None: nothing."""
    output: Output | None = None
    """How the pictures of the answer are wanted; None: it has none."""


def _lists(*entries: tuple[str, str]) -> list[Route]:
    return [Route("GET", PREFIX + name, answer) for name, answer in entries]


def _posts(answer: str, *names: str, in_turn: bool) -> list[Route]:
    return [Route("POST", PREFIX + name, answer, in_turn=in_turn) for name in names]


_PICTURE = "`html_info` and `image`"
ROUTES: Sequence[Route] = (
    Route("POST", f"{PREFIX}extra-single-image", _PICTURE, ExtraSingleImage, in_turn=True),
    Route(
        "POST",
        f"{PREFIX}extra-batch-images",
        "`html_info` and `images`",
        ExtraBatchImages,
        in_turn=True,
    ),
    Route("POST", f"{PREFIX}png-info", "`info`, `items` and `parameters`", PngInfo),
    Route("POST", f"{PREFIX}interrogate", "`caption`", Interrogate, in_turn=True),
    Route("GET", f"{PREFIX}progress", "the running job's progress", Progress),
    Route("POST", OPTIONS, "`null`", Options),
    *_lists(
        ("options", "every option and its value"),
        ("cmd-flags", "the command line"),
        ("samplers", "a list"),
        ("schedulers", "a list"),
        ("upscalers", "a list"),
        ("latent-upscale-modes", "a list"),
        ("sd-models", "a list"),
        ("sd-vae", "a list"),
        ("hypernetworks", "a list"),
        ("face-restorers", "a list"),
        ("realesrgan-models", "a list"),
        ("prompt-styles", "a list"),
        ("embeddings", "`loaded` and `skipped`"),
        ("loras", "a list"),
        ("memory", "`ram` and `cuda`"),
        ("scripts", "`txt2img` and `img2img`"),
        ("script-info", "a list"),
        ("extensions", "a list"),
    ),
    # Each empties its list for a moment, that of the LoRAs without A1111's own lock.
    *_posts(
        "`null`",
        *("refresh-checkpoints", "refresh-vae", "refresh-embeddings", "refresh-loras"),
        in_turn=True,
    ),
    *_posts("`{}`", "unload-checkpoint", "reload-checkpoint", in_turn=True),
    Route("GET", f"{PREFIX}sd-modules", "a list of VAEs and text encoders", brought_by=FORGE),
    Route("GET", "/controlnet/version", "`version`", brought_by=CONTROLNET),
    # It empties its list for a moment, and a job that looks then does without ControlNet.
    Route(
        "GET",
        "/controlnet/model_list",
        "`model_list`",
        ModelList,
        in_turn=True,
        brought_by=CONTROLNET,
    ),
    Route(
        "GET",
        "/controlnet/module_list",
        "`module_list` and `module_detail`",
        ModuleList,
        brought_by=CONTROLNET,
    ),
    Route("GET", "/controlnet/control_types", "`control_types`", brought_by=CONTROLNET),
    Route("GET", "/controlnet/settings", "`control_net_unit_count`", brought_by=CONTROLNET),
    Route(
        "POST",
        "/controlnet/detect",
        "`images` and `info`",
        Detect,
        in_turn=True,
        brought_by=CONTROLNET,
    ),
    Route("GET", "/adetailer/v1/version", "`version`", brought_by=ADETAILER),
    Route("GET", "/adetailer/v1/schema", "a JSON schema", brought_by=ADETAILER),
    Route("GET", "/adetailer/v1/ad_model", "`ad_model`", brought_by=ADETAILER),
    Route("POST", "/reactor/image", "`image`", FaceSwap, in_turn=True, brought_by=REACTOR),
    Route("GET", "/reactor/models", "`models`", brought_by=REACTOR),
    Route("GET", "/reactor/upscalers", "`upscalers`", brought_by=REACTOR),
    Route("GET", "/reactor/facemodels", "`facemodels`", brought_by=REACTOR),
    Route("POST", "/tagger/v1/interrogate", "`caption`", Tag, in_turn=True, brought_by=TAGGER),
    Route("GET", "/tagger/v1/interrogators", "`models`", brought_by=TAGGER),
)

_OWN = "every job of this worker needs this WebUI"
_MAKES_FILES = "it makes model files on the server"
_CANCEL = "POST to RunPod's /cancel/JOB_ID: that stops a job wherever it is."
# What A1111 knows and no job may call: why, and what to do. A setting adds it all the same.
REFUSED: Mapping[str, tuple[str, str]] = {
    **{f"{PREFIX}server-{name}": (_OWN, "") for name in ("kill", "restart", "stop")},
    **{
        f"{PREFIX}{verb}/{kind}": (_MAKES_FILES, "")
        for verb in ("create", "train")
        for kind in ("embedding", "hypernetwork")
    },
    **{
        f"{PREFIX}{name}": ("it would come only after the job that it is meant for", _CANCEL)
        for name in ("interrupt", "skip")
    },
}
