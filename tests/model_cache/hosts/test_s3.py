from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests

from model_cache.hosts import s3
from model_cache.hosts.s3 import Reference
from schemas.errors import InvalidInputError
from schemas.settings import CacheSettings
from tests.model_cache.asking import SECRET, fetched, resolved
from tests.model_cache.conftest import Hub

SETTINGS = CacheSettings()
KEYS: dict[str, Any] = {
    "s3_access_key_id": "SIMULATEDKEY",
    "s3_secret_access_key": "simulated-secret",
}


def put(hub: Hub, name: str, body: bytes = b"object") -> None:
    path = hub.root / "s3" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(body)


@pytest.mark.parametrize(
    ("url", "reference"),
    [
        ("s3://bucket/key", Reference("bucket", "key")),
        ("S3://buc.ket-1/a b/ü%20.bin", Reference("buc.ket-1", "a b/ü%20.bin")),
        ("s3://b/k?versionId=v%2F1", Reference("b", "k", "v/1")),
    ],
)
def test_a_reference_names_an_object_by_its_literal_key(url: str, reference: Reference) -> None:
    assert s3.read(url, SETTINGS) == reference
    assert s3.read(reference.key, SETTINGS) == reference
    assert not reference.mutable


@pytest.mark.parametrize(
    "url",
    [
        "s3://",
        "s3://b",
        "s3://b/",
        "s3:///k",
        "s3://b/folder/",
        "s3://a:b@c/k",
        "s3://../k",
        "s3://b/\n",
    ],
)
def test_a_reference_that_names_no_object_is_refused(url: str) -> None:
    with pytest.raises(InvalidInputError, match="no object"):
        s3.read(url, SETTINGS)


def test_other_schemes_are_left_to_others() -> None:
    assert s3.read("https://bucket.s3.amazonaws.com/key", SETTINGS) is None


@pytest.mark.parametrize("key", ["x.safetensors", "a b/ü+&=%20~.safetensors", "deep/er/x"])
def test_a_signed_url_opens_a_private_object(key: str, model_hub: Hub) -> None:
    put(model_hub, f"bucket/{key}")

    download = resolved(model_hub, f"s3://bucket/{key}", **KEYS)

    assert fetched(model_hub, download) == b"object"
    assert download.source == f"s3://bucket/{key}"
    assert download.file_name == key.rpartition("/")[2]
    assert "simulated-secret" not in repr(download) + download.url
    assert download.authorization == ""


def test_signing_asks_nobody(model_hub: Hub) -> None:
    resolved(model_hub, "s3://bucket/none", **KEYS)

    assert model_hub.requests == []


def test_without_keys_a_public_object_is_asked_for_unsigned(model_hub: Hub) -> None:
    put(model_hub, "open/x")
    put(model_hub, "open/.public")

    download = resolved(model_hub, "s3://open/x")

    assert download.url == f"{model_hub.url}/s3/open/x"
    assert fetched(model_hub, download) == b"object"


@pytest.mark.parametrize(
    "keys",
    [{}, {**KEYS, "s3_secret_access_key": SECRET}, {**KEYS, "s3_access_key_id": "NOBODY"}],
)
def test_the_wrong_keys_open_nothing(keys: dict[str, Any], model_hub: Hub) -> None:
    put(model_hub, "bucket/x")

    download = resolved(model_hub, "s3://bucket/x", **keys)

    assert requests.get(download.url, timeout=5).status_code == 403


@pytest.mark.parametrize(
    ("max_download_s", "life_s"), [(60, 3600), (1800, 3600), (9000, 18_000), (10**6, 604_800)]
)
def test_a_signature_outlives_the_longest_download(max_download_s: int, life_s: int) -> None:
    settings = CacheSettings.model_validate({**KEYS, "max_download_s": max_download_s})

    query = parse_qs(urlsplit(s3.resolve(Reference("b", "k"), settings).url).query)

    assert query["X-Amz-Expires"] == [str(life_s)]


def test_aws_is_asked_by_the_buckets_own_host_in_its_region() -> None:
    settings = CacheSettings.model_validate(
        {**KEYS, "s3_region": "eu-central-1", "s3_session_token": "temporary"}
    )

    url = urlsplit(s3.resolve(Reference("bucket", "k", "v"), settings).url)

    assert url.hostname == "bucket.s3.eu-central-1.amazonaws.com"
    assert parse_qs(url.query)["versionId"] == ["v"]
    assert parse_qs(url.query)["X-Amz-Security-Token"] == ["temporary"]


def test_the_environments_own_endpoint_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://elsewhere.example")

    assert "elsewhere" not in s3.resolve(Reference("bucket", "k"), SETTINGS).url


def test_settings_that_make_no_url_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "none-such")

    with pytest.raises(InvalidInputError, match="ProfileNotFound"):
        s3.resolve(Reference("bucket", "k"), SETTINGS)


def test_signing_logs_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    settings = CacheSettings.model_validate({**KEYS, "s3_session_token": "temporary-token"})

    with caplog.at_level("DEBUG"):
        signature = parse_qs(urlsplit(s3.resolve(Reference("b", "k"), settings).url).query)

    for secret in ("temporary-token", "simulated-secret", signature["X-Amz-Signature"][0]):
        assert secret not in caplog.text
