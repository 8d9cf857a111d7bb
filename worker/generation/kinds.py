"""What each image of an answer is, told from what was asked; and whether ControlNet did its part. Pure.

    grid? | picture (mask? composite?) … | detect maps, in the units' order

A1111 has one infotext per picture and grid, none for masks and maps, so counting those tells nothing.
Source: recorded from sd-webui-controlnet v1.1.455 on A1111 1.10.1: cn_n_iter2, cn_three_units,
cn_needs_weights; A1111 1.10.1, modules/processing.py, process_images_inner.
"""

from collections.abc import Mapping
from typing import Any

from schemas.controlnet import SCRIPT
from schemas.errors import WrongModelUsedError
from schemas.job import Generation, Img2Img, Txt2Img
from schemas.result import ImageKind
from worker.extensions import reactor
from worker.extensions.controlnet import Control, Controls

# What these make is no picture, so that hires fix brings no second map of it.
# Source: sd-webui-controlnet v1.1.455, scripts/controlnet.py, preprocess_input_image.
_WITHOUT_PICTURE = ("ip-adapter", "revision", "clip_vision", "instant_id_face_embedding")


def settled(
    answer: dict[str, Any], job: Generation, controls: Controls, options: Mapping[str, Any]
) -> list[ImageKind]:
    """Leave in `answer` the images that the caller asked for; return the kind of each.

    Args:
        answer: A1111's; `images` and `parameters` change.
        job: the request.
        controls: its ControlNet units, of which A1111 was asked for every map.
        options: every option as it was for this job.

    Raises:
        WrongModelUsedError: a unit has no map: the pictures were made without ControlNet.
    """
    images: list[str] = answer["images"]
    if job.alwayson_scripts:
        _hide_source(answer["parameters"])
    kinds = _kinds(len(images), job, controls, options)
    if controls.controls:
        _hide_inputs(answer, job)
        wanted = [keeps for control in controls.controls for keeps in _maps(control, job)]
        if len(wanted) == kinds.count("detect_map"):
            keeps = [True] * (len(images) - len(wanted)) + wanted
            images = [image for image, keep in zip(images, keeps, strict=True) if keep]
            kinds = [kind for kind, keep in zip(kinds, keeps, strict=True) if keep]
    if not job.send_images:
        images, kinds = [], []
    answer["images"] = images
    return kinds


def _kinds(
    count: int, job: Generation, controls: Controls, options: Mapping[str, Any]
) -> list[ImageKind]:
    if job.script_name:  # which draws as many pictures as it likes
        return ["unknown"] * count
    expected = _pictures(job, options)
    if not controls.controls:
        return (expected + ["unknown"] * count)[:count]
    maps = count - len(expected)
    if maps < sum(control.inputs for control in controls.controls):
        raise WrongModelUsedError(
            f"A1111 made the pictures without ControlNet: it answered {count} images, where"
            f" {len(expected)} pictures and a detect map for each unit were due;"
            " they are withheld.",
            hint="Its log says why; the weights of a module may be missing, or a model damaged.",
            kind="controlnet",
            asked=[control.body["model"] for control in controls.controls],
        )
    return expected + ["detect_map"] * maps


def _pictures(job: Generation, options: Mapping[str, Any]) -> list[ImageKind]:
    """Return the kinds of what comes before the maps."""
    one: list[ImageKind] = ["picture"]
    if isinstance(job, Img2Img) and job.mask:
        one += ["mask"] * sum(
            bool(options.get(name)) for name in ("return_mask", "return_mask_composite")
        )
    found = one * (job.batch_size * job.n_iter)
    # A1111 makes a grid only of what it saves.
    if job.save_images and not job.do_not_save_grid and options.get("return_grid"):
        several = len(found) > 1 or not options.get("grid_only_if_multiple")
        return ["grid", *found] if several else found
    return found


def _maps(control: Control, job: Generation) -> list[bool]:
    """Return, for each map of a unit, whether the caller wants it; with hires fix there are two."""
    is_picture = not control.body["module"].startswith(_WITHOUT_PICTURE)
    passes = 2 if isinstance(job, Txt2Img) and job.enable_hr and is_picture else 1
    return [control.unit.save_detected_map] * (control.inputs * passes)


def _hide_inputs(answer: dict[str, Any], job: Generation) -> None:
    """Take the units' pictures out of what A1111 repeats, as it does itself with init images."""
    parameters = answer["parameters"]
    parameters["send_images"] = job.send_images
    if not (isinstance(job, Img2Img) and job.include_init_images):
        units = parameters["alwayson_scripts"][SCRIPT]["args"]
        hidden = {"image", "mask", "effective_region_mask"}
        parameters["alwayson_scripts"][SCRIPT]["args"] = [
            {key: None if key in hidden else value for key, value in unit.items()} for unit in units
        ]


def _hide_source(parameters: dict[str, Any]) -> None:
    """Take ReActor's picture out of what A1111 repeats: it can be larger than what was drawn."""
    scripts = parameters["alwayson_scripts"]
    for name in [name for name in scripts if name.lower() == reactor.SCRIPT]:
        arguments = scripts[name].get("args")
        if arguments:
            kept = [*arguments]
            kept[reactor.IMAGE] = None
            scripts[name] = {**scripts[name], "args": kept}
