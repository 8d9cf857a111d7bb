"""Names that want to leave their folder, or to pass for another: of callers, of hosts and of URLs."""

import random
import unicodedata
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from model_cache.volume import layout
from schemas.errors import InvalidInputError
from schemas.model_ref import MAX_NAME_BYTES, Kind, parse_ref
from tests.chaos.conftest import MIB, Chaos, World
from tests.chaos.soundness import digest, private, visible
from tests.chaos.worker import Pace
from tests.model_cache.conftest import Shelf

pytestmark = pytest.mark.slow

LONG = "n" * 300
# What a host may call a file.
HOSTILE = [
    "../x.safetensors",
    "../../../../etc/passwd",
    "..\\..\\x.safetensors",
    "/etc/cron.d/x.safetensors",
    "....//x.safetensors",
    "%2e%2e%2fx.safetensors",
    ".hidden.safetensors",
    ".worker/tmp/x.part",
    "..",
    ".",
    "",
    "   ",
    "x\ty.safetensors",
    f"{LONG}.safetensors",
    f"{'é' * 200}.safetensors",
    f"{'a/' * 150}x.safetensors",
    "x.safetensors.safetensors",
    "x.safetensors/",
    "x;rm -rf ~.safetensors",
    "$(id).safetensors",
    "CON.safetensors",
    "cache_registry.json",
    "<lora:x:1>.safetensors",
    "x\u202efdp.safetensors",
]
# To a disk that knows no case, or an eye, each of these is `Detail`.
ALIKE = [
    "Detail",
    "detail",
    "DETAIL",
    "Ｄetail",  # noqa: RUF001 - a fullwidth letter, which is the point
    "détail",
    unicodedata.normalize("NFD", "détail"),
    "straße",
    "STRASSE",
    "ﬁlm",
    "film",
]


@pytest.fixture
def shelf(world: World, pace: Pace) -> Iterator[Shelf]:
    assert pace.pause_s < 1
    shelf = world.shelf()
    yield shelf
    shelf.cache.close()


def require_inside(world: World) -> None:
    """Every file is in our folders, under a plain name, and no two of them could be confused."""
    ours = world.volume / "models" / "loras"
    names = [path.stem for path in visible(world.volume)]
    assert all(path.parent == ours for path in visible(world.volume))
    assert [entry.name for entry in world.volume.iterdir()] == ["models"]
    assert all(name.isprintable() and not name.startswith(".") for name in names)
    assert all(len(name.encode()) <= MAX_NAME_BYTES for name in names)
    assert len({layout.folded(name) for name in names}) == len(names)


def test_whatever_a_host_calls_a_file_it_stays_in_its_folder(
    world: World, shelf: Shelf, chaos: Chaos
) -> None:
    for number, name in enumerate(HOSTILE):
        model = world.model(f"m{number}", MIB // 4)
        world.spoil(filename=name.encode().decode("latin-1"))

        done = shelf.ensure(url=model.url)

        assert (done.model.sha256, digest(done.model.path)) == (model.sha256, model.sha256)
        require_inside(world)
        world.mend()
    chaos.tell("hostile names of files", len(HOSTILE), len(HOSTILE))
    shelf.cache.close()
    assert private(world.volume) == []
    world.require_sound()


TAILS = [
    *("%2e%2e%2fm.safetensors", "..%5cm.safetensors", "%00m.safetensors", "m%00.safetensors"),
    *(f"{LONG}.safetensors", "%E2%80%AEm.safetensors", "m.safetensors?name=../x", ""),
]


def test_whatever_a_url_ends_in_nothing_is_written_elsewhere(world: World, shelf: Shelf) -> None:
    for number, tail in enumerate(TAILS):
        model = world.model(f"m{number}", MIB // 4)
        world.spoil(redirect=model.url)
        world.hub.site.faults.rules[0].path = "/nowhere/*"

        done = shelf.ensure(url=f"{world.hub.url}/nowhere/{number}/{tail}")

        assert (done.model.sha256, digest(done.model.path)) == (model.sha256, model.sha256)
        require_inside(world)
        world.mend()
    shelf.cache.close()
    assert private(world.volume) == []
    world.require_sound()


@pytest.mark.parametrize(
    "name",
    [
        *("../x", "a/../../x", "..", ".", "/x", "a//b", "x\\y", "..\\x", ".hidden", "a/.worker/x"),
        *("x\0y", "\0", "x\ny", "x\u202ey", "x\u200by", LONG, "é" * 100, " ", ""),
        *("../x.safetensors", "x\0.safetensors"),
    ],
)
def test_a_name_of_a_caller_that_is_none_is_refused_before_anything_happens(name: str) -> None:
    with pytest.raises(InvalidInputError) as refusal:
        parse_ref({"name": name, "url": "https://host/m.safetensors"}, Kind.LORA, "loras.0")

    assert refusal.value.details == {"field": "loras.0"}
    assert len(str(refusal.value)) < 500


def test_names_that_a_disk_or_an_eye_takes_for_one_are_kept_apart(
    world: World, shelf: Shelf, chaos: Chaos
) -> None:
    for number, name in enumerate(ALIKE):
        model = world.model(f"m{number}", MIB // 4)

        done = shelf.ensure(name=name, url=model.url)

        assert (done.model.sha256, digest(done.model.path)) == (model.sha256, model.sha256)
        assert done.model.name in {name, f"{name}-{model.sha256[:8]}"}
        assert shelf.ensure(name=name, url=model.url).model.path == done.model.path
        require_inside(world)
    chaos.tell("names that look alike", len(ALIKE), len(ALIKE))
    shelf.cache.close()
    world.require_sound()


def test_workers_that_publish_names_alike_at_the_same_moment_lose_none(
    world: World, chaos: Chaos
) -> None:
    chance = random.Random(13)  # noqa: S311 - an order, no secret
    crew = world.crew(3, pace=Pace(ttl_s=20.0))
    fetched = {}
    for number in chaos.times("names alike, published at the same moment", 50, least=3):
        spelt = ["".join(chance.choice((c, c.upper())) for c in f"name{number}") for _ in crew]
        pair = [world.model(f"m{number}-{n}", MIB // 4) for n in range(len(crew))]
        for worker, name, model in zip(crew, spelt, pair, strict=True):
            worker.ask(name=name, url=model.url)
        for worker, model in zip(crew, pair, strict=True):
            answer = worker.answer()
            assert answer["read"] == model.sha256
            fetched[model.sha256] = answer["name"]
    assert [worker.wait() for worker in crew] == [0] * 3
    assert {digest(path): path.stem for path in visible(world.volume)} == fetched
    assert private(world.volume) == []
    world.require_sound()


def test_a_url_with_every_printable_byte_in_its_path_is_a_file_in_the_folder(
    world: World, shelf: Shelf
) -> None:
    odd = "".join(chr(code) for code in range(33, 127) if chr(code) not in "/\\")
    model = world.model("m", MIB // 4)
    world.spoil(redirect=model.url)
    world.hub.site.faults.rules[0].path = "/odd/*"

    done = shelf.ensure(url=f"{world.hub.url}/odd/{quote(odd)}.safetensors")

    assert done.model.sha256 == model.sha256
    require_inside(world)
