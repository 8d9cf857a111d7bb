"""A file as an HTTP answer: ranges, validators, the name to save it under; and doing that wrongly.

Knows which bytes to send and how, not which file a URL means.

Source: RFC 9110 sections 13.1.5 (If-Range), 14 (Range), 15.3.7 (206), 15.5.17 (416).
"""

import asyncio
import contextlib
import dataclasses
import email.utils
import hashlib
import os
import re
import urllib.parse
import zlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from aiohttp import web

from simulator.hub.faults import Fault
from simulator.hub.journal import Entry

CHUNK = 1 << 20
THROTTLE_STEP_S = 0.05


class UncheckedResponse(web.StreamResponse):
    """An answer whose headers are sent as they were set, true or not.

    aiohttp would add `Transfer-Encoding: chunked` where the length is missing and hold back bytes
    beyond a Content-Length that is too small. Source: aiohttp 3.14 web_response.py, _prepare_headers.
    """

    _length_check = False


@dataclass(frozen=True)
class Span:
    """Which bytes of the file an answer carries: `start` to `end` (exclusive) of `size`."""

    status: int
    start: int
    end: int
    size: int

    def headers(self) -> dict[str, str]:
        """Return the Content-Range that goes with the status, if one does."""
        if self.status == 206:
            return {"Content-Range": f"bytes {self.start}-{self.end - 1}/{self.size}"}
        return {"Content-Range": f"bytes */{self.size}"} if self.status == 416 else {}


def span(
    method: str, headers: Mapping[str, str], etag: str | None, modified: str, size: int
) -> Span:
    """Decide what a request for a file of `size` bytes is answered with.

    A Range that is malformed, has several parts, comes with another method than GET, or whose If-Range
    does not hold is ignored, as the RFC demands or allows.
    """
    whole = Span(200, 0, size, size)
    asked = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("Range", "").strip())
    condition = headers.get("If-Range")
    if asked is None or method != "GET" or asked.groups() == ("", ""):
        return whole
    if condition is not None and condition not in {etag, modified}:
        return whole
    first, last = asked.groups()
    if not first:
        start, end = max(size - int(last), 0), size
    else:
        start, end = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < start:
            return whole
    return Span(206, start, end, size) if start < end else Span(416, 0, 0, size)


async def send(
    request: web.Request, path: Path, entry: Entry, fault: Fault, extra: Mapping[str, str]
) -> web.StreamResponse:
    """Answer `request` with the bytes of `path`, wrong in the way that `fault` says.

    `extra` are headers beside those that follow from the file. Memory: one chunk of 1 MiB; the disk is
    read in a thread, so other requests go on.
    """
    stat = path.stat()  # noqa: ASYNC240 - a local file: microseconds
    etag = extra.get("ETag", _etag(stat, fault))
    modified = email.utils.formatdate(stat.st_mtime, usegmt=True)
    asked = {} if fault.no_range else request.headers
    part = span(request.method, asked, etag, modified, stat.st_size)
    part = _moved(part, fault)
    entry.size, entry.status = stat.st_size, part.status
    headers = {
        "Content-Type": "application/octet-stream",
        "Accept-Ranges": "none" if fault.no_range else "bytes",
        "Last-Modified": modified,
        "Content-Disposition": disposition(fault.filename, path.name),
        **part.headers(),
        **extra,
    }
    if etag is not None:
        headers["ETag"] = etag
    response = UncheckedResponse(status=part.status, headers=headers)
    _frame(response, part, fault)
    await response.prepare(request)
    if request.method != "HEAD":
        # A client that goes away in the middle is no error of ours.
        with contextlib.suppress(ConnectionResetError):
            await _body(response, path, part, entry, fault)
        entry.complete = entry.bytes_sent == part.end - part.start
    if fault.cut is not None and entry.bytes_sent >= fault.cut and request.transport is not None:
        request.transport.close()
    return response


