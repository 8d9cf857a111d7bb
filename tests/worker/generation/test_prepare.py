import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from threading import Event

import pytest

from model_cache.cache import ModelCache
from schemas.errors import JobCancelledError
from schemas.job import Txt2Img
from schemas.settings import CacheSettings, Settings, WebuiSettings
from simulator import models as files
from worker.caller import Caller
from worker.child.links import LinkFolder
from worker.generation.prepare import FETCHERS, Preparation


def test_a_job_whose_models_are_here_does_not_wait_for_the_downloads_of_another(
    tmp_path: Path,
) -> None:
    files.write_checkpoint(tmp_path / "models" / "checkpoints" / "night.safetensors", seed="night")
    settings = Settings(
        cache=CacheSettings(volume=tmp_path, allow_private_hosts=True),
        webui=WebuiSettings(links=tmp_path / "links"),
    )
    cache = ModelCache(settings.cache)
    preparation = Preparation(cache, LinkFolder(tmp_path / "links"), settings)
    cancelled = Event()
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        ThreadPoolExecutor(2) as aside,
        ExitStack() as held,
    ):

        def caller(cancelled: Event) -> Caller:
            return Caller(cancelled, lambda _: None, held)

        host = f"http://127.0.0.1:{silent.getsockname()[1]}"
        loras = [{"url": f"{host}/{number}.safetensors"} for number in range(FETCHERS)]
        slow = aside.submit(
            preparation.fetch,
            Txt2Img.model_validate({"checkpoint": "night", "loras": loras}),
            caller(cancelled),
        )
        for _ in loras:
            held.enter_context(silent.accept()[0])

        quick = aside.submit(
            preparation.fetch, Txt2Img.model_validate({"checkpoint": "night"}), caller(Event())
        )
        try:
            found = quick.result(timeout=10)
            assert not slow.done()
        finally:
            cancelled.set()
        with pytest.raises(JobCancelledError):
            slow.result()
    cache.close()

    assert found["checkpoint"].model.name == "night"
