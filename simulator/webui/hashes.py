"""SHA-256 of model files, remembered with the file's time, across restarts.

    <data folder>/cache/hashes.json    {"checkpoint/tiny.safetensors": {"mtime": …, "sha256": …}}

An entry holds until the file on disk is newer than it: a file that was replaced by an older one keeps
the old hash, as in A1111.

Source: A1111 1.10.1, modules/hashes.py.
"""

import hashlib
import json
from pathlib import Path

from simulator.webui.weights import not_found

_CHUNK = 1 << 20


class HashCache:
    """The hashes that are known, by title (`checkpoint/<name>`, `lora/<name>`, `vae`)."""

    def __init__(self, data_dir: Path, *, disabled: bool) -> None:
        """Read what an earlier run left; `disabled` is --no-hashing."""
        self.disabled = disabled
        self._file = data_dir / "cache" / "hashes.json"
        self._known: dict[str, dict[str, float | str]] = {}
        if self._file.exists():
            self._known = json.loads(self._file.read_text("utf-8"))

    def known(self, path: Path, title: str) -> str | None:
        """Return the hash if it is known, without reading the file.

        Raises:
            WebuiError: FileNotFoundError.
        """
        entry = self._known.get(title)
        try:
            mtime = path.stat().st_mtime
        except FileNotFoundError as error:
            raise not_found(path) from error
        if entry is None or mtime > float(entry["mtime"]):
            return None
        return str(entry["sha256"])

    def of(self, path: Path, title: str, *, skip: int = 0) -> str | None:
        """Return the hash of the bytes from `skip` on, reading them if need be; None with --no-hashing.

        Raises:
            WebuiError: FileNotFoundError.
        """
        known = self.known(path, title)
        if known is not None or self.disabled:
            return None if self.disabled else known
        digest = hashlib.sha256()
        with path.open("rb") as file:
            file.seek(skip)
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        self._known[title] = {"mtime": path.stat().st_mtime, "sha256": digest.hexdigest()}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(self._known, indent=1), "utf-8")
        return digest.hexdigest()