def _moved(part: Span, fault: Fault) -> Span:
    """Return the part that is sent in place of the one that was asked for."""
    if part.status != 206:
        return part
    start = min(part.start + fault.shift, part.size - 1)
    end = min(part.end + fault.shift + fault.long, part.size)
    if fault.short is not None:
        end = min(end, start + fault.short)
    return dataclasses.replace(part, start=start, end=end)


def disposition(claimed: str | None, name: str) -> str:
    """Return the Content-Disposition that offers `name`, or `claimed` without any quoting.

    Source: RFC 6266; the plain `filename` beside `filename*` is what most hosts send.
    """
    if claimed is not None:
        return f'attachment; filename="{claimed}"'
    ascii_name = name.encode("ascii", "replace").decode().replace('"', "_").replace("\\", "_")
    return f"attachment; filename=\"{ascii_name}\"; filename*=UTF-8''{urllib.parse.quote(name)}"


class Digests:
    """SHA-256 of files, computed once for each state (size, modification time) of a file."""

    def __init__(self) -> None:
        self._known: dict[tuple[Path, int, int], str] = {}

    async def sha256(self, path: Path) -> str:
        """Return 64 hex digits, in lower case."""
        stat = path.stat()  # noqa: ASYNC240 - a local file: microseconds
        key = (path, stat.st_size, stat.st_mtime_ns)
        if key not in self._known:
            self._known[key] = await asyncio.to_thread(_sha256, path)
        return self._known[key]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _etag(stat: os.stat_result, fault: Fault) -> str | None:
    tag = f'"{stat.st_size:x}-{stat.st_mtime_ns:x}"'
    match fault.etag:
        case "none":
            return None
        case "weak":
            return f"W/{tag}"
        case "changing":
            return f'"{os.urandom(8).hex()}"'
        case _:
            return tag


def _frame(response: UncheckedResponse, part: Span, fault: Fault) -> None:
    """Say how long the body is, or will be found to be."""
    if fault.gzip:
        response.headers["Content-Encoding"] = "gzip"
    if fault.no_length:
        response.force_close()
    elif fault.chunked or fault.gzip or fault.junk:
        response.enable_chunked_encoding()
    else:
        response.headers["Content-Length"] = str(part.end - part.start + (fault.length or 0))
        if fault.length:
            response.force_close()


async def _body(
    response: web.StreamResponse, path: Path, part: Span, entry: Entry, fault: Fault
) -> None:
    """Send the bytes, or as many of them as the fault lets through."""
    end = min((limit for limit in (fault.cut, fault.stall) if limit is not None), default=None)
    with path.open("rb") as file:
        async for piece in _coded(_pieces(file, part, fault), gzip=fault.gzip):
            allowed = piece if end is None else piece[: end - entry.bytes_sent]
            await response.write(allowed)
            entry.bytes_sent += len(allowed)
            if end is not None and entry.bytes_sent >= end:
                break
            if fault.rate:
                await asyncio.sleep(len(piece) / fault.rate)
    if fault.junk:
        await response.write(bytes(fault.junk))
    if fault.stall is not None and entry.bytes_sent >= fault.stall:
        await asyncio.Event().wait()


async def _pieces(file: BinaryIO, part: Span, fault: Fault) -> AsyncIterator[bytes]:
    step = max(1, min(CHUNK, int(fault.rate * THROTTLE_STEP_S))) if fault.rate else CHUNK
    file.seek(part.start)
    for position in range(part.start, part.end, step):
        piece = await asyncio.to_thread(file.read, min(step, part.end - position))
        if fault.flip is not None and position <= fault.flip < position + len(piece):
            wrong = bytearray(piece)
            wrong[fault.flip - position] ^= 0xFF
            piece = bytes(wrong)
        yield piece


async def _coded(pieces: AsyncIterator[bytes], *, gzip: bool) -> AsyncIterator[bytes]:
    if not gzip:
        async for piece in pieces:
            yield piece
        return
    # 16 + 15: a gzip header around deflate with the largest window. Source: zlib manual, deflateInit2.
    packer = zlib.compressobj(level=1, wbits=16 + 15)
    async for piece in pieces:
        yield await asyncio.to_thread(packer.compress, piece)
    yield packer.flush()
