import io
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from socket import gethostname
from threading import Event
from typing import Any, TextIO

import pytest

from worker.local import terminal
from worker.local.terminal import ProgressLine, knows_links, link, plain, table, unbreakable, words

END = "\x04"


@pytest.fixture
def screen() -> Iterator[tuple[TextIO, int]]:
    """A real terminal: the stream that a program has, and the other end of it."""
    other, own = os.openpty()
    with ExitStack() as stack:
        stack.callback(os.close, other)
        yield stack.enter_context(os.fdopen(own, "w", encoding="utf-8")), other


def shown(screen: tuple[TextIO, int]) -> str:
    """Return all that the program wrote; the system hands it over in pieces."""
    stream, other = screen
    stream.write(END)
    stream.flush()
    data = b""
    while not data.endswith(END.encode()):
        data += os.read(other, 65536)
    return data.decode().removesuffix(END)


@pytest.mark.parametrize(
    ("environ", "knows"),
    [
        pytest.param({"VTE_VERSION": "7006", "TERM": "xterm-256color"}, True, id="GNOME"),
        pytest.param({"VTE_VERSION": "4602"}, False, id="an old GNOME"),
        pytest.param({"VTE_VERSION": "²"}, False, id="no number"),
        pytest.param({"TERM_PROGRAM": "vscode"}, True, id="VS Code"),
        pytest.param({"TERM_PROGRAM": "Apple_Terminal"}, False, id="macOS"),
        pytest.param({"TERM": "xterm-kitty"}, True, id="kitty"),
        pytest.param({"TERM": "linux"}, False, id="the console"),
        pytest.param({"WT_SESSION": "1"}, True, id="Windows"),
        pytest.param({"WT_SESSION": "1", "FORCE_HYPERLINK": "0"}, False, id="not wanted"),
    ],
)
def test_a_link_is_shown_by_terminals_that_know_it(
    screen: tuple[TextIO, int], environ: dict[str, str], *, knows: bool
) -> None:
    assert knows_links(screen[0], environ) is knows
    assert not knows_links(io.StringIO(), environ)


def test_links_can_be_wanted_where_there_is_no_terminal() -> None:
    assert knows_links(io.StringIO(), {"FORCE_HYPERLINK": "1"})


def test_a_link_to_a_file_names_the_machine_and_escapes_the_path(tmp_path: Path) -> None:
    folder = tmp_path / "ö utput"

    text = link("a.png", folder, links=True)

    url = f"file://{gethostname()}{tmp_path}/%C3%B6%20utput/a.png"
    assert text == f"\x1b]8;;{url}\x1b\\{folder}/a.png\x1b]8;;\x1b\\"
    assert link("a.png", folder, links=False) == f"{folder}/a.png"
    assert link("/volume/a.png", folder, links=False) == "/volume/a.png"


def test_a_signed_url_is_a_short_link_or_whole(tmp_path: Path) -> None:
    url = "https://b.example/a%20b.png?X-Amz-Signature=abc"

    assert link(url, tmp_path, links=False) == url
    assert link(url, tmp_path, links=True) == (
        f"\x1b]8;;{url}\x1b\\https://b.example/a%20b.png\x1b]8;;\x1b\\"
    )


def test_no_text_can_command_the_terminal(tmp_path: Path) -> None:
    evil = "\x1b]0;title\x07\x9b2J\u202egnp.exe\r"

    assert plain(evil) == r"\x1b]0;title\x07\x9b2J\x202egnp.exe\x0d"
    assert "\x1b" not in link(f"https://b.example/{evil}", tmp_path, links=False)
    assert link(f"https://b.example/{evil}", tmp_path, links=True).count("\x1b") == 4
    assert "\x1b" not in table(["a", "b"], [[evil, ""]])
    assert "\x1b" not in words({"stage": "loading", "detail": evil})


def test_a_table_is_aligned_with_wide_letters_and_leaves_out_what_is_empty() -> None:
    rows = [["picture", "", "写実_v5", "x.png"], ["a\nb", "", "e\u0301", "y.png"]]

    assert table(["what", "size", "model", "file"], rows) == (
        "what     model    file\npicture  写実_v5  x.png\na b      e\u0301        y.png\n"
    )


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        ({"stage": "loading", "percent": 0, "detail": "v6"}, "loading     v6"),
        (
            {"stage": "sampling", "percent": 7, "step": 3, "steps": 20, "eta_s": 4.4},
            "sampling      7 %  step 3/20  4 s left",
        ),
        (
            {"stage": "fetching", "percent": 50, "done_bytes": 30_000_000, "total_bytes": 6e7},
            "fetching     50 %  30 of 60 MB",
        ),
        ({"stage": "encoding", "percent": 100, "preview": "/9j/"}, "encoding    100 %"),
    ],
)
def test_progress_is_a_line_of_words(progress: dict[str, Any], line: str) -> None:
    assert words(progress) == line


def test_on_a_terminal_progress_is_one_line_that_gives_way_to_the_log(
    screen: tuple[TextIO, int],
) -> None:
    stream, _ = screen
    line = ProgressLine(stream)
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    root.addHandler(handler)
    told: list[object] = []

    def run(job: object, _cancelled: Event, report: Any) -> str:
        report({"stage": "sampling", "percent": 10})
        logging.getLogger("x").error("said")
        report({"stage": "sampling", "percent": 20})
        return f"did {job}"

    try:
        with line.above_log():
            answer = line.watching(run)({}, Event(), told.append)
    finally:
        root.removeHandler(handler)

    assert answer == "did {}"
    assert len(told) == 2
    *lines, last = shown(screen).split("\r\x1b[K")
    assert [text for text in lines if text] == [
        "sampling     10 %",
        "said\r\n",
        "sampling     20 %",
    ]
    assert last == ""
    assert handler.filters == []


def test_a_long_line_of_progress_is_cut_at_the_edge(screen: tuple[TextIO, int]) -> None:
    stream, _ = screen
    columns = os.get_terminal_size(stream.fileno()).columns or 80

    ProgressLine(stream).show({"stage": "loading", "detail": "写" * 500})

    assert terminal._width(shown(screen).removeprefix("\r\x1b[K")) in {columns - 1, columns - 2}


def test_without_a_terminal_no_progress_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine(sys.stderr)

    with line.above_log():
        line.watching(lambda _job, _cancelled, report: report({"stage": "x"}))({}, Event(), print)

    assert capsys.readouterr().err == ""


def test_what_an_encoding_lacks_is_written_out() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    unbreakable(stream)

    stream.write("🦊 \ud83d\n")
    stream.flush()

    assert re.fullmatch(rb"\\U0001f98a \\ud83d\n", raw.getvalue())
