from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from benchmarks import own_start
from benchmarks.coldstart import BOUNDS, EAGER, OLDER, OLDER_AT_ONCE, OURS, Figures, aim_of, rows_of
from benchmarks.containers import SIZE_BYTES, Cold, Place, Scene, older, ours
from benchmarks.older_container import Handler, fetch
from benchmarks.own_start import Start
from model_cache.engine.ranges import Plan
from tests.benchmarks.quick import figures

SCENE = Scene(boot_s=6, load_s=3, download_s=2)
FIGURES = Figures(
    alone=[Scene(6.2, 3.0, 2.0), Scene(6.0, 3.1, 2.1), Scene(6.4, 3.2, 1.9)],
    colds={EAGER: [Cold(9.5, 1), Cold(9.8, 2), Cold(9.3, 1)], OLDER: [Cold(15.0, 2)]},
)


@pytest.mark.parametrize(
    ("way", "bound_s"),
    [
        pytest.param(EAGER, 6 + 3, id="the longer one and the load"),
        pytest.param(OURS, 6 + 2 + 3, id="one after the other"),
        pytest.param(OLDER, 6 + 3 + 2 + 3, id="with a load that nobody wants"),
        pytest.param(OLDER_AT_ONCE, 6 + 3 + 3, id="which hides the download"),
    ],
)
def test_each_way_is_bounded_by_what_it_waits_for(way: str, bound_s: float) -> None:
    assert BOUNDS[way](SCENE) == bound_s


def test_a_download_that_is_longer_than_the_boot_bounds_the_eager_way() -> None:
    assert BOUNDS[EAGER](Scene(boot_s=3, load_s=2, download_s=6)) == 8


def test_the_aim_is_the_median_over_what_was_measured_alone() -> None:
    aim = aim_of(SCENE, FIGURES)

    assert aim.value == pytest.approx(9.5 / (6.2 + 3.1))
    assert aim.as_json()["holds"] is True


def test_every_way_has_a_row_with_its_bound_and_the_most_loads() -> None:
    rows = {str(row["what"]).partition(", ")[2]: row for row in rows_of(SCENE, FIGURES)}

    assert list(rows) == ["T alone", "L alone", "D alone", EAGER, OLDER]
    assert rows["T alone"]["bound_s"] == 6
    assert rows[EAGER] == {
        "what": f"T 6 L 3 D 2, {EAGER}",
        "runs": 3,
        "s": 9.5,
        "min_s": 9.3,
        "max_s": 9.8,
        "bound_s": 9.3,
        "ratio": 1.022,
        "loads": 2,
    }


def test_starts_are_told_by_their_medians() -> None:
    starts = {"x": [Start(3.0, 80.0, 90.0), Start(1.0, 70.0, 95.0), Start(2.0, 75.0, 85.0)]}

    (row,) = own_start.rows_of(starts)

    assert (row["s"], row["min_s"], row["max_s"]) == (2.0, 1.0, 3.0)
    assert (row["rss_mib"], row["all_mib"]) == (75.0, 90.0)


def test_the_store_fetches_the_checkpoint_over_one_connection_as_the_others_do() -> None:
    plan = Plan(SIZE_BYTES)

    first = plan.take()

    assert first is not None
    assert plan.take() is None


def test_both_containers_have_a_default_checkpoint_and_a_job_for_another(tmp_path: Path) -> None:
    places = [Place(SCENE, tmp_path / name, "http://127.0.0.1:1") for name in ("a", "b")]
    for place in places:
        place.folder.mkdir()

    of_ours, of_older = ours(places[0], eager=True), older(places[1], until_loaded=True)

    assert of_ours.environ["A1111_WEBUI_EAGER"] == "true"
    assert (tmp_path / "a/volume/models/checkpoints/default.safetensors").is_file()
    assert of_ours.job["checkpoint"]["url"].endswith("/job.safetensors?fault-rate=750000")
    assert (tmp_path / "b/models/Stable-diffusion/default.safetensors").is_file()
    assert of_older.job["source_url"] == of_ours.job["checkpoint"]["url"]
    assert "--until-loaded" in of_older.argv


class Webui(ThreadingHTTPServer):
    """Notes the routes that it is asked for; has one file."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), self.Answer)
        self.daemon_threads = True
        self.asked: list[str] = []

    class Answer(BaseHTTPRequestHandler):
        server: "Webui"

        def do_GET(self) -> None:
            self._answer(b"weights" if self.path == "/file" else b"[]")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(b'{"images": ["a"]}')

        def _answer(self, body: bytes) -> None:
            self.server.asked.append(self.path.removeprefix("/sdapi/v1/"))
            self.send_response(404 if self.path == "/none" else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            del format, args


@pytest.fixture
def webui() -> Iterator[Webui]:
    server = Webui()
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("what", "asked"),
    [
        pytest.param("port", ["sd-models"], id="the port"),
        pytest.param("checkpoint", ["sd-models", "txt2img"], id="the default checkpoint"),
    ],
)
def test_the_older_way_waits_for_what_it_is_told_to(
    webui: Webui, what: str, asked: list[str]
) -> None:
    Handler(webui.server_port).wait(until_loaded=what == "checkpoint")

    assert webui.asked == asked


def test_the_older_way_fetches_refreshes_and_asks(webui: Webui, tmp_path: Path) -> None:
    job = {
        "source_url": f"http://127.0.0.1:{webui.server_port}/file",
        "download_path": str(tmp_path / "job.safetensors"),
        "payload": {"prompt": "a lighthouse"},
    }

    answer = Handler(webui.server_port)({"input": job})

    assert answer == {"images": ["a"]}
    assert webui.asked == ["/file", "refresh-checkpoints", "txt2img"]
    assert (tmp_path / "job.safetensors").read_bytes() == b"weights"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_is_not_there_ends_the_older_way(webui: Webui, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="404"):
        fetch(f"http://127.0.0.1:{webui.server_port}/none", tmp_path / "x")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_quick_run_ends_with_a_picture_from_both_and_their_figures() -> None:
    told = figures("coldstart")

    rows = {row["what"].rpartition("D 0.2, ")[2]: row for row in told["rows"]}
    assert (told["bench"], told["runs"]) == ("coldstart", 1)
    assert rows[OLDER]["loads"] == 2
    # Booted, and then loaded, in 0.2 s each at least; how long each took beside that is chance.
    assert rows["L alone"]["s"] >= 0.2
    assert rows[EAGER]["s"] >= 0.2 + 0.2
    assert rows[f"start of {own_start.WORKER}"]["rss_mib"] > 10
    assert told["aims"][0]["limit"] == 1.05
