"""Uploads to a real store, moto's, by way of a proxy that can break things."""

import io
import itertools
import json
import logging
import threading
import time
from collections.abc import Iterator
from contextvars import copy_context
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
import requests
from botocore.config import Config

from schemas.bucket import Address, Destination
from schemas.errors import (
    InvalidInputError,
    JobCancelledError,
    UploadFailedError,
    UploadRefusedError,
)
from schemas.settings import Settings
from tests.worker.stores import (
    KEY,
    SECRET,
    Proxy,
    bucket_at,
    destination,
    moto,
    proxied,
    refusing,
)
from worker.delivery.bucket import PROBE, Bucket, How, Upload, bucket_of
from worker.log import logs

pytestmark = pytest.mark.slow
MB = 1 << 20
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    with moto() as url:
        yield url


@pytest.fixture(scope="module")
def client(store: str) -> Any:
    return boto3.session.Session().client(
        "s3",
        endpoint_url=store,
        region_name="us-east-1",
        aws_access_key_id=KEY,
        aws_secret_access_key=SECRET,
        config=Config(s3={"addressing_style": "path"}),
    )


@pytest.fixture
def name(client: Any) -> str:
    """A new bucket."""
    name = f"bucket-{next(NUMBERS)}"
    client.create_bucket(Bucket=name)
    return name


@pytest.fixture
def way(store: str) -> Iterator[Proxy]:
    with proxied(store) as proxy:
        yield proxy


def upload(key: str = "job/0.png", data: bytes = b"picture") -> Upload:
    return Upload(key, data, "image/png")


def keys(client: Any, name: str) -> list[str]:
    return [found["Key"] for found in client.list_objects_v2(Bucket=name).get("Contents", [])]


def put(bucket: Bucket, *files: Upload) -> list[str]:
    return bucket.put(files or [upload()], threading.Event())


def until(what: Any, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_every_file_has_a_link_that_opens_it_in_order(store: str, name: str) -> None:
    files = [upload(f"job/{index}.png", b"%d" % index * 1000) for index in range(9)]

    links = put(bucket_at(store, name), *files)

    answers = [requests.get(link, timeout=5) for link in links]
    assert [answer.content for answer in answers] == [file.data for file in files]
    assert {answer.headers["Content-Type"] for answer in answers} == {"image/png"}
    assert all("X-Amz-Expires=600" in link for link in links)


def test_nothing_to_upload_asks_nobody(way: Proxy) -> None:
    assert bucket_at(way.url, "none").put([], threading.Event()) == []
    assert way.seen == []


def test_a_job_that_is_delivered_twice_leaves_its_files_once(
    store: str, client: Any, name: str
) -> None:
    bucket = bucket_at(store, name)
    put(bucket, upload(data=b"first"))

    [link] = put(bucket, upload(data=b"second"))

    assert keys(client, name) == ["job/0.png"]
    assert requests.get(link, timeout=5).content == b"second"


def test_a_prefix_and_a_public_url_make_the_link(store: str, client: Any, name: str) -> None:
    bucket = bucket_at(store, name, prefix="a/b", public_url="https://cdn.example.com/x")

    assert put(bucket) == ["https://cdn.example.com/x/a/b/job/0.png"]
    assert keys(client, name) == ["a/b/job/0.png"]


def test_a_large_file_goes_in_parts_and_arrives_whole(store: str, client: Any, name: str) -> None:
    data = bytes(range(256)) * (17 * MB // 256) + b"the end"

    [link] = put(bucket_at(store, name), upload(data=data))

    assert requests.get(link, timeout=20).content == data
    found = client.head_object(Bucket=name, Key="job/0.png")
    assert found["ETag"].endswith('-3"')
    assert found["ContentType"] == "image/png"


def test_connections_are_kept_between_jobs(way: Proxy, name: str) -> None:
    bucket = bucket_at(way.url, name)

    for _ in range(3):
        put(bucket)

    assert len(way.seen) == 3
    assert len({seen.client for seen in way.seen}) == 1


def test_no_request_carries_a_checksum_that_some_stores_refuse(way: Proxy, name: str) -> None:
    put(bucket_at(way.url, name), upload(), upload("job/1.png", b"x" * (16 * MB + 1)))

    sent = {header for seen in way.seen for header in seen.headers}
    assert {"authorization", "content-type", "x-amz-content-sha256"} <= sent
    assert not {header for header in sent if "checksum" in header or "trailer" in header}


@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([refusing("SlowDown", 503)] * 2, id="503 twice"),
        pytest.param(["cut"] * 2, id="cut twice"),
        pytest.param([refusing("RequestTimeout", 400)], id="400 that passes"),
        pytest.param([(429, b"")], id="429 without a word"),
    ],
)
def test_what_passes_is_tried_again(way: Proxy, name: str, faults: list[Any]) -> None:
    way.faults = list(faults)

    [link] = put(bucket_at(way.url, name), upload(data=b"x" * MB))

    assert way.methods() == ["PUT"] * (len(faults) + 1)
    assert requests.get(link, timeout=5).content == b"x" * MB


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        pytest.param(refusing("SlowDown", 503), "answered 503", id="503"),
        pytest.param("cut", "could not be reached", id="cut"),
    ],
)
def test_after_three_tries_it_is_told_as_retryable(
    way: Proxy, name: str, fault: Any, said: str
) -> None:
    way.faults = [fault] * 3

    with pytest.raises(UploadFailedError, match=said) as caught:
        put(bucket_at(way.url, name), upload(data=b"x" * MB))

    assert caught.value.as_response()["retryable"] is True
    assert len(way.seen) == 3


