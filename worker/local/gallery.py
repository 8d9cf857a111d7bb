"""The pictures of local runs as one page, which needs nothing but itself and a browser.

It is written anew at each run from the JSON files beside the pictures, so whatever is deleted is gone
from it. All that runs or came from callers is text in it: escaped, and under a policy that lets the
browser run no script but the page's own and fetch nothing.
"""

import base64
import fcntl
import hashlib
import html
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile
from urllib.parse import quote

from worker.local.album import Picture, Run, runs

NAME = "index.html"
_TEMPLATE = Path(__file__).with_name("gallery.html")
_MARK = b'<meta name="generator" content="a1111-worker gallery">'
"""In the first kilobyte of every page of ours."""
_HEAD_BYTES = 1024
_MAX_ALT_CHARS = 200


def write(folder: Path) -> str | None:
    """Write the page into `folder`; return its name, None if a page that is not ours has that name.

    Raises:
        OSError: it could not be written; what was there is there.
    """
    page = folder / NAME
    with _alone(folder):
        if page.exists() and not _is_ours(page):
            return None
        text = rendered(runs(folder), folder)
        with NamedTemporaryFile(dir=folder, prefix=".index-", suffix=".part", delete=False) as part:
            try:
                part.write(text.encode(errors="replace"))
                part.close()
                Path(part.name).chmod(0o644)
                Path(part.name).replace(page)
            except OSError:
                Path(part.name).unlink(missing_ok=True)
                raise
    return NAME


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep out other runs that end now: the page that is written last is to know of all."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        # Where there are no locks the next run puts right what two at once leave out.
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _is_ours(page: Path) -> bool:
    with page.open("rb") as file:
        return _MARK in file.read(_HEAD_BYTES)


def rendered(found: list[Run], folder: Path) -> str:
    """Return the page of the runs `found`, without pictures that are not there any more."""
    template = _TEMPLATE.read_text(encoding="utf-8")
    head, _, tail = template.partition("<!--pictures-->")
    cards = [
        _card(run, picture)
        for run in found
        for picture in run.pictures
        if picture.is_url or _is_there(folder, picture.place)
    ]
    head = head.replace("@POLICY@", _policy(template)).replace("@COUNT@", str(len(cards)))
    return head + "".join(cards) + tail


def _is_there(folder: Path, place: str) -> bool:
    """Return whether `place` is a file's name in `folder`, or the path of one on the volume."""
    is_name = bool(place) and "/" not in place
    try:
        return (is_name or place.startswith("/")) and (folder / place).is_file()
    except OSError:  # a name that is too long
        return False


def _policy(template: str) -> str:
    """Return the page's content security policy: its own script and style alone, by their digests."""
    sources = " ".join(f"{kind}-src {_digest(template, kind)};" for kind in ("script", "style"))
    return (
        f"default-src 'none'; img-src 'self' file:; {sources} base-uri 'none'; form-action 'none'"
    )


def _digest(template: str, kind: str) -> str:
    found = re.search(rf"<{kind}>(.*?)</{kind}>", template, re.DOTALL)
    text = found[1] if found else ""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _card(run: Run, picture: Picture) -> str:
    """Return one picture of `run` as an item of the page's list."""
    what = picture.what.replace("_", " ")
    alt = f"{what}: {picture.prompt}" if picture.prompt else what
    size = f"{picture.width} x {picture.height}" if picture.width and picture.height else ""
    seed = "" if picture.seed is None else f"seed {picture.seed}"
    kind = "" if what == "picture" else f'<span class="what">{_text(what)}</span>'
    facts = "".join(
        f"<span><bdi>{_text(fact)}</bdi></span>" for fact in (size, seed, picture.model) if fact
    )
    when = f"{run.created:%Y-%m-%d %H:%M}"
    return f"""<li>
{_view(picture, alt[:_MAX_ALT_CHARS])}
<p class="prompt" dir="auto">{_text(picture.prompt)}</p>
<p class="facts">{kind}{facts}<time datetime="{run.created.isoformat()}">{when}</time></p>
{_parameters(picture.infotext)}</li>
"""


def _view(picture: Picture, alt: str) -> str:
    if picture.is_url:
        host = picture.place.partition("://")[2].partition("/")[0]
        return (
            f'<a class="away" href="{_text(picture.place)}" target="_blank"'
            f' rel="noopener noreferrer" aria-label="{_text(alt)}">Open the picture'
            f"<span>on <bdi>{_text(host)}</bdi></span></a>"
        )
    place = quote(picture.place)
    url = f"file://{place}" if picture.place.startswith("/") else f"./{place}"
    shape = f' width="{picture.width}" height="{picture.height}"' if picture.width else ""
    return (
        f'<a class="view" href="{url}">'
        f'<img src="{url}" alt="{_text(alt)}"{shape} loading="lazy"></a>'
    )


def _parameters(infotext: str) -> str:
    if not infotext:
        return ""
    return (
        f'<details><summary>Parameters</summary><pre dir="auto">{_text(infotext)}</pre></details>\n'
        '<button class="copy" type="button">Copy parameters</button>\n'
    )


def _text(text: str) -> str:
    """Return `text` as HTML that shows it, in an attribute too."""
    return html.escape(text, quote=True)
