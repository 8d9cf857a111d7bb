import time
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config

from tests.simulator.hub.conftest import Client

GOOD = ("SIMULATEDKEY", "simulated-secret")


@pytest.fixture(autouse=True)
def bucket(client: Client) -> None:
    client.put("s3/bucket/a b/x+y.bin", b"0123456789")


def signed(client: Client, key: str = "a b/x+y.bin", **more: Any) -> str:
    """Return the path and query of a URL that boto3 signed."""
    access, secret = more.pop("keys", GOOD)
    store = boto3.session.Session().client(
        "s3",
        region_name="eu-central-1",
        endpoint_url=f"{client.url}/s3",
        aws_access_key_id=access,
        aws_secret_access_key=secret,
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )
    url: str = store.generate_presigned_url(
        "get_object", Params={"Bucket": more.pop("bucket", "bucket"), "Key": key}, **more
    )
    return url.removeprefix(client.url)


def test_a_signature_of_the_real_client_opens_an_object(client: Client) -> None:
    answer = client.get(signed(client), headers={"Range": "bytes=2-4"})

    assert (answer.status_code, answer.content) == (206, b"234")
    assert answer.headers["Content-Range"] == "bytes 2-4/10"


def test_a_public_bucket_needs_no_signature(client: Client) -> None:
    client.put("s3/open/x", b"open")
    client.put("s3/open/.public", b"")

    assert client.get("/s3/open/x").content == b"open"
    assert client.get("/s3/open/.public").status_code == 404


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/s3/bucket/a b/x+y.bin", 403, "AccessDenied"),
        ("/s3/none/x", 404, "NoSuchBucket"),
    ],
)
def test_without_a_signature_nothing_is_opened(
    path: str, status: int, code: str, client: Client
) -> None:
    answer = client.get(path)

    assert answer.status_code == status
    assert f"<Code>{code}</Code>" in answer.text


@pytest.mark.parametrize(
    ("more", "status", "code"),
    [
        ({"keys": ("NOBODY", "x")}, 403, "InvalidAccessKeyId"),
        ({"keys": ("SIMULATEDKEY", "wrong")}, 403, "SignatureDoesNotMatch"),
        ({"key": "none"}, 404, "NoSuchKey"),
        ({"ExpiresIn": 604_801}, 400, "AuthorizationQueryParametersError"),
    ],
)
def test_a_refusal_is_an_xml_error(
    more: dict[str, Any], status: int, code: str, client: Client
) -> None:
    answer = client.get(signed(client, **more))

    assert answer.status_code == status
    assert answer.headers["Content-Type"].startswith("application/xml")
    assert f"<Code>{code}</Code>" in answer.text


def test_a_signature_is_for_one_object(client: Client) -> None:
    client.put("s3/bucket/other", b"other")
    query = urlsplit(signed(client)).query

    assert "SignatureDoesNotMatch" in client.get(f"/s3/bucket/other?{query}").text


@pytest.mark.slow
def test_a_signature_expires(client: Client) -> None:
    path = signed(client, ExpiresIn=1)
    assert client.get(signed(client, ExpiresIn=60)).status_code == 200

    time.sleep(2.0)  # The signature's clock has whole seconds.

    assert "Request has expired" in client.get(path).text


def test_a_second_way_to_authenticate_is_refused(client: Client) -> None:
    answer = client.get(signed(client), headers={"Authorization": "Bearer x"})

    assert answer.status_code == 400
    assert "Only one auth mechanism" in answer.text
