"""`python -m benchmarks.plain_worker`: what a user would write by hand, to be measured beside ours.

A handler under the SDK as it is: A1111's answer by `response.json()`, returned. With a format, each picture is
decoded and encoded by Pillow, one after the other, with the format's defaults; its text is not kept.
"""

import argparse
import base64
import io
from typing import Any

import requests
from PIL import Image

TIMEOUT_S = 600


def answered(port: int, payload: dict[str, Any]) -> dict[str, Any]:
    """Return A1111's answer to a txt2img request."""
    url = f"http://127.0.0.1:{port}/sdapi/v1/txt2img"
    answer: dict[str, Any] = requests.post(url, json=payload, timeout=TIMEOUT_S).json()
    return answer


def encoded(image: str, kind: str, quality: int) -> str:
    """Return a picture, base64, in another format."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(image))) as picture:
        picture.save(file, kind, quality=quality)
    return base64.b64encode(file.getvalue()).decode()


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser("python -m benchmarks.plain_worker")
    parser.add_argument("--port", type=int, default=3000, help="A1111's port on this machine")
    parser.add_argument("--format", choices=("jpeg", "webp", "avif"))
    parser.add_argument("--quality", type=int, default=80)
    options = parser.parse_args()

    def handler(job: dict[str, Any]) -> dict[str, Any]:
        answer = answered(options.port, job["input"])
        if options.format is not None:
            answer["images"] = [
                encoded(image, options.format, options.quality) for image in answer["images"]
            ]
        return answer

    # Imported late: the SDK reads the command line of whoever imports it.
    import runpod  # noqa: PLC0415

    runpod.serverless.start({"handler": handler})


if __name__ == "__main__":
    main()
