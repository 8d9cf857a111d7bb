"""Signatures, by a store that checks them: rclone's."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import requests
from pydantic import SecretStr

from schemas.bucket import address_of
from schemas.errors import UploadRefusedError
from tests.worker.stores import bucket_at, destination, rclone, rclone_serving
from worker.delivery.bucket import Upload
from worker.delivery.store import Store

pytestmark = pytest.mark.slow
PICTURE = Upload("job/0.png", b"picture", "image/png")


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A store with the bucket `b`."""
    if (program := rclone()) is None:
        pytest.skip("no rclone here (make rclone)")
    folder = tmp_path_factory.mktemp("rclone")
    (folder / "b").mkdir()
    with rclone_serving(program, folder) as url:
        yield url


def put(url: str, **more: Any) -> str:
    [link] = bucket_at(url, "b", **more).put([PICTURE], threading.Event())
    return link


def test_what_is_uploaded_is_opened_by_its_link(strict: str) -> None:
    answer = requests.get(put(strict), timeout=5)

    assert (answer.status_code, answer.content) == (200, b"picture")
    assert answer.headers["Content-Type"] == "image/png"


def test_a_large_file_in_parts_is_signed_in_every_one(strict: str) -> None:
    data = b"0123456789abcdef" * (17 << 16)

    [link] = bucket_at(strict, "b").put([Upload("large.png", data, "image/png")], threading.Event())

    assert requests.get(link, timeout=10).content == data


def test_the_check_passes_where_uploads_do(strict: str, caplog: pytest.LogCaptureFixture) -> None:
    bucket_at(strict, "b").check()

    assert caplog.text == ""


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        pytest.param({"secret": "another"}, "SignatureDoesNotMatch", id="secret"),
        pytest.param({"key": "NOBODY"}, "InvalidAccessKeyId", id="key"),
    ],
)
def test_wrong_keys_are_refused_by_name(strict: str, keys: dict[str, str], code: str) -> None:
    with pytest.raises(UploadRefusedError, match=code):
        put(strict, **keys)


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        pytest.param("job/0.png", "job/1.png", id="another object"),
        pytest.param("X-Amz-Expires=600", "X-Amz-Expires=6000", id="a longer life"),
        pytest.param("X-Amz-Signature=", "X-Amz-Signature=0", id="another signature"),
    ],
)
def test_a_link_opens_nothing_but_its_picture(strict: str, good: str, bad: str) -> None:
    link = put(strict)
    assert good in link

    assert requests.get(link.replace(good, bad), timeout=5).status_code == 403


def test_a_link_ends(strict: str) -> None:
    put(strict)
    link = Store(destination(strict, "b"), allow_private=True).link("job/0.png", 1)

    deadline = time.monotonic() + 10
    while (status := requests.get(link, timeout=5).status_code) == 200:
        assert time.monotonic() < deadline
        time.sleep(0.2)

    assert status in {400, 403}


def test_a_temporary_key_sends_its_token_with_links() -> None:
    temporary = destination("https://s3.example.org", "b")
    keys = temporary.keys.model_copy(update={"session_token": SecretStr("token+1")})

    link = Store(replace(temporary, keys=keys), allow_private=True).link("x.png", 60)

    assert "X-Amz-Security-Token=token%2B1" in link


@pytest.mark.parametrize(
    ("endpoint", "name", "region", "link"),
    [
        ("https://bucket.s3.us-west-2.amazonaws.com", "", "", "https://bucket.s3.us-west-2.amazonaws.com/a.png"),
        ("", "bucket", "eu-west-1", "https://bucket.s3.eu-west-1.amazonaws.com/a.png"),
        ("", "a.bucket", "eu-west-1", "https://s3.eu-west-1.amazonaws.com/a.bucket/a.png"),
        ("https://s3.cn-north-1.amazonaws.com.cn/bucket", "", "", "https://bucket.s3.cn-north-1.amazonaws.com.cn/a.png"),
        ("https://bucket.nyc3.digitaloceanspaces.com", "", "", "https://bucket.nyc3.digitaloceanspaces.com/a.png"),
        ("https://storage.googleapis.com/bucket", "", "", "https://storage.googleapis.com/bucket/a.png"),
        ("https://bucket.example.org:8443", "bucket", "", "https://bucket.example.org:8443/a.png"),
        ("http://127.0.0.1:9000/s3/bucket", "bucket", "", "http://127.0.0.1:9000/s3/bucket/a.png"),
    ],
)  # fmt: skip
def test_a_link_is_at_the_host_of_the_buckets_own_region(
    endpoint: str, name: str, region: str, link: str
) -> None:
    there = replace(destination("", "b"), address=address_of(endpoint, name, region))

    assert Store(there, allow_private=True).link("a.png", 60).partition("?")[0] == link
