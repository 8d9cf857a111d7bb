"""The RunPod Hub looks for a file of this name; the image starts rp_handler.py."""
# ruff: noqa: INP001 - the Hub looks here

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).parent.parent / "rp_handler.py"), run_name="__main__")
