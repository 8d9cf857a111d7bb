"""What the older workers do with a job, in our words, to be measured beside ours.

    python -m benchmarks.older_worker --port 3000 < job.json

`envelope_handler`: ashleykleynhans/runpod-worker-a1111, rp_handler.py: the session of lines 22-24,
`send_post_request` (58-74), `validate_input`, `validate_api`, `validate_payload` (77-110) and `handler`
(180-236), as in the copy generativelabs/runpod-worker-a1111 at 0ceef9ea. The job is checked three
times with the SDK's rp_validator, the payload is posted, the body of the answer is the result.

`flat_handler`: runpod-workers/worker-a1111 at 093a7397, src/handler.py: the session of lines 8-10,
`run_inference` (38-44) and `handler` (50-58). The input is posted as it is, whatever comes back is
the result.

Both let requests ask for gzip, and A1111 then compresses the pictures, which are compressed already:
that is most of what their way costs. Source: A1111 1.10.1, modules/initialize_util.py,
setup_middleware; Starlette's GZipMiddleware, level 9.

Neither knows models: the caller writes the LoRA tags, names the checkpoint in `override_settings`, and
has put the files there before. Left out, in their favour: the lines that they print for each job, those
fields of the payload's schema that the job does not use, and its lists of samplers and schedulers, which
runpod-python 1.12.0 does not apply to a field that has a default.
"""

import argparse
import contextlib
import json
import sys
from typing import Any

import requests
from requests.adapters import HTTPAdapter, Retry

TIMEOUT_S = 600

_API_SCHEMA: dict[str, Any] = {
    "method": {"type": str, "required": True},
    "endpoint": {"type": str, "required": True},
}
_INPUT_SCHEMA: dict[str, Any] = {
    "api": {"type": dict, "required": True},
    "payload": {"type": dict, "required": True},
}
_TXT2IMG_SCHEMA: dict[str, Any] = {
    "prompt": {"type": str, "required": True},
    "negative_prompt": {"type": str, "required": False, "default": ""},
    "seed": {"type": int, "required": False, "default": -1},
    "sampler_name": {"type": str, "required": False, "default": "Euler a"},
    "scheduler": {"type": str, "required": False, "default": "automatic"},
    "batch_size": {"type": int, "required": False, "default": 1},
    "steps": {"type": int, "required": False, "default": 20},
    "cfg_scale": {"type": float, "required": False, "default": 7.0},
    "width": {"type": int, "required": False, "default": 512},
    "height": {"type": int, "required": False, "default": 512},
    "override_settings": {"type": dict, "required": False, "default": {}},
    "override_settings_restore_afterwards": {"type": bool, "required": False, "default": True},
}


class OlderWorker:
    """Both handlers, on one WebUI, with the one session that each of them keeps."""

    def __init__(self, port: int) -> None:
        self._base_url = f"http://127.0.0.1:{port}"
        self._session = requests.Session()
        retries = Retry(total=10, backoff_factor=0.1, status_forcelist=[502, 503, 504])
        self._session.mount("http://", HTTPAdapter(max_retries=retries))

    def close(self) -> None:
        """Close the session's connections."""
        self._session.close()

    def envelope_handler(self, job: dict[str, Any]) -> Any:
        """Return what runpod-worker-a1111 returns for `{"api": …, "payload": …}`."""
        given = job["input"]
        for schema, part in (
            (_INPUT_SCHEMA, given),
            (_API_SCHEMA, given["api"]),
            (_TXT2IMG_SCHEMA, given["payload"]),
        ):
            checked = _validated(part, schema)
            if "errors" in checked:
                return {"error": "\n".join(checked["errors"])}
        response = self._session.post(
            f"{self._base_url}/{given['api']['endpoint'].lstrip('/')}",
            json=checked["validated_input"],
            timeout=TIMEOUT_S,
        )
        if response.status_code != 200:
            return {
                "error": f"A1111 status code: {response.status_code}",
                "output": response.json(),
                "refresh_worker": True,
            }
        return response.json()

    def flat_handler(self, job: dict[str, Any]) -> Any:
        """Return what worker-a1111 returns for the fields of txt2img."""
        url = f"{self._base_url}/sdapi/v1/txt2img"
        return self._session.post(url, json=job["input"], timeout=TIMEOUT_S).json()


def _validated(part: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    # Imported late: the SDK takes more than a second.
    from runpod.serverless.utils.rp_validator import validate  # noqa: PLC0415

    checked: dict[str, Any] = validate(part, schema)
    return checked


def main() -> int:
    """Do the job on stdin in the way that its form asks for, and print the result."""
    parser = argparse.ArgumentParser("python -m benchmarks.older_worker")
    parser.add_argument("--port", type=int, default=3000, help="A1111's port on this machine")
    job = json.load(sys.stdin)
    with contextlib.closing(OlderWorker(parser.parse_args().port)) as worker:
        handler = worker.envelope_handler if "api" in job["input"] else worker.flat_handler
        print(json.dumps(handler(job)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
