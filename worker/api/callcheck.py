"""What is looked at before and after a call of one of A1111's other routes.

A1111 answers 500 to a picture that it cannot read and to an upscaler that it does not know (recorded:
extras_single_unknown_upscaler, png_info_garbage), and 200 where a weight is missing (interrogate_default).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Event
from typing import Any

from schemas.controlnet import NONE
from schemas.errors import BackendFailedError, InvalidInputError
from schemas.routes import PREFIX, Call, Route
from schemas.settings import Settings
from worker.extensions.controlnet import require_scalable, three_channels
from worker.generation import inputs
from worker.generation.session import Session
from worker.machine.helpers import require_extras, require_interrogator
from worker.pictures import images

# What A1111 puts at the end of a caption that it could not make.
# Source: A1111 1.10.1, modules/interrogate.py, InterrogateModels.interrogate.
_NO_CAPTION = "<error>"
# Source: sd-webui-controlnet v1.1.455, scripts/api.py, detect.
_NOT_DETECTED = frozenset(
    {"clip_vision", "revision_clipvision", "revision_ignore_prompt", "ip-adapter-auto"}
)
# The fields of a route's payload that hold pictures: one each, or a list.
_PICTURES: Mapping[str, tuple[str, ...]] = {
    f"{PREFIX}extra-single-image": ("image",),
    f"{PREFIX}png-info": ("image",),
    f"{PREFIX}interrogate": ("image",),
    "/controlnet/detect": ("controlnet_input_images", "controlnet_masks"),
    "/reactor/image": ("source_image", "target_image"),
    "/tagger/v1/interrogate": ("image",),
}
_BATCH = "imageList"
# A1111 searches each run of such characters again from each of them, and stands still meanwhile.
# Source: A1111 1.10.1, modules/infotext_utils.py, re_param.
_NO_LABEL = re.compile(r"[^\w\s\-/]")
_MOST_STEPS = 20_000_000
_Check = Callable[[Mapping[str, Any], Session], Mapping[str, Any] | None]
"""Returns the fields of the payload that change, if any do."""


class Checks:
    """Looks at payloads. Safe to use from several threads."""

    def __init__(self, settings: Settings) -> None:
        """Take limits, hosts and the folder of links from `settings`."""
        self._settings = settings
        self._links = settings.webui.links
        self._table: Mapping[str, _Check] = {
            f"{PREFIX}extra-single-image": self._extras,
            f"{PREFIX}extra-batch-images": self._extras,
            f"{PREFIX}interrogate": lambda payload, _: require_interrogator(payload, self._links),
            f"{PREFIX}png-info": _readable_text,
            "/controlnet/detect": self._detection,
            "/reactor/image": self._face_swap,
        }

    def fetched(self, call: Call, cancelled: Event) -> Any:
        """Return the payload of `call` with pictures in the place of URLs; nothing else is looked at.

        Raises:
            WorkerError: see `inputs.fetched`.
        """
        pictures = dict(pictures_in(call.route, call.payload))
        found = inputs.fetched(pictures, self._settings, cancelled)
        return _with(call.route, call.payload, {**pictures, **found}) if found else call.payload

    def checked(self, route: Route, payload: Any, session: Session) -> Any:
        """Return `payload` as A1111 is to get it; that of a route that a setting added as it is.

        Raises:
            InvalidInputError: a picture or a name that A1111 could not work with.
            ModelNotFoundError: weights that it would do without are not installed.
        """
        given = dict(pictures_in(route, payload))
        if len(given) > self._settings.job.max_images:
            raise InvalidInputError(
                f"{len(given)} images are more than {self._settings.job.max_images}.",
                field=next(iter(given)),
            )
        limit = self._settings.job.max_input_pixels
        clean = {field: images.image(text, field, limit) for field, text in given.items()}
        whole = _with(route, payload, clean) if clean else payload
        check = None if route.is_free else self._table.get(route.path)
        if check is not None and (changes := check(whole, session)):
            whole = {**whole, **changes}
        if route.path.startswith(f"{PREFIX}extra-"):
            for field, picture in clean.items():
                self._require_size(field, picture, payload)
        return whole

    def _extras(self, payload: Mapping[str, Any], session: Session) -> None:
        for field in ("upscaler_1", "upscaler_2"):
            if field in payload:
                session.catalog.require_upscaler(field, payload[field])
        require_extras(payload, self._links)

    def _detection(self, payload: Mapping[str, Any], session: Session) -> dict[str, Any]:
        """Return the fields as the extension works with them: a module of its own, plain pictures.

        Source: sd-webui-controlnet v1.1.455, scripts/api.py, detect; recorded: cn_detect_unsupported,
        cn_detect_module_case, cn_detect_unknown_module.
        """
        field, limit = "controlnet_module", self._settings.job.max_input_pixels
        name = session.controlnet.module(payload.get(field, NONE), field)["name"]
        if name in _NOT_DETECTED:
            raise InvalidInputError(f"The module `{name}` makes no map.", field=field)
        changes: dict[str, Any] = {field: name}
        sizes = {}
        for key in ("controlnet_input_images", "controlnet_masks"):
            plain = [
                three_channels(text, f"{key}[{index}]", limit)
                for index, text in enumerate(payload.get(key, ()))
            ]
            changes[key], sizes[key] = [text for text, _ in plain], [size for _, size in plain]
        res = payload.get("controlnet_processor_res", 0)
        for index, size in enumerate(sizes["controlnet_input_images"]):
            require_scalable(size, res, f"controlnet_input_images[{index}]", limit)
        _require_masks(name, sizes["controlnet_input_images"], sizes["controlnet_masks"])
        return changes

    def _face_swap(self, payload: Mapping[str, Any], session: Session) -> None:
        """Refuse names that ReActor would do without. From its source, unverified against a live server."""
        if payload.get("select_source", 0) == 0 and not payload.get("source_image"):
            raise InvalidInputError("`source_image` is missing.", field="source_image")
        if payload.get("upscaler", "None") != "None":
            session.catalog.require_upscaler("upscaler", payload["upscaler"])
            width, height = images.size_px(payload["target_image"])
            scale, limit = payload.get("scale", 1), self._settings.job.max_input_pixels
            if width * height * scale**2 > limit:
                raise InvalidInputError(
                    f"The picture would have {width * scale:.0f} x {height * scale:.0f} pixels; the"
                    f" limit is {limit}.",
                    field="scale",
                )
        if payload.get("face_restorer", "None") != "None":
            session.catalog.require_face_restorer("face_restorer", payload["face_restorer"])

    def _require_size(self, field: str, picture: str, payload: Mapping[str, Any]) -> None:
        """Refuse what would become larger than an input image may be.

        Source: A1111 1.10.1, scripts/postprocessing_upscale.py: to fit a size, the larger of both
        factors counts, and what is too much is cropped after; nothing is done without an upscaler.
        """
        if payload.get("upscaler_1", "None") == "None":
            return
        width, height = images.size_px(picture)
        factor = payload.get("upscaling_resize", 2)
        if payload.get("resize_mode", 0) == 1:
            wide, high = (payload.get(f"upscaling_resize_{side}", 512) for side in "wh")
            factor = max(wide / width, high / height)
        limit = self._settings.job.max_input_pixels
        if width * height * factor**2 > limit:
            raise InvalidInputError(
                f"`{field}` would have {width * factor:.0f} x {height * factor:.0f} pixels; the"
                f" limit is {limit}.",
                hint="Ask for less upscaling.",
                field="upscaling_resize",
            )


def _require_masks(
    module: str, pictures: Sequence[tuple[int, int]], masks: Sequence[tuple[int, int]]
) -> None:
    """Refuse masks, given as sizes, that do not go with their pictures."""
    field = "controlnet_masks"
    if "inpaint" in module and len(masks) != len(pictures):
        raise InvalidInputError(
            f"The module `{module}` needs a mask for each picture: {len(pictures)}, not"
            f" {len(masks)}.",
            field=field,
        )
    for index, (size, mask) in enumerate(zip(pictures, masks, strict=False)):
        if size != mask:
            raise InvalidInputError(
                f"`{field}[{index}]` has {mask[0]} x {mask[1]} pixels and its picture {size[0]} x"
                f" {size[1]}.",
                hint="Send a mask of the same size.",
                field=f"{field}[{index}]",
            )


def require_answer(route: Route, answer: Any) -> None:
    """Raise if A1111 says in its answer, with status 200, that it failed.

    Raises:
        BackendFailedError: the caption of an interrogation could not be made.
    """
    if route.path != f"{PREFIX}interrogate" or not isinstance(answer, dict):
        return
    if str(answer.get("caption", "")).endswith(_NO_CAPTION):
        raise BackendFailedError(
            "A1111 could not describe the picture.",
            hint="Its log says why; it may lack the weights, or memory.",
        )


def _readable_text(payload: Mapping[str, Any], _session: Session) -> None:
    for text in images.texts(payload["image"]):
        if sum(len(run) ** 2 for run in _NO_LABEL.split(text)) > _MOST_STEPS:
            raise InvalidInputError(
                "The picture's text has a line that A1111 cannot read in time.", field="image"
            )


def pictures_in(route: Route, payload: Any) -> Iterator[tuple[str, str]]:
    """Yield the pictures in a payload, by the paths of their fields."""
    if route.is_free:
        return
    if route.path == f"{PREFIX}extra-batch-images":
        for index, entry in enumerate(payload[_BATCH]):
            yield f"{_BATCH}[{index}].data", entry["data"]
    for field in _PICTURES.get(route.path, ()):
        held = payload.get(field)
        if isinstance(held, list):
            yield from ((f"{field}[{index}]", text) for index, text in enumerate(held))
        elif held is not None:
            yield field, held


def _with(route: Route, payload: Mapping[str, Any], pictures: Mapping[str, str]) -> dict[str, Any]:
    """Return `payload` with `pictures`, all of those that `_pictures` yields, in their places."""
    whole = dict(payload)
    if route.path == f"{PREFIX}extra-batch-images":
        whole[_BATCH] = [
            {**entry, "data": pictures[f"{_BATCH}[{index}].data"]}
            for index, entry in enumerate(payload[_BATCH])
        ]
    for field in _PICTURES.get(route.path, ()):
        held = payload.get(field)
        if isinstance(held, list):
            whole[field] = [pictures[f"{field}[{index}]"] for index in range(len(held))]
        elif held is not None:
            whole[field] = pictures[field]
    return whole
