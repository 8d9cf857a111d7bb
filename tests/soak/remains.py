"""What is left on the volume when all workers have ended."""

from pathlib import Path

from tests.chaos.soundness import digest, private, require_sound, visible


def remains(volume: Path, root: Path, last_kill: float) -> list[tuple[str, str]]:
    """Return what should not be there, or is not what its name says: the path, and what of it.

    Args:
        volume: on which no worker lives any more.
        root: of the host: every file that there ever was to be fetched.
        last_kill: when the last worker was killed, in Unix time: what is as old may be of its making,
            and must be such that workers clear it away.
    """
    sources = {path.name: path for path in root.rglob("*.safetensors")}
    found = [
        (str(path), "it has not the bytes of the model of its name")
        for path in visible(volume)
        if path.name not in sources or digest(path) != digest(sources[path.name])
    ]
    found += [
        (str(path), "a temporary file, a lease or a record of use is left")
        for path in private(volume)
        if path.lstat().st_mtime > last_kill
    ]
    try:
        require_sound(volume, root)
    except AssertionError as error:
        found.append((str(volume), f"it is not sound: {error}"))
    return found
