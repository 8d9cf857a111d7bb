"""`python -m tests.fuzz NAME SECONDS`: look for bytes that a reader cannot bear.

New inputs that reach further than those in tests/fuzz/corpus are left in .fuzz/NAME; what breaks the
reader is left there as crash-…, and belongs into the corpus once it is mended.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["schemas", "model_cache", "worker"]):
    from schemas.openapi import components
    from tests.fuzz.targets import TARGETS

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).with_name("corpus")
MAX_BYTES = 4096
TIMEOUT_S = 5  # for one input of at most MAX_BYTES


def words() -> str:
    """Return the dictionary for the request: the names of all fields."""
    names = {
        name
        for schema in components().values()
        for name in schema.get("properties", {})
        if name.isascii()
    }
    return "".join(f'"\\"{name}\\":"\n' for name in sorted(names))


def main() -> None:
    """Fuzz one reader; the process ends with what libFuzzer makes of it."""
    name, seconds = sys.argv[1:3]
    found = ROOT / ".fuzz" / name
    found.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_BYTES}",
        f"-timeout={TIMEOUT_S}",
        f"-artifact_prefix={found}/",
        "-print_final_stats=1",
        "-verbosity=0",
    ]
    if name == "request":
        dictionary = found.with_name("request.dict")
        dictionary.write_text(words())
        options.append(f"-dict={dictionary}")
    atheris.Setup([sys.argv[0], *options, str(found), str(CORPUS / name)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
