"""What img2img makes of its init images and masks before sampling, and of the picture after it.

Source: A1111 1.10.1, modules/processing.py, StableDiffusionProcessingImg2Img.init and apply_overlay,
and modules/masking.py.
"""

from dataclasses import dataclass

from PIL import Image, ImageChops, ImageFilter, ImageOps

from simulator.webui import pictures
from simulator.webui.failure import WebuiError
from simulator.webui.job import Job
from simulator.webui.options import Options

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Canvas:
    """One init image, ready to be painted over.

    `image` has the job's size; `mask` (L, white is painted) as well, or is None for all of it.
    `overlay` is the original with a hole; `paste_to` where the painted part goes in it.
    """

    image: Image.Image
    mask: Image.Image | None
    overlay: Image.Image | None
    paste_to: Box | None
    mask_for_overlay: Image.Image | None


def prepare(job: Job, options: Options) -> list[Canvas]:
    """Return a canvas for each init image, and note in the job what the infotext says of them.

    Raises:
        WebuiError: there are no init images, or more than pictures in a batch.
    """
    job.extra["Denoising strength"] = job.denoising_strength
    if job.width is None or job.height is None:
        raise WebuiError("TypeError", "unsupported operand type(s) for /: 'NoneType' and 'int'")
    size = (job.width, job.height)
    if min(size) <= 0:
        raise WebuiError("ValueError", "height and width must be > 0")
    mask = _mask(job)
    crop, for_overlay = None, None
    if mask is not None and job.inpaint_full_res:
        crop = _crop_region(mask, job.inpaint_full_res_padding or 0, size)
        if crop is None:
            mask = None
        else:
            for_overlay = mask
            mask = pictures.resize(2, mask.crop(crop), *size)
            job.extra["Inpaint area"] = "Only masked"
            job.extra["Masked area padding"] = job.inpaint_full_res_padding
    elif mask is not None:
        mask = pictures.resize(job.resize_mode or 0, mask, *size)
        for_overlay = mask.point([min(255, value * 2) for value in range(256)])
    canvases = [
        _canvas(job, image, mask, (crop, for_overlay), options) for image in job.init_images
    ]
    _note_mask(job, masked=mask is not None)
    return _batch(job, canvases)


def _mask(job: Job) -> Image.Image | None:
    if job.mask is None:
        return None
    mask = job.mask
    if mask.mode == "RGBA" and mask.getchannel("A").getextrema() != (255, 255):
        mask = mask.getchannel("A")
        if job.mask_round:
            mask = mask.point([255 if value > 128 else 0 for value in range(256)])
    else:
        mask = mask.convert("L")
    if job.inpainting_mask_invert:
        mask = ImageOps.invert(mask)
        job.extra["Mask mode"] = "Inpaint not masked"
    blur = (max(job.mask_blur_x or 0, 0), max(job.mask_blur_y or 0, 0))
    if any(blur):
        mask = mask.filter(ImageFilter.GaussianBlur(blur))
        job.extra["Mask blur"] = blur[0] if blur[0] == blur[1] else None
    return mask


def _crop_region(mask: Image.Image, padding: int, size: tuple[int, int]) -> Box | None:
    """Return what of the mask is worked on, in the proportions of `size`; None if it is blank.

    Source: A1111 1.10.1, modules/masking.py, get_crop_region_v2 and expand_crop_region.
    """
    box = mask.getbbox()
    if box is None:
        return None
    x1, y1 = max(box[0] - padding, 0), max(box[1] - padding, 0)
    x2, y2 = min(box[2] + padding, mask.width), min(box[3] + padding, mask.height)
    ratio = size[0] / size[1]
    if (x2 - x1) / (y2 - y1) > ratio:
        y1, y2 = _expanded(y1, y2, int((x2 - x1) / ratio), mask.height)
    else:
        x1, x2 = _expanded(x1, x2, int((y2 - y1) * ratio), mask.width)
    return x1, y1, x2, y2


def _expanded(start: int, end: int, wanted: int, limit: int) -> tuple[int, int]:
    """Return a stretch of `wanted` around start and end, moved and cut to lie in 0 to `limit`."""
    difference = wanted - (end - start)
    start -= difference // 2
    end += difference - difference // 2
    if end >= limit:
        start -= end - limit
        end = limit
    if start < 0:
        end = min(end - start, limit)
        start = 0
    return start, end


def _canvas(
    job: Job,
    original: Image.Image,
    mask: Image.Image | None,
    region: tuple[Box | None, Image.Image | None],
    options: Options,
) -> Canvas:
    crop, for_overlay = region
    size = (job.width or 0, job.height or 0)
    image = pictures.flattened(original, options["img2img_background_color"])
    # A1111 leaves resize_mode 3 to the latents; the picture's size is the same in the end.
    if crop is None:
        image = pictures.resize(0 if job.resize_mode == 3 else job.resize_mode or 0, image, *size)
    overlay = None
    if mask is not None and for_overlay is not None:
        if for_overlay.size != image.size:
            for_overlay = pictures.resize(job.resize_mode or 0, for_overlay, *image.size)
        overlay = image.convert("RGBA")
        overlay.putalpha(ImageChops.invert(for_overlay))
    paste_to = None
    if crop is not None:
        image = pictures.resize(2, image.crop(crop), *size)
        paste_to = (crop[0], crop[1], crop[2] - crop[0], crop[3] - crop[1])
    return Canvas(
        _in_blocks(image), _in_blocks(mask) if mask else None, overlay, paste_to, for_overlay
    )


def _in_blocks(image: Image.Image) -> Image.Image:
    """Return the picture at the size it has after the way through latents, a multiple of 8."""
    return image.resize((image.width // 8 * 8, image.height // 8 * 8))


def _note_mask(job: Job, *, masked: bool) -> None:
    content = {0: "fill", 2: "latent noise", 3: "latent nothing"}.get(job.inpainting_fill or 0)
    if masked and job.init_images and content:
        job.extra["Masked content"] = content


def _batch(job: Job, canvases: list[Canvas]) -> list[Canvas]:
    """Return one canvas for each picture of a batch.

    Source: the texts were recorded from A1111 1.10.1: img2img_init_empty_list, and a request with two
    init images.
    """
    size = job.batch_size or 0
    if len(canvases) == 1:
        return canvases * size
    if not canvases:
        raise WebuiError(
            "RuntimeError",
            "Expected 3D (unbatched) or 4D (batched) input to conv2d, but got input of size: [0]",
        )
    if len(canvases) > size:
        text = f"bad number of images passed: {len(canvases)}; expecting {size} or less"
        raise WebuiError("RuntimeError", text)
    job.batch_size = len(canvases)
    return canvases


def finish(painted: Image.Image, canvas: Canvas, options: Options) -> Image.Image:
    """Return the painted picture with what lies outside of the mask put back.

    Raises:
        WebuiError: the sizes differ, which they do when the job's is no multiple of 8.
    """
    overlay = canvas.overlay
    if overlay is None or not options["overlay_inpaint"]:
        return painted
    if canvas.paste_to is not None:
        x, y, width, height = canvas.paste_to
        whole = Image.new("RGB", overlay.size)
        whole.paste(pictures.resize(1, painted, width, height), (x, y))
        painted = whole
    if painted.size != overlay.size:
        raise WebuiError("ValueError", "images do not match")
    painted = painted.convert("RGBA")
    painted.alpha_composite(overlay)
    return painted.convert("RGB")
