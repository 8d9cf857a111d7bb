"""`python -m simulator hub`: hosts that serve model files from a folder, well or badly.

    /<path>                                        the file, with Range, ETag, HEAD, …
    /redirect/<path>                               302 to a signed link on the second host
    /<org>/<repo>/resolve/<revision>/<path>        like Hugging Face; also /api/models/…
    /api/download/models/<version id>              like Civitai; also /api/v1/model-versions/…
    /s3/<bucket>/<key>                             like an object store, with presigned URLs
    /simulator/journal, /simulator/faults          what was asked; what shall go wrong
    /simulator/reset-journal

Folders under the root: any for plain files, `huggingface/<org>/<repo>/`, `civitai/<version id>/`,
`s3/<bucket>/`.
`?fault-<name>=<value>` spoils one answer; `faults.Fault` lists the names.
"""

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from simulator.hub.app import first_host, second_host
from simulator.hub.links import Links
from simulator.hub.site import Site
from simulator.loopback import announce, listening, until_terminated


def main(argv: list[str]) -> int:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(
        "python -m simulator hub",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--root", type=Path, required=True, help="folder with the files")
    parser.add_argument("--port", type=int, default=0, help="port of the host that clients call")
    parser.add_argument("--second-port", type=int, default=0, help="port of the host behind it")
    parser.add_argument("--link-ttl-s", type=float, default=300, help="how long signed links live")
    parser.add_argument("--token", default=Site.token, help="the token that Civitai routes take")
    options = parser.parse_args(argv)
    if not options.root.is_dir():
        parser.error(f"--root: {options.root} is not a folder")
    asyncio.run(_serve(options))
    return 0


@contextlib.asynccontextmanager
async def hosts(site: Site, port: int = 0, second_port: int = 0) -> AsyncIterator[str]:
    """Serve `site` on two free or given ports while the context lasts; yield the first host's URL."""
    async with (
        listening(second_host(site), second_port) as site.links.base_url,
        listening(first_host(site), port) as url,
    ):
        yield url


async def _serve(options: argparse.Namespace) -> None:
    site = Site(options.root.resolve(), options.token, links=Links(options.link_ttl_s))
    async with hosts(site, options.port, options.second_port) as url:
        announce("hub", url, second_url=site.links.base_url)
        await until_terminated()
