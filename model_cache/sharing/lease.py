"""A lease says that somebody is at work on something, so that others may wait for the result.

    <volume>/models/.worker/leases/
    ├── <digest of the key>.lease           whose turn it is
    ├── <digest of the key>.<token>.next    who follows the dead holder with that token
    └── <digest of the key>.<token>.tmp     a claim before it is made

    {"version": 1, "token": "…32 hex…", "beat": 17, "note": "worker 3f0c… fetches lora detail"}

It saves work and guards nothing. Whoever holds one may be stopped, lose it, wake up and go on; what
is written has to be right all the same, and is, because nobody writes to another's file.

How it stays fair with nothing but `link` and `rename`, and without a common clock:

- A claim is made by giving a finished file the name of the lease, which fails where it is taken.
- The holder raises `beat` every two seconds. A contender that has seen one claim unchanged for eight
  seconds of its own time takes the holder for dead.
- A dead claim is not removed, it is replaced: one contender alone can give its claim the name that
  follows the dead one's token, and then renames it onto the lease. At no time is the place empty, so
  nobody slips in, and a claim that was made a moment ago is never taken for the dead one.

Not relied upon: flock (on MooseFS a lock of a host that died stays for up to a day: mfsmaster.cfg,
SESSION_SUSTAIN_TIME), renameat2 with flags (MooseFS answers EINVAL), the times of files, but to clear up.
"""

import hashlib
import json
import logging
import os
import re
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from model_cache.sharing import note
from model_cache.sharing.age import DEAD_S, Ages
from model_cache.sharing.stillness import Stillness
from model_cache.volume import layout
from model_cache.volume.disk import require_volume
from schemas.errors import VolumeError

log = logging.getLogger(__name__)

TTL_S = 8.0
BEAT_S = 2.0
_MAX_BYTES = 4096
_TOKEN = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Claim:
    """What a lease file says."""

    token: str
    """32 hex digits, of this claim alone."""
    beat: int
    """Raised by the holder as long as it lives."""
    note: str
    """Who works on what, for people; without secrets."""


