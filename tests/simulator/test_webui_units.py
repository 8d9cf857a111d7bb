"""Parts of the simulated WebUI by themselves: flags, catalogue, drawing, the queue's lock."""

import json
import threading
import time
from pathlib import Path

import pytest
from PIL import Image

from simulator.webui import catalogue, draw, flags
from simulator.webui.progress import FifoLock, State

KILOBYTE = 1000


@pytest.mark.parametrize("file", sorted(catalogue.DATA.glob("*.json")), ids=lambda file: file.name)
def test_the_data_of_the_program_is_compact_and_names_no_machine(file: Path) -> None:
    text = file.read_text("utf-8")

    assert len(text) < 100 * KILOBYTE
    assert "/home/" not in text
    assert json.loads(text)


def test_the_schema_has_all_its_parts() -> None:
    schemas = catalogue.openapi()["components"]["schemas"]

    assert list(schemas) == sorted(schemas)
    assert len(schemas["Options"]["properties"]) == 312
    assert len(schemas["Flags"]["properties"]) == 126


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        (("DPM++ 2M Karras", None), ("DPM++ 2M", "Automatic")),
        (("DPM++ 2M SDE Karras", None), ("DPM++ 2M SDE", "Karras")),
        (("Euler", "karras"), ("Euler", "Karras")),
        (("Euler SGMUniform", None), ("Euler", "SGM Uniform")),
        ((None, None), ("DPM++ 2M", "Automatic")),
        (("nope", "nope"), ("DPM++ 2M", "Automatic")),
    ],
)
def test_samplers_are_found_as_a1111_finds_them(
    asked: tuple[str | None, str | None], given: tuple[str, str]
) -> None:
    assert catalogue.sampler_and_scheduler(*asked) == given


def test_folders_are_derived_from_the_models_folder(tmp_path: Path) -> None:
    found = flags.parse(["--models-dir", "/m"], {}, tmp_path)

    assert found.lora_dirs == (Path("/m/Lora"), Path("/m/LyCORIS"))
    assert found.embeddings_dir == Path("/m/embeddings")
    assert found.styles_files == (Path("/m/styles.csv"),)
    assert found.data_dir == tmp_path
    assert found.shown["esrgan_models_path"] == "/m/ESRGAN"
    assert found.shown["embeddings_dir"] == "/m/embeddings"


def test_with_a_data_folder_everything_is_below_it() -> None:
    found = flags.parse(["--data-dir", "/d"], {}, Path("/scratch"))

    assert found.models_dir == Path("/d/models")
    assert found.embeddings_dir == Path("/d/embeddings")
    assert found.config_file == Path("/d/config.json")
    assert found.shown["models_dir"] is None


def test_flags_of_the_environment_are_added(tmp_path: Path) -> None:
    environment = {"COMMANDLINE_ARGS": "--no-half --lora-dir '/a b'"}

    found = flags.parse(["--port", "1"], environment, tmp_path)

    assert (found.port, found.shown["no_half"]) == (1, True)
    assert found.lora_dirs[0] == Path("/a b")


def test_unknown_flags_can_be_ignored(tmp_path: Path) -> None:
    environment = {"IGNORE_CMD_ARGS_ERRORS": "1"}

    assert flags.parse(["--nonsense"], environment, tmp_path).port == flags.DEFAULT_PORT


def scene(number: int) -> draw.Scene:
    return draw.Scene("mood", draw.digest(number), "a cat")


def test_a_picture_follows_from_its_digest() -> None:
    one, same, other = (draw.paint(scene(number), (64, 48)) for number in (1, 1, 2))

    assert one.size == (64, 48)
    assert one.tobytes() == same.tobytes() != other.tobytes()


def test_a_picture_that_was_cut_short_is_another_one() -> None:
    whole = draw.paint(scene(1), (64, 64))

    assert draw.paint(scene(1), (64, 64), clarity=0.5).tobytes() != whole.tobytes()
    assert draw.paint(scene(1), (64, 64), clarity=0.0).tobytes() != whole.tobytes()


@pytest.mark.parametrize("size", [(8, 8), (64, 64), (64, 512), (512, 64), (512, 512)])
def test_the_word_is_written_at_any_size(size: tuple[int, int]) -> None:
    blank = Image.new("RGB", size, (90, 90, 90))
    signed = blank.copy()

    draw.sign(signed, "a cat, 猫\nand more")

    assert signed.tobytes() != blank.tobytes()


def test_drawing_takes_a_fraction_of_a_tenth_of_a_second() -> None:
    times = []
    for number in range(5):
        begun = time.perf_counter()
        draw.sign(draw.paint(scene(number), (512, 512)), "a cat")
        times.append(time.perf_counter() - begun)

    # Some 10 ms each on an idle machine.
    assert min(times) < 0.1


def test_the_lock_serves_in_the_order_of_arrival() -> None:
    lock = FifoLock()
    order: list[int] = []

    def take(number: int) -> None:
        with lock:
            order.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(5)]
    with lock:
        for number, thread in enumerate(threads):
            thread.start()
            deadline = time.monotonic() + 30
            while len(lock._waiting) <= number:
                assert time.monotonic() < deadline
                time.sleep(0.001)
    for thread in threads:
        thread.join()

    assert order == [0, 1, 2, 3, 4]


def test_progress_is_capped_at_1() -> None:
    state = State()
    state.begin("scripts_txt2img")
    state.job_count, state.job_no, state.sampling_steps, state.sampling_step = 1, 1, 10, 5

    assert state.fraction()[0] == 1.0


def test_before_sampling_begins_the_steps_of_the_last_job_are_shown() -> None:
    state = State()
    state.sampling_steps = 20
    state.begin("scripts_txt2img")

    assert state.shown()["sampling_steps"] == 20
    assert state.shown()["job_count"] == -1
