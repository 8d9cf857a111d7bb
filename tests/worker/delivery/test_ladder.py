"""The ladder in any order, with any way, format and limit, and steps that fail."""

import base64
import io
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from schemas.errors import OutputTooLargeError
from schemas.output import LADDER, Output
from schemas.settings import CacheSettings, OutputSettings, Settings
from tests.worker.delivery.test_output import cloudy, made, noise, opened
from tests.worker.stores import bucket_at
from worker.caller import Caller
from worker.clock import Clock
from worker.delivery.output import send, size_bytes
from worker.delivery.wish import Wishes


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_wish_ends_in_pictures_that_fit_or_in_output_too_large(data: st.DataObject) -> None:
    of = st.sampled_from
    output = Output(
        format=data.draw(of(["png", "jpeg", "webp", "avif"])),
        quality=data.draw(of([None, 1, 41, 100])),
        delivery=data.draw(of(["auto", "base64", "url", "volume"])),
        allow_lossy=data.draw(st.booleans()),
        ladder=tuple(data.draw(st.lists(of(LADDER), unique=True))),
    )
    images = data.draw(of([[noise(32)], [cloudy(48), noise(32, mode="RGBA")]]))
    limit = data.draw(of([100, 500, 3_000, 5_000, 8_000, 10**6]))
    with TemporaryDirectory() as folder:
        volume = Path(folder)
        if data.draw(st.booleans(), "the volume takes nothing"):
            (volume / "outputs").touch()
        whole = Settings(
            cache=CacheSettings(volume=volume, local_root=Path("/x")),
            output=OutputSettings(max_run_bytes=limit),
        )
        maker = Wishes(whole)
        maker.bucket = bucket_at("http://127.0.0.1:9", "b", allow_private=False)
        wish = maker.of(output, {"id": "job-1"})
        caller = Caller(Event(), lambda _: None, ExitStack(), Clock())

        try:
            answer = send(images, wish, made, caller)
        except OutputTooLargeError:
            return

        assert size_bytes(answer) <= limit
        is_there = answer["output"]["delivery"] == "volume"
        files = [
            Path(image).read_bytes() if is_there else base64.b64decode(image)
            for image in answer["images"]
        ]
        sides = [Image.open(io.BytesIO(file)).size for file in files]
        assert sides == [opened(image).size for image in images]
        assert answer["output"]["lossless"] or output.allow_lossy or output.format != "png"
        wanted = {"auto": "base64", "url": "url"}.get(output.delivery or "", output.delivery)
        assert answer["warnings"] or answer["output"]["delivery"] == wanted