class Lease:
    """One contender for one lease. Its `try_acquire` and `release` belong to one thread."""

    def __init__(
        self,
        volume: Path,
        key: str,
        *,
        note: str = "",
        ttl_s: float = TTL_S,
        beat_s: float = BEAT_S,
    ) -> None:
        """Touch nothing yet.

        Args:
            volume: where the leases lie.
            key: what the work is about, the same text for everybody; only a digest of it is kept.
            note: who works on what, for those who wait; without secrets.
            ttl_s: how long a holder may be silent before another takes over, in seconds.
            beat_s: how often the holder shows that it lives, in seconds; much less than `ttl_s`.
        """
        self._volume = volume
        self._folder = layout.leases_folder(volume)
        self._name = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:32]
        self._path = self._folder / f"{self._name}.lease"
        self._note = note
        self._ttl_s = ttl_s
        self._beat_s = beat_s
        self._still = Stillness(most_per_look_s=ttl_s / 2)
        self._stop = threading.Event()
        self._heart: threading.Thread | None = None
        self._shown_at = 0.0
        self._lost = False
        self.holder: Claim | None = None
        """Who had it when we looked last; None if nobody did, or we have it."""

    @property
    def lost(self) -> bool:
        """Whether this lease, acquired, keeps nobody away: it was taken over or cannot be written."""
        return self._lost

    def try_acquire(self) -> bool:
        """Tell whether it is our turn; if not, call again a little later, with the same object.

        Where no lease can be written, it is everybody's turn: True at once, and `lost` says so. A
        contender that calls a few times a second takes over from a holder that died within `ttl_s`
        and one more call.
        """
        if self._heart is not None:
            return True
        self._lost = False
        token = uuid.uuid4().hex
        try:
            require_volume(self._volume)
            self._folder.mkdir(parents=True, exist_ok=True)
            won = self._contend(token)
        except (OSError, VolumeError) as error:
            log.warning("There is no lease, so this may be done twice: %s", error)
            self._lost = True
            return True
        if won:
            self._begin(token)
        return won

    def release(self) -> None:
        """Let others in at once; does nothing where it is not held."""
        heart, self._heart = self._heart, None
        if heart is None:
            return
        self._stop.set()
        heart.join(self._ttl_s)
        # After so long a silence it may be another's; ours, if it still is, runs out by itself.
        if self._lost or heart.is_alive() or time.monotonic() - self._shown_at > self._ttl_s:
            return
        with suppress(OSError):  # The same: it runs out.
            self._path.unlink()

    def _contend(self, token: str) -> bool:
        text, claim = _read(self._path)
        self.holder = claim
        if claim is not None and self._still.of(self._path, text) < self._ttl_s:
            return False
        mine = self._written(token, 0)
        try:
            if claim is None:
                return _place(mine, self._path)
            return self._follow(claim, mine, token)
        finally:
            mine.unlink(missing_ok=True)

    def _follow(self, dead: Claim, mine: Path, token: str) -> bool:
        """Take the place of a holder that is dead; False if another contender does."""
        following = self._folder / f"{self._name}.{dead.token}.next"
        if not _place(mine, following):
            # Its maker renames it at once, unless it died as well; then the next call finds no such
            # file. Were it alive after all, its rename would find none either, and it would lose.
            if self._still.of(following, _read(following)[0]) >= self._ttl_s:
                following.unlink(missing_ok=True)
            return False
        _, now = _read(self._path)
        if now is None or now.token != dead.token:
            following.unlink(missing_ok=True)  # Somebody was here before us, or it was released.
            return False
        with suppress(FileNotFoundError):
            following.rename(self._path)
        _, now = _read(self._path)
        return now is not None and now.token == token

    def _begin(self, token: str) -> None:
        self.holder = None
        self._shown_at = time.monotonic()
        self._stop.clear()
        self._heart = threading.Thread(target=self._keep, args=(token,), name="lease", daemon=True)
        self._heart.start()

    def _keep(self, token: str) -> None:
        """Show that we live, until told to stop or until the lease is another's."""
        beat, refused = 0, False
        while not self._stop.wait(self._beat_s):
            try:
                _, claim = _read(self._path)
                if claim is None or claim.token != token:
                    log.warning("The lease (%s) was taken over by another worker.", self._note)
                    self._lost = True
                    return
                beat += 1
                self._written(token, beat).replace(self._path)
                self._shown_at = time.monotonic()
            except OSError as error:
                if not refused:
                    log.warning("The lease (%s) cannot be kept: %s", self._note, error)
                refused = True

    def _written(self, token: str, beat: int) -> Path:
        """Return a new file with a claim of ours, which nobody else reads."""
        path = self._folder / f"{self._name}.{token}.tmp"
        claim = {"version": 1, "token": token, "beat": beat, "note": self._note}
        note.write(path, json.dumps(claim))
        return path


def claims(volume: Path) -> tuple[Claim, ...]:
    """Return what all leases on the volume say, of living and of dead holders; empty without any.

    A holder lives if its `beat` is another one some seconds later.
    """
    with suppress(OSError):
        paths = sorted(layout.leases_folder(volume).glob("*.lease"))
        return tuple(claim for _, claim in map(_read, paths) if claim is not None)
    return ()


def sweep(volume: Path) -> None:
    """Delete what dead holders and contenders left two hours ago or earlier.

    A living claim changes every two seconds. One that is made in this very moment in the place of a
    dead one may go with it, and then is lost to its holder, as any lease may be. Where nothing can
    be deleted it stays, for somebody else or another time.
    """
    ages = Ages(volume)
    with suppress(OSError):
        for path in layout.leases_folder(volume).iterdir():
            with suppress(FileNotFoundError):
                if ages.over(path.lstat().st_mtime, DEAD_S):
                    path.unlink()


def _place(mine: Path, final: Path) -> bool:
    """Give the file `mine` a second name; False if that is taken."""
    try:
        os.link(mine, final)
    except FileExistsError:
        return False
    except OSError:
        # No hard links here. A reader may see this one empty; it takes that for one more claim.
        try:
            with final.open("x") as file:
                file.write(mine.read_text())
        except FileExistsError:
            return False
    return True


def _read(path: Path) -> tuple[str, Claim | None]:
    """Return the text of a claim and what it means; a damaged one has a holder as well."""
    try:
        text, _ = note.read(path, _MAX_BYTES)
    except FileNotFoundError:
        return "", None
    try:
        content = json.loads(text)
        claim = Claim(str(content["token"]), int(content["beat"]), str(content["note"]))
    except (ValueError, TypeError, KeyError):
        claim = Claim("", 0, "")
    if not _TOKEN.fullmatch(claim.token):
        # The token becomes a part of file names.
        claim = Claim(hashlib.sha256(text.encode()).hexdigest()[:32], 0, "")
    return text, claim
