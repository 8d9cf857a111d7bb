from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.bucket import Address, address_of, destination_of
from schemas.errors import InvalidInputError
from schemas.settings import Settings, SettingsError

ACCOUNT = "0123456789abcdef" * 2
R2 = f"https://{ACCOUNT}.r2.cloudflarestorage.com"
KEYS = {"BUCKET_ACCESS_KEY_ID": "a-key", "BUCKET_SECRET_ACCESS_KEY": "s3cr3t"}
BOTH_KEYS = {**KEYS, "BUCKET_ENDPOINT_URL": f"{R2}/b"}
CONFIG = {"accessId": "a-key", "accessSecret": "s3cr3t"}


@pytest.mark.parametrize(
    ("endpoint", "bucket", "address"),
    [
        ("", "b", Address("b", None, "us-east-1", "auto")),
        ("https://b.s3.us-west-2.amazonaws.com", "", Address("b", None, "us-west-2", "auto")),
        ("https://s3.eu-west-1.amazonaws.com", "b", Address("b", None, "eu-west-1", "auto")),
        ("https://s3.eu-west-1.amazonaws.com/b/", "", Address("b", None, "eu-west-1", "auto")),
        ("https://a.b.s3-eu-west-1.amazonaws.com", "", Address("a.b", None, "eu-west-1", "auto")),
        ("https://b.s3.amazonaws.com", "b", Address("b", None, "us-east-1", "auto")),
        ("https://s3.cn-north-1.amazonaws.com.cn", "b", Address("b", None, "cn-north-1", "auto")),
        (f"{R2}/b", "", Address("b", R2, "auto", "path")),
        (R2, "b", Address("b", R2, "auto", "path")),
        (
            f"https://b.{ACCOUNT}.eu.r2.cloudflarestorage.com",
            "",
            Address("b", f"https://{ACCOUNT}.eu.r2.cloudflarestorage.com", "auto", "virtual"),
        ),
        (
            "https://storage.googleapis.com/b",
            "",
            Address("b", "https://storage.googleapis.com", "auto", "path"),
        ),
        (
            "https://s3.us-west-004.backblazeb2.com",
            "b",
            Address("b", "https://s3.us-west-004.backblazeb2.com", "us-west-004", "path"),
        ),
        (
            "https://b.nyc3.digitaloceanspaces.com",
            "",
            Address("b", "https://nyc3.digitaloceanspaces.com", "nyc3", "virtual"),
        ),
        (
            "https://s3api-eu-ro-1.runpod.io/",
            "vol",
            Address("vol", "https://s3api-eu-ro-1.runpod.io", "eu-ro-1", "path"),
        ),
        ("http://minio:9000/b", "", Address("b", "http://minio:9000", "us-east-1", "path")),
        (
            "http://127.0.0.1:9000/s3/b",
            "b",
            Address("b", "http://127.0.0.1:9000/s3", "us-east-1", "path"),
        ),
        (
            "https://b.example.org:8443",
            "b",
            Address("b", "https://example.org:8443", "us-east-1", "virtual"),
        ),
        ("http://[::1]:9000/b", "", Address("b", "http://[::1]:9000", "us-east-1", "path")),
    ],
)
def test_an_endpoint_tells_bucket_store_and_region(
    endpoint: str, bucket: str, address: Address
) -> None:
    assert address_of(endpoint, bucket) == address


def test_what_is_said_wins_over_what_a_host_tells() -> None:
    by_path = address_of("https://b.example.org", "b", "mars-1", "path")

    assert by_path == Address("b", "https://b.example.org", "mars-1", "path")
    assert address_of(R2, "b", "eu", "virtual") == Address("b", R2, "eu", "virtual")