def test_a_failure_with_status_200_when_parts_are_joined_is_one(way: Proxy, name: str) -> None:
    way.on, way.faults = "POST", [None, refusing("InternalError", 200)]

    put(bucket_at(way.url, name), upload(data=b"x" * (16 * MB + 1)))

    assert way.methods().count("POST") == 3


@pytest.mark.parametrize(
    ("code", "status", "hint"),
    [
        ("NoSuchBucket", 404, "BUCKET_NAME"),
        ("InvalidAccessKeyId", 403, "BUCKET_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", 403, "BUCKET_SECRET_ACCESS_KEY"),
        ("AuthorizationHeaderMalformed", 400, "BUCKET_REGION"),
        ("AccessDenied", 403, "s3:PutObject"),
        ("Unauthorized", 401, "s3:PutObject"),
        ("EntityTooLarge", 400, "size"),
    ],
)
def test_a_refusal_is_told_at_once_with_what_to_do(
    way: Proxy, name: str, code: str, status: int, hint: str
) -> None:
    way.faults = [refusing(code, status)]

    with pytest.raises(UploadRefusedError, match=code) as caught:
        put(bucket_at(way.url, name))

    assert hint in caught.value.hint
    assert caught.value.as_response()["retryable"] is False
    assert caught.value.details == {"bucket": name, "status": status, "store_code": code}
    assert len(way.seen) == 1


def test_a_clock_that_is_wrong_is_named(way: Proxy, name: str) -> None:
    way.faults = [refusing("RequestTimeTooSkewed", 403)]
    way.headers = {"Date": "Sat, 21 Nov 2026 10:00:00 GMT"}

    with pytest.raises(UploadFailedError, match=r"clock is wrong.*21 Nov 2026 10:00") as caught:
        put(bucket_at(way.url, name))

    assert caught.value.as_response()["retryable"] is True
    assert "keys are not at fault" in caught.value.hint
    assert len(way.seen) == 1


def test_a_bucket_that_is_not_there_is_named(store: str) -> None:
    with pytest.raises(UploadRefusedError, match=r"none-such at 127\.0\.0\.1 refused with NoSuchB"):
        put(bucket_at(store, "none-such"))


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param((403, b"<html>who are you"), id="a web page"),
        pytest.param((403, b"<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>"), id="entities"),
        pytest.param((400, refusing("a <b> &amp; c", 400)[1]), id="a code that is none"),
        pytest.param((307, b""), id="a redirect"),
        pytest.param((403, b"<Error>" + b"x" * (3 * MB)), id="megabytes"),
    ],
)
def test_an_answer_of_another_kind_is_a_typed_error(way: Proxy, name: str, answer: Any) -> None:
    way.headers = {"Location": "http://127.0.0.1:1/elsewhere"}
    way.faults = [answer] * 3

    with pytest.raises(UploadFailedError, match=r"refused with|as S3 does"):
        put(bucket_at(way.url, name))


def test_a_store_that_is_silent_is_given_up_in_time(way: Proxy, name: str) -> None:
    way.faults = ["silent"]
    began = time.monotonic()

    with pytest.raises(UploadFailedError, match=r"within 0\.3 s"):
        put(bucket_at(way.url, name, timeout_s=0.3))

    assert time.monotonic() - began < 10


def test_a_cancel_ends_what_is_being_sent_to_a_store_that_does_not_read(
    way: Proxy, name: str
) -> None:
    way.faults = ["silent"] * 4
    cancelled = threading.Event()
    # More than the sockets hold: it reads none of that.
    files = [upload(f"job/{index}.png", b"x" * (8 * MB)) for index in range(6)]
    set_at: list[float] = []

    def cancel_when_all_are_sending() -> None:
        until(lambda: len(way.seen) == 4)
        set_at.append(time.monotonic())
        cancelled.set()

    threading.Thread(target=cancel_when_all_are_sending).start()

    with pytest.raises(JobCancelledError):
        bucket_at(way.url, name).put(files, cancelled)

    assert time.monotonic() - set_at[0] < 15  # of the twenty that an upload has
    assert len(way.seen) == 4


