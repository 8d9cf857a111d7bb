import base64
import json
from pathlib import Path

from worker.local import save


def test_pictures_and_json_become_files(tmp_path: Path) -> None:
    png, webp = b"\x89PNG rest", b"RIFF rest"
    result = {"images": [base64.b64encode(data).decode() for data in (png, webp)], "info": "é"}

    files = save(result, tmp_path / "output", "job")

    assert [file.name for file in files] == ["job-0.png", "job-1.webp", "job.json"]
    assert files[0].read_bytes() == png
    assert json.loads(files[2].read_text()) == result


def test_the_id_of_a_job_cannot_leave_the_folder(tmp_path: Path) -> None:
    [file] = save({}, tmp_path / "output", "../../x")

    assert file == tmp_path / "output" / "______x.json"
