import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from benchmarks.file_server import FileServer, Hosted, Tally, hosted, self_signed
from benchmarks.link import DISTANT, MIB, THROTTLED, UNTHROTTLED, Link

CONTENT = hashlib.shake_256(b"file").digest(300_001)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a.bin").write_bytes(CONTENT)
    return folder


@pytest.fixture
def tally() -> Tally:
    return Tally()


@pytest.fixture
def host(files: Path, tally: Tally) -> Iterator[Hosted]:
    server = FileServer(files, tally)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield Hosted(server.url, "")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def get(host: Hosted, link: Link = UNTHROTTLED, **headers: str) -> requests.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return requests.get(host.file_url(link, "a.bin"), headers=names, timeout=10)


def test_a_file_comes_whole(host: Hosted) -> None:
    answer = get(host)

    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["Accept-Ranges"] == "bytes"


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        pytest.param("bytes=0-0", 0, 1, id="the first byte"),
        pytest.param("bytes=1000-299999", 1000, 300_000, id="from the middle"),
        pytest.param("bytes=300000-", 300_000, 300_001, id="to the end"),
        pytest.param("bytes=5-9999999", 5, 300_001, id="beyond the end"),
    ],
)
def test_a_range_is_that_part(host: Hosted, asked: str, start: int, end: int) -> None:
    answer = get(host, Range=asked)

    assert (answer.status_code, answer.content) == (206, CONTENT[start:end])
    assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/300001"


def test_a_range_is_of_the_version_that_is_asked_for_or_all_of_another(host: Hosted) -> None:
    etag = get(host).headers["ETag"]

    assert get(host, Range="bytes=0-9", If_Range=etag).status_code == 206
    assert get(host, Range="bytes=0-9", If_Range='"another"').content == CONTENT


def test_what_is_not_there_is_refused(host: Hosted) -> None:
    assert get(host, Range="bytes=300001-").status_code == 416
    for path in ("/", "/free/b.bin", "/nowhere/a.bin"):
        assert requests.get(host.url + path, timeout=10).status_code == 404


def test_bytes_of_files_are_counted_and_nothing_else(host: Hosted) -> None:
    get(host, Range="bytes=0-99")
    requests.head(host.file_url(UNTHROTTLED, "a.bin"), timeout=10)

    served = host.served()

    assert (served.body_bytes, served.requests) == (100, 2)
    assert served.connections == 3  # one was to ask for the count
    assert served.cpu_s > 0


def test_what_is_sent_to_a_client_that_leaves_counts_as_well(files: Path, host: Hosted) -> None:
    with requests.get(host.file_url(THROTTLED, "a.bin"), stream=True, timeout=10) as answer:
        assert answer.raw.read(1)

    assert 1 <= host.served().body_bytes <= files.joinpath("a.bin").stat().st_size


@pytest.mark.parametrize(
    ("link", "least_s"),
    [
        pytest.param(THROTTLED, len(CONTENT) / (20 * MIB), id="throttled"),
        # Two round trips to the first byte, and two windows for the rest of the file.
        pytest.param(DISTANT, 0.2, id="distant"),
    ],
)
def test_a_slow_link_takes_its_time(host: Hosted, link: Link, least_s: float) -> None:
    started = time.monotonic()

    assert get(host, link).content == CONTENT

    assert time.monotonic() - started >= least_s * 0.99


@pytest.mark.slow
def test_a_process_of_its_own_serves_by_tls_as_well(tmp_path: Path, files: Path) -> None:
    certificate = self_signed(tmp_path)

    with hosted(files, certificate) as host:
        by_tls = host.file_url(UNTHROTTLED, "a.bin", tls=True)
        answers = [
            requests.get(by_tls, timeout=10, verify=str(certificate[0])),
            requests.get(
                by_tls, timeout=10, verify=str(certificate[0]), headers={"Range": "bytes=7-99999"}
            ),
        ]
        with pytest.raises(requests.exceptions.SSLError):
            requests.get(by_tls, timeout=10)

        assert [answer.content for answer in answers] == [CONTENT, CONTENT[7:100_000]]
        assert host.served().body_bytes == len(CONTENT) + 99_993


@pytest.mark.slow
def test_a_server_without_files_does_not_start(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError, match="did not start"), hosted(tmp_path / "none"):
        pass

    assert "FileNotFoundError" in capfd.readouterr().err