def test_a_bucket_is_of_use_after_a_cancel(way: Proxy, name: str) -> None:
    bucket = bucket_at(way.url, name)
    way.faults = ["silent"]
    cancelled = threading.Event()
    cancelled.set()
    with pytest.raises(JobCancelledError):
        bucket.put([upload()], cancelled)
    way.faults = []

    assert len(put(bucket)) == 1


def test_parts_are_thrown_away_when_one_cannot_be_sent(way: Proxy, client: Any, name: str) -> None:
    way.faults = [None, refusing("QuotaExceeded", 403)]

    with pytest.raises(UploadRefusedError, match="QuotaExceeded"):
        put(bucket_at(way.url, name), upload(data=b"x" * (17 * MB)))

    until(lambda: "DELETE" in way.methods())
    until(lambda: "Uploads" not in client.list_multipart_uploads(Bucket=name))
    assert keys(client, name) == []


def test_whatever_is_logged_of_an_upload_has_the_id_of_its_job(way: Proxy, name: str) -> None:
    _, refusal = refusing("QuotaExceeded", 200)
    way.change = lambda _, body: refusal if b"CompleteMultipartUpload" in body else body
    way.on, way.faults = "DELETE", [refusing("AccessDenied", 403)]
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(logs.json_lines())

    def job() -> None:
        logs.job_id.set("j-1")
        put(bucket_at(way.url, name), upload(data=b"x" * (17 * MB)))

    logging.getLogger("worker").addHandler(handler)
    try:
        with pytest.raises(UploadFailedError):
            copy_context().run(job)
    finally:
        logging.getLogger("worker").removeHandler(handler)

    line = json.loads(lines.getvalue())
    assert line["message"].startswith("Parts of job/0.png stay in the bucket")
    assert line["requestId"] == "j-1"


def test_parts_are_thrown_away_after_a_cancel(way: Proxy, client: Any, name: str) -> None:
    way.faults = [None, "silent"]
    cancelled = threading.Event()

    def cancel_in_the_second_part() -> None:
        until(lambda: way.methods().count("PUT") >= 2)
        cancelled.set()

    threading.Thread(target=cancel_in_the_second_part).start()

    with pytest.raises(JobCancelledError):
        bucket_at(way.url, name).put([upload(data=b"x" * (17 * MB))], cancelled)

    until(lambda: "Uploads" not in client.list_multipart_uploads(Bucket=name))
    assert keys(client, name) == []


def test_jobs_that_upload_at_once_do_not_disturb_each_other(way: Proxy, name: str) -> None:
    bucket = bucket_at(way.url, name)
    way.faults = ["silent"]
    cancelled = threading.Event()
    ended: list[BaseException] = []

    def doomed() -> None:
        try:
            bucket.put([upload("doomed/0.png")], cancelled)
        except JobCancelledError as error:
            ended.append(error)

    thread = threading.Thread(target=doomed)
    thread.start()
    until(lambda: len(way.seen) == 1)
    links = put(bucket, upload("other/0.png"))
    cancelled.set()
    thread.join()

    assert len(links) == len(ended) == 1
    assert requests.get(links[0], timeout=5).content == b"picture"


def test_the_check_leaves_one_object_however_often(store: str, client: Any, name: str) -> None:
    bucket = bucket_at(store, name, prefix="p")

    bucket.check()
    bucket.check()

    assert keys(client, name) == [f"p/{PROBE}"]


def test_the_check_raises_what_an_upload_would(store: str) -> None:
    with pytest.raises(UploadRefusedError, match="NoSuchBucket"):
        bucket_at(store, "none-such").check()


