"""What an older worker's container does until its first picture, in our words, to be measured beside ours.

    python -m benchmarks.older_container --port PORT [--until-loaded] -- COMMAND…

COMMAND starts their A1111, which loads its default checkpoint as soon as its port is open. Meanwhile the
SDK is imported; every 0.2 s A1111 is asked whether it is there; then the SDK's loop takes jobs. A job
that needs another checkpoint fetches it in one stream, has A1111 look for new files, and asks for the
picture with an override that A1111 takes back afterwards.

Source: ashleykleynhans/runpod-worker-a1111, start.sh and rp_handler.py (`wait_for_service`, `download`,
`send_post_request`, `handler`), as in the copy generativelabs/runpod-worker-a1111 at 0ceef9ea;
runpod-workers/worker-a1111 at 093a7397, src/handler.py, waits in the same way.

Theirs are three jobs: the download, the refresh and the picture; here they are one, in their favour, as the
SDK takes one a second. With --until-loaded no job is taken before the default checkpoint is loaded; theirs
take one when the port is open, which with --nowebui is before.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import requests

TIMEOUT_S = 600
_LOOK_S = 0.2
_CHUNK_BYTES = 8192
_SMALL = {"prompt": "", "steps": 1, "width": 64, "height": 64}


class Handler:
    """Does jobs on the A1111 at a port."""

    def __init__(self, port: int) -> None:
        self._base_url = f"http://127.0.0.1:{port}/sdapi/v1"
        self._session = requests.Session()

    def wait(self, *, until_loaded: bool) -> None:
        """Return when A1111 answers; with `until_loaded` when it has made a picture."""
        while True:
            try:
                requests.get(f"{self._base_url}/sd-models", timeout=TIMEOUT_S)
            except requests.ConnectionError:
                time.sleep(_LOOK_S)
            else:
                break
        if until_loaded:
            self._post("txt2img", _SMALL)

    def __call__(self, job: dict[str, Any]) -> Any:
        """Return A1111's answer to the payload, for which a checkpoint was fetched before."""
        given = job["input"]
        fetch(given["source_url"], Path(given["download_path"]))
        self._post("refresh-checkpoints", {})
        return self._post("txt2img", given["payload"])

    def _post(self, route: str, body: dict[str, Any]) -> Any:
        return self._session.post(f"{self._base_url}/{route}", json=body, timeout=TIMEOUT_S).json()


def fetch(url: str, path: Path) -> None:
    """Fetch a file as it comes, and give it its name at the end."""
    unfinished = path.with_name(f"{path.name}.part")
    with requests.get(url, stream=True, timeout=TIMEOUT_S) as response:
        response.raise_for_status()
        with unfinished.open("wb") as file:
            for chunk in response.iter_content(_CHUNK_BYTES):
                file.write(chunk)
    unfinished.replace(path)


def main() -> int:
    """Serve until the SDK's loop ends."""
    parser = argparse.ArgumentParser("python -m benchmarks.older_container")
    parser.add_argument("--port", type=int, required=True, help="A1111's port on this machine")
    parser.add_argument("--until-loaded", action="store_true")
    parser.add_argument("command", nargs="+")
    options = parser.parse_args()
    sys.argv[1:] = []  # the SDK parses what is left
    subprocess.Popen(options.command)
    # After A1111's start, as their start.sh has it: the two import at the same time.
    import runpod  # noqa: PLC0415

    handler = Handler(options.port)
    handler.wait(until_loaded=options.until_loaded)
    runpod.serverless.start({"handler": handler})
    return 0


if __name__ == "__main__":
    sys.exit(main())
