import base64
import hashlib
import json
import os
import re
import resource
import threading
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.worker.local.test_keeper import generation, picture
from worker.local import gallery
from worker.local.keeper import keep

NOW = datetime(2026, 11, 21, 18, 30, tzinfo=UTC)
VOID = {"meta", "link", "img", "input", "br", "hr"}
EVIL = [
    "</script><script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "<!--pictures--> --> ]]> </style></ul></pre>",
    "&lt;b&gt; &amp; &#60;",
    "@POLICY@ @COUNT@",
    "منارة \u202e on the \u2066cliff\u2069 🦊👩‍🚀",
    "line\u2028separator\x00nul\x1b[2J",
]


class Page(HTMLParser):
    """Reads a page strictly: every element that is opened is closed, in order; ids are there once."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []
        ids = [with_["id"] for _, with_ in self.elements if "id" in with_]
        assert len(ids) == len(set(ids))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(attrs) == len(dict(attrs)), f"an attribute of {tag} is there twice"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in self.texts:
            self.texts[self.open[-1]][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page(folder: Path) -> Page:
    assert gallery.write(folder) == "index.html"
    return Page((folder / "index.html").read_text())


def test_pictures_are_shown_the_newest_first_with_what_is_known_of_them(tmp_path: Path) -> None:
    keep(generation("picture", "detect_map"), tmp_path, NOW)
    keep({"image": picture()}, tmp_path, NOW + timedelta(days=1))

    shown = page(tmp_path)

    assert [image["src"] for image in shown.all("img")] == [
        "./20261122-183000.png",
        "./20261121-183000-42.png",
        "./20261121-183000-42-detect_map.png",
    ]
    image = shown.all("img")[1]
    assert image["alt"] == "picture: a cat 42"
    assert (image["width"], image["height"]) == ("8", "6")
    assert all(each["loading"] == "lazy" for each in shown.all("img"))
    assert shown.texts["pre"] == ["infotext 0"]
    assert shown.texts["bdi"][1:4] == ["8 x 6", "seed 42", "deliberate_v6"]
    assert "detect map" in shown.texts["span"]
    assert shown.texts["time"][1] == "2026-11-21 18:30"


def page_of(folder: Path, text: str) -> Page:
    """Return a page where `text` is everywhere that a caller's words can come to."""
    info = {"all_prompts": [text], "infotexts": [text], "sd_model_name": text}
    keep({**generation("picture"), "info": json.dumps(info)}, folder, NOW)
    keep(generation(text, images=["https://b.example/" + text]), folder, NOW)
    return page(folder)


@pytest.mark.parametrize("text", EVIL)
def test_what_came_from_callers_is_text_and_nothing_else(tmp_path: Path, text: str) -> None:
    harmless = page_of(tmp_path / "harmless", "words")

    shown = page_of(tmp_path / "evil", text)

    assert [tag for tag, _ in shown.elements] == [tag for tag, _ in harmless.elements]
    assert [list(attributes) for _, attributes in shown.elements] == [
        list(attributes) for _, attributes in harmless.elements
    ]
    assert text in shown.texts["pre"]
    assert text in shown.texts["p"]
    assert shown.texts["script"] == harmless.texts["script"]


def test_the_page_fetches_nothing_and_runs_its_own_script_alone(tmp_path: Path) -> None:
    keep(generation("picture"), tmp_path, NOW)

    shown = page(tmp_path)

    [policy] = [
        str(meta["content"])
        for meta in shown.all("meta")
        if meta.get("http-equiv") == "Content-Security-Policy"
    ]
    for kind in ("script", "style"):
        [text] = shown.texts[kind]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}';" in policy
        assert not re.search(r"https?:|url\(|@import|\beval\b|innerHTML", text)
    assert policy.startswith("default-src 'none'; img-src 'self' file:; ")
    assert "unsafe" not in policy
    assert shown.all("link") == []
    assert all("src" not in script for script in shown.all("script"))
    assert all("style" not in attributes for _, attributes in shown.elements)
    assert all(not str(image.get("src") or "./").startswith("http") for image in shown.all("img"))