def test_links_that_do_not_open_are_warned_of_without_their_signature(
    way: Proxy, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    way.on, way.faults = "GET", [refusing("AccessDenied", 403)]

    bucket_at(way.url, name).check()

    [record] = caplog.records
    assert "links to 127.0.0.1 do not open from here (403)" in record.message
    assert "X-Amz" not in record.message


def test_a_public_url_that_cannot_be_reached_is_warned_of(
    store: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    bucket_at(store, name, public_url="http://127.0.0.1:1/pictures").check()

    assert "do not open from here (unreachable)" in caplog.text


def test_a_host_that_is_no_store_is_not_reached() -> None:
    with pytest.raises(UploadFailedError, match="could not be reached"):
        put(bucket_at("http://127.0.0.1:1", "bucket"))


def test_a_certificate_that_nobody_signed_is_refused(way: Proxy) -> None:
    # It speaks no TLS at all, which is as little of a proof.
    with pytest.raises(UploadRefusedError, match="certificate"):
        put(bucket_at(way.url.replace("http:", "https:"), "bucket"))


def test_no_secret_is_in_a_log_an_error_or_a_repr(
    way: Proxy, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    bucket = bucket_at(way.url, name)
    way.faults = [refusing("SlowDown", 503), None, refusing("SignatureDoesNotMatch", 403)]

    with caplog.at_level(logging.DEBUG):
        [link] = put(bucket)
        with pytest.raises(UploadRefusedError) as caught:
            put(bucket)

    told = caplog.text + str(caught.value.as_response()) + repr(vars(bucket)) + repr(upload())
    signature = urlsplit(link).query
    assert [
        text for text in (SECRET, KEY, signature, "Signature=", "picture'") if text in told
    ] == []


def config(url: str, name: str, **more: str) -> dict[str, str]:
    return {
        "accessId": KEY,
        "accessSecret": SECRET,
        "bucketName": name,
        "endpointUrl": url,
        **more,
    }


def settings(**environ: str) -> Settings:
    return Settings.from_env(environ)


def test_a_job_brings_its_own_bucket_in_runpods_words(store: str, name: str) -> None:
    own = settings(A1111_CACHE_ALLOW_PRIVATE_HOSTS="true", A1111_OUTPUT_LINK_TTL_S="90")

    bucket = bucket_of(own, config(f"{store}/{name}", ""))

    assert bucket is not None
    [link] = put(bucket)
    assert requests.get(link, timeout=5).content == b"picture"
    assert "X-Amz-Expires=90" in link
    assert bucket_of(own, config(f"{store}/{name}", "")) is bucket


def test_the_settings_name_a_bucket_that_may_be_private(store: str, name: str) -> None:
    bucket = bucket_of(
        settings(
            BUCKET_ENDPOINT_URL=f"{store}/{name}",
            BUCKET_ACCESS_KEY_ID=KEY,
            BUCKET_SECRET_ACCESS_KEY=SECRET,
        ),
        None,
    )

    assert bucket is not None
    bucket.check()
    assert len(put(bucket)) == 1


def test_a_callers_bucket_at_a_private_address_hears_nothing(way: Proxy) -> None:
    bucket = bucket_at(way.url, "b", allow_private=False)

    with pytest.raises(UploadRefusedError, match="not at a public address"):
        put(bucket)

    assert way.seen == []


@pytest.mark.parametrize(
    ("value", "environ", "field"),
    [
        pytest.param("text", {}, "s3Config", id="no object"),
        pytest.param(config("http://s3.example.com", "b"), {}, "s3Config.endpointUrl", id="http"),
        pytest.param(
            config("https://s3.example.com", "b"),
            {"A1111_CACHE_ALLOWED_HOSTS": "example.org,amazonaws.com"},
            "s3Config.endpointUrl",
            id="host",
        ),
    ],
)
def test_a_bucket_that_may_not_be_asked_is_refused_by_field(
    value: object, environ: dict[str, str], field: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        bucket_of(settings(**environ), value)

    assert caught.value.details["field"] == field
    assert SECRET not in str(caught.value.as_response())


def test_allowed_hosts_let_their_own_buckets_through() -> None:
    allowed = settings(A1111_CACHE_ALLOWED_HOSTS="amazonaws.com,example.org")

    assert bucket_of(allowed, config("https://b.s3.eu-west-1.amazonaws.com", ""))
    assert bucket_of(allowed, config("https://s3.example.org", "b"))


def test_without_any_word_of_a_bucket_there_is_none() -> None:
    assert bucket_of(Settings(), None) is None


def test_an_endpoint_that_makes_no_client_is_a_refusal() -> None:
    with pytest.raises(UploadRefusedError, match="cannot be asked with these settings"):
        put(bucket_at("http://store..example", "b"))


def test_a_request_that_no_header_can_carry_is_a_refusal(store: str) -> None:
    where = Destination(Address("b", store, "us-east-1\n", "path"), destination(store, "b").keys)

    with pytest.raises(UploadRefusedError, match=r"cannot be asked\.$"):
        put(Bucket(where, How(allow_private=True, timeout_s=5, link_ttl_s=600)))


def test_keys_that_were_pasted_with_a_line_break_are_right(store: str, name: str) -> None:
    found = Settings.from_env(
        {
            "BUCKET_ENDPOINT_URL": f"{store}/{name}",
            "BUCKET_ACCESS_KEY_ID": f"{KEY}\n",
            "BUCKET_SECRET_ACCESS_KEY": f" {SECRET}\r\n",
        }
    )

    bucket = bucket_of(found, None)

    assert bucket is not None
    assert requests.get(put(bucket)[0], timeout=10).content == b"picture"
