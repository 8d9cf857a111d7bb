"""Start one of the simulators by name: `python -m simulator webui|hub|queue|models …`."""

import importlib
import sys

USAGE = """\
usage: python -m simulator NAME [options]

  webui    AUTOMATIC1111's API, without a GPU
  hub      hosts that serve models: plain files, Hugging Face-like, Civitai-like
  queue    RunPod's job queue: takes /run and /runsync, hands jobs to the real SDK loop
  models   lay out a folder with one small checkpoint and one LoRA

The three servers listen on 127.0.0.1 (--port 0 picks a free port) and, once they listen, print one
JSON line: {"simulator": NAME, "url": "http://127.0.0.1:PORT"}. SIGTERM ends them.
python -m simulator NAME --help shows the options of each.
"""

NAMES = ("webui", "hub", "queue", "models")


def main(argv: list[str]) -> int:
    """Run the simulator that `argv` names with the options after it; return its exit status."""
    if argv and argv[0] in {"-h", "--help"}:
        print(USAGE, end="")
        return 0
    if not argv or argv[0] not in NAMES:
        if argv:
            print(f"There is no simulator named {argv[0]!r}.", file=sys.stderr)
        print(USAGE, end="", file=sys.stderr)
        return 2
    # Imported by name and late: each server starts without paying for the others.
    status: int = importlib.import_module(f"simulator.{argv[0]}").main(argv[1:])
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