@pytest.mark.parametrize(
    ("endpoint", "bucket", "why"),
    [
        ("", "", "no bucket is named"),
        ("https://s3.eu-west-1.amazonaws.com", "", "no bucket is named"),
        ("https://minio.example.org", "", "no bucket is named"),
        ("https://a.s3.amazonaws.com", "b", "another bucket"),
        ("https://s3.amazonaws.com/a/b", "", "several parts"),
        ("https://s3.amazonaws.com/a", "b", "a prefix is for that"),
        ("https://user:pass@example.org/b", "", "not the URL of a store"),
        ("https://example.org/b?x=1", "", "not the URL of a store"),
        ("ftp://example.org/b", "", "not the URL of a store"),
        ("https://", "b", "not the URL of a store"),
        ("https://[::1/b", "", "not the URL of a store"),
        ("https://example.org:99999/b", "", "not the URL of a store"),
        ("", "a/../b", "no name of a bucket"),
        ("", "a..b", "no name of a bucket"),
        ("", "evil.org#", "no name of a bucket"),
    ],
)
def test_what_names_no_bucket_is_told_why(endpoint: str, bucket: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        address_of(endpoint, bucket)


@given(st.text(), st.text(), st.sampled_from(["auto", "path", "virtual"]))
def test_any_text_makes_an_address_or_a_reason(endpoint: str, bucket: str, style: Any) -> None:
    for url in (endpoint, f"https://{endpoint}", f"https://example.org/{endpoint}"):
        try:
            address = address_of(url, bucket, "", style)
        except ValueError as error:
            assert str(error)  # noqa: PT017 - either is right
        else:
            assert set(address.bucket).isdisjoint("/?#@: ")


def test_the_variables_of_the_runpod_sdk_make_a_bucket() -> None:
    settings = Settings.from_env(
        {**KEYS, "BUCKET_ENDPOINT_URL": f"{R2}/b", "BUCKET_PREFIX": "/pictures/"}
    )

    found = settings.output.destination()

    assert found is not None
    assert found.address == Address("b", R2, "auto", "path")
    assert found.prefix == "pictures"
    assert found.keys.secret_access_key.get_secret_value() == "s3cr3t"
    assert "s3cr3t" not in repr(settings) + repr(found) + str(settings.changed())


def test_without_any_of_them_there_is_no_bucket() -> None:
    assert Settings.from_env({"AWS_ACCESS_KEY_ID": "x"}).output.destination() is None


@pytest.mark.parametrize(
    ("environ", "why"),
    [
        pytest.param({"BUCKET_ENDPOINT_URL": R2}, "BUCKET_SECRET_ACCESS_KEY", id="no keys"),
        pytest.param(KEYS, "BUCKET_NAME", id="no bucket"),
        pytest.param({"BUCKET_SECRET_ACCESS_KEY": "s3cr3t"}, "BUCKET_ACCESS_KEY_ID", id="half"),
        pytest.param({**KEYS, "BUCKET_ENDPOINT_URL": R2}, "no bucket is named", id="no name"),
        pytest.param({"A1111_OUTPUT_LINK_TTL_S": "604801"}, "LINK_TTL_S", id="over seven days"),
        pytest.param({**BOTH_KEYS, "BUCKET_REGION": "eu west"}, "no name of a region", id="region"),
        pytest.param(
            {**BOTH_KEYS, "BUCKET_ACCESS_KEY_ID": "s3cr3t x"}, "KEY_ID.*one word", id="key"
        ),
        pytest.param({**BOTH_KEYS, "BUCKET_SECRET_ACCESS_KEY": "s3cr3té"}, "one word", id="secret"),
    ],
)
def test_half_a_bucket_stops_the_worker_at_start(environ: dict[str, str], why: str) -> None:
    with pytest.raises(SettingsError, match=why) as caught:
        Settings.from_env(environ)

    assert "s3cr3t" not in str(caught.value)


def test_a_job_names_a_bucket_in_runpods_words() -> None:
    found = destination_of({**CONFIG, "bucketName": "b", "endpointUrl": R2, "region": "weur"})

    assert found.address == Address("b", R2, "weur", "path")
    assert (found.prefix, found.public_url) == ("", None)
    assert "s3cr3t" not in repr(found)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"accessId": ""}, "s3Config.accessId"),
        ({"accessSecret": None}, "s3Config.accessSecret"),
        ({"bucketName": ["s3cr3t"]}, "s3Config.bucketName"),
        ({"bucket": "b"}, "s3Config.bucket"),
        ({"region": "a/b"}, "s3Config.region"),
        ({"region": "-"}, "s3Config.endpointUrl"),
        ({"accessId": "s3cr3t\nx"}, "s3Config.accessId"),
        ({"accessSecret": "s3cr3t\ud800"}, "s3Config.accessSecret"),
        ({"bucketName": ""}, "s3Config.endpointUrl"),
        ({"endpointUrl": "s3cr3t"}, "s3Config.endpointUrl"),
    ],
)
def test_an_s3_config_that_is_none_is_refused_by_field(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        destination_of({**CONFIG, "bucketName": "b", **change})

    assert caught.value.details["field"] == field
    assert "s3cr3t" not in str(caught.value.as_response())
