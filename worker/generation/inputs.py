"""Input images that a request names by URL: fetched here, so that A1111 never fetches anything.

Knows which fields hold images, not how hosts are asked or what an image is.
"""

import base64
from collections.abc import Mapping
from threading import Event

from model_cache.documents import Budget, fetch_all
from model_cache.engine.limits import Limits
from schemas import controlnet
from schemas.errors import InvalidInputError
from schemas.job import Generation, Img2Img
from schemas.settings import Settings
from worker.extensions import scripts
from worker.pictures.images import SINGLE_FIELDS, is_url

MAX_URLS = 64
"""In one request, so that no caller sends this worker against a host."""


def brought(job: Generation, settings: Settings, cancelled: Event) -> Generation:
    """Return `job` with base64 in the place of each image that is given by URL.

    The arguments of extensions are put as they read them, so that whoever looks at them finds the same.

    Raises:
        WorkerError: see `fetched`.
        InvalidInputError: see `scripts.respelled`.
    """
    found = fetched(pictures(job), settings, cancelled)
    changes: dict[str, object] = {name: found[name] for name in SINGLE_FIELDS if name in found}
    if job.alwayson_scripts:
        changes["alwayson_scripts"] = scripts.respelled(job.alwayson_scripts, found, settings.job)
    if not found:
        return job.model_copy(update=changes) if changes else job
    if isinstance(job, Img2Img):
        changes["init_images"] = [
            found.get(f"init_images[{index}]", text) for index, text in enumerate(job.init_images)
        ]
    if job.controlnet_args:
        changes["controlnet_args"] = controlnet.with_images(job.controlnet_args, found)
    return job.model_copy(update=changes)


def pictures(job: Generation) -> dict[str, object]:
    """Return every image that `job` brings, by its path in the request; None where there is none."""
    several = job.init_images if isinstance(job, Img2Img) else []
    return {
        **{f"init_images[{index}]": text for index, text in enumerate(several)},
        **{name: getattr(job, name, None) for name in SINGLE_FIELDS},
        **controlnet.images(job.controlnet_args),
        **scripts.pictures(job.alwayson_scripts),
    }


def fetched(images: Mapping[str, object], settings: Settings, cancelled: Event) -> dict[str, str]:
    """Return those of `images` that are URLs, fetched and as base64; nothing for the others.

    That they are images is for `images.image` to say.

    Args:
        images: by the fields of the request, which errors name.
        settings: which hosts may be asked, and how much may come.
        cancelled: ends the work when it is set.

    Raises:
        InvalidInputError: there are more than `MAX_URLS`.
        WorkerError: see `documents.fetch_all`.
    """
    urls = {
        field: text.strip()
        for field, text in images.items()
        if isinstance(text, str) and is_url(text)
    }
    if not urls:
        return {}
    if len(urls) > MAX_URLS:
        field = list(urls)[MAX_URLS]
        raise InvalidInputError(
            f"More than {MAX_URLS} images are given by URL, from `{field}` on.", field=field
        )
    budget = Budget(int(settings.job.max_input_mb * 1e6), settings.job.max_input_s)
    found = fetch_all(urls, Limits.of(settings.cache), budget, cancelled)
    return {field: base64.b64encode(data).decode() for field, data in found.items()}
