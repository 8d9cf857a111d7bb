from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from model_cache.sharing import evict
from model_cache.sharing.evict import Candidate, Kept

_CANDIDATES = st.lists(
    st.builds(
        lambda number, inode, last_used, kept: Candidate(
            Path(f"/{number}"), (1, inode), 100 * (inode % 7), last_used, kept
        ),
        number=st.integers(0, 10**9),
        # Few numbers, so that several names mean one file.
        inode=st.integers(0, 12),
        last_used=st.floats(0, 9),
        kept=st.none() | st.sampled_from(Kept),
    ),
    unique_by=lambda one: one.path,
    max_size=25,
)


def candidate(
    name: str, last_used: float, *, size: int = 10, inode: int = 0, kept: Kept | None = None
) -> Candidate:
    return Candidate(Path(name), (1, inode or hash(name)), size, last_used, kept)


def names(victims: tuple[evict.Victim, ...] | None) -> list[str] | None:
    return None if victims is None else [str(path) for one in victims for path in one.paths]


def test_the_least_recently_used_go_first_and_no_more_than_it_takes() -> None:
    candidates = [candidate("new", 3), candidate("old", 1), candidate("middle", 2)]

    assert names(evict.victims(candidates, 1)) == ["old"]
    assert names(evict.victims(candidates, 10)) == ["old"]
    assert names(evict.victims(candidates, 11)) == ["old", "middle"]
    assert names(evict.victims(candidates, 30)) == ["old", "middle", "new"]
    assert names(evict.victims(candidates, 31)) is None


def test_two_names_of_one_file_go_together_or_not_at_all() -> None:
    used = [candidate("a", 1, inode=5), candidate("b", 9, inode=5), candidate("c", 2)]
    held = [candidate("a", 1, inode=5), candidate("b", 1, inode=5, kept=Kept.IN_USE)]

    assert names(evict.victims(used, 10)) == ["c"]
    assert names(evict.victims(used, 20)) == ["c", "a", "b"]
    assert names(evict.victims(held, 1)) is None
    assert evict.kept_bytes(held, Kept.IN_USE) == 10
    assert evict.kept_bytes(held, None) == 0


@given(_CANDIDATES, st.integers(-500, 3000))
def test_whatever_goes_is_a_shortest_start_of_the_order_of_use(
    candidates: list[Candidate], free_bytes: int
) -> None:
    sizes = {one.file: one.size_bytes for one in candidates}
    kept = {one.file for one in candidates if one.kept is not None}
    evictable = sizes.keys() - kept
    by_path = {one.path: one for one in candidates}

    victims = evict.victims(candidates, free_bytes)

    if victims is None:
        assert sum(sizes[file] for file in evictable) < free_bytes
        return
    gone = {by_path[path].file for one in victims for path in one.paths}
    assert not gone & kept
    assert {path for one in victims for path in one.paths} == {
        one.path for one in candidates if one.file in gone
    }
    freed = [one.size_bytes for one in victims]
    assert sum(freed) >= free_bytes
    assert not victims or sum(freed[:-1]) < free_bytes
    last_used = [one.last_used for one in victims]
    assert last_used == sorted(last_used)
    stays = [
        max(one.last_used for one in candidates if one.file == file) for file in evictable - gone
    ]
    assert not victims or all(last_used[-1] <= other for other in stays)


@given(_CANDIDATES)
def test_every_byte_is_accounted_for_once(candidates: list[Candidate]) -> None:
    sizes = {one.file: one.size_bytes for one in candidates}

    parts = [evict.kept_bytes(candidates, why) for why in (None, *Kept)]

    assert sum(parts) == sum(sizes.values())