def test_a_picture_elsewhere_is_a_link_and_one_on_the_volume_is_shown(tmp_path: Path) -> None:
    on_volume = tmp_path / "a b.png"
    on_volume.write_bytes(base64.b64decode(picture()))
    url = "https://b.example/0.png?a=1&b=2"
    folder = tmp_path / "output"
    keep(generation("picture", "picture", images=[url, str(on_volume)]), folder, NOW)

    shown = page(folder)

    away, view = shown.all("a")
    assert away["href"] == url
    assert away["rel"] == "noopener noreferrer"
    assert view["href"] == f"file://{tmp_path}/a%20b.png"


def test_pictures_and_runs_that_are_deleted_are_gone_from_the_page(tmp_path: Path) -> None:
    first = keep(generation("picture", "picture"), tmp_path, NOW)
    keep(generation("picture"), tmp_path, NOW + timedelta(hours=1))
    assert len(page(tmp_path).all("li")) == 3

    (tmp_path / first.pictures[0].place).unlink()
    (tmp_path / "20261121-193000-42.json").unlink()

    shown = page(tmp_path)
    assert [link["href"] for link in shown.all("a")] == ["./20261121-183000-43.png"]
    assert shown.texts["span"][0] == "1"


def test_a_disk_that_is_full_leaves_the_page_that_was_there(tmp_path: Path) -> None:
    keep(generation("picture"), tmp_path, NOW)
    page(tmp_path)
    before = (tmp_path / "index.html").read_bytes()
    (tmp_path / "20261121-183000-42.png").unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            gallery.write(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert (tmp_path / "index.html").read_bytes() == before
    assert list(tmp_path.glob(".*")) == []


RECORD = {
    "format": "a1111-worker local run 1",
    "created": "2026-11-21T18:30:00",
    "pictures": [{"place": "a.png", "what": "picture"}],
}


@pytest.mark.parametrize(
    ("record", "count"),
    [
        pytest.param(RECORD, 1, id="few fields"),
        pytest.param({**RECORD, "pictures": [{"place": "a.png", "width": "<", "seed": True}]}, 1),
        pytest.param({**RECORD, "pictures": [{"place": "../a.png"}, {"place": "javascript:x"}]}, 0),
        pytest.param({**RECORD, "pictures": [{"place": "a.png\0"}, {"place": ""}, 1, None]}, 0),
        pytest.param({**RECORD, "pictures": [{"place": "x" * 300}, {"place": "/x" * 5000}]}, 0),
        pytest.param({**RECORD, "pictures": None}, 0, id="no pictures"),
        pytest.param({**RECORD, "created": "yesterday"}, 0, id="no time"),
        pytest.param({**RECORD, "format": "other"}, 0, id="another's"),
        pytest.param([RECORD], 0, id="a list"),
    ],
)
def test_a_file_that_was_edited_spoils_nothing(tmp_path: Path, record: object, count: int) -> None:
    (tmp_path / "a.png").write_bytes(base64.b64decode(picture()))
    (tmp_path / "a.json").write_text(json.dumps(record))
    (tmp_path / "b.json").write_text("{half")
    (tmp_path / "c.json").write_bytes(b"\xff\xfe")
    (tmp_path / "d.json").mkdir()
    os.mkfifo(tmp_path / "e.json")

    assert len(page(tmp_path).all("li")) == count


def test_runs_that_end_at_once_are_all_on_the_page(tmp_path: Path) -> None:
    def end(seed: int) -> None:
        keep(generation("picture", seed=seed, seeds=[seed]), tmp_path, NOW)
        gallery.write(tmp_path)

    threads = [threading.Thread(target=end, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(Page((tmp_path / "index.html").read_text()).all("li")) == 12
    assert list(tmp_path.glob(".*")) == []
