from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from model_cache import sources
from model_cache.hosts import civitai, huggingface, s3, tokens, urls
from model_cache.sources import WebFile
from schemas.errors import InvalidInputError, WorkerError
from schemas.model_ref import Kind
from schemas.settings import CacheSettings
from tests.model_cache.asking import SECRET, resolved
from tests.model_cache.conftest import Hub

SETTINGS = CacheSettings(hf_token=SecretStr("hf-own"), civitai_token=SecretStr("civitai-own"))


@pytest.mark.parametrize(
    ("url", "key"),
    [
        pytest.param("https://h/m.safetensors", "https://h/m.safetensors", id="plain"),
        pytest.param("https://H:443/m#part", "https://h/m", id="case, port and fragment"),
        pytest.param("https://h.:8443/m", "https://h:8443/m", id="another port"),
        pytest.param("http://h:80/m", "http://h/m", id="http"),
        pytest.param("https://[2606:4700::1]/m", "https://[2606:4700::1]/m", id="IPv6"),
        pytest.param("https://h/m?token=s&api_key=s&API-KEY=s", "https://h/m", id="tokens"),
        pytest.param("https://h/m?download=true", "https://h/m", id="download"),
        pytest.param("https://h/?download=b.safetensors", "https://h/?download=b.safetensors", id="a file's name"),
        pytest.param(
            "https://civitai.com/api/download/models/1?type=Model&format=SafeTensor&token=s",
            "https://civitai.com/api/download/models/1?format=SafeTensor&type=Model",
            id="Civitai's choice of a file",
        ),
        pytest.param(
            "https://b.s3.amazonaws.com/m?X-Amz-Algorithm=A&X-Amz-Credential=C&X-Amz-Signature=S"
            "&versionId=3",
            "https://b.s3.amazonaws.com/m?versionId=3",
            id="S3",
        ),
        pytest.param("https://storage/m?X-Goog-Signature=s", "https://storage/m", id="Google"),
        pytest.param(
            "https://b.blob.core.windows.net/m?sv=1&se=2&sp=r&sr=b&sig=S",
            "https://b.blob.core.windows.net/m",
            id="Azure",
        ),
        pytest.param("https://h/m?st=2&sv=1", "https://h/m?st=2&sv=1", id="two letters, no signature"),
        pytest.param("https://cdn/m?Policy=p&Key-Pair-Id=k&Signature=s&Expires=1", "https://cdn/m", id="CloudFront"),
        pytest.param("https://gitlab/m?private_token=s&job_token=s&oauth_token=s", "https://gitlab/m", id="GitLab"),
        pytest.param("https://h/m?authkey=s&apitoken=s&userPassword=s&client-secret=s&Authorization=s", "https://h/m", id="secrets by other names"),
        pytest.param("https://h/m?author=a&tokenizer=t&design=d", "https://h/m?author=a&design=d&tokenizer=t", id="names that only look like it"),
        pytest.param("https://h/m?md5=s&expires=1", "https://h/m", id="nginx"),
        pytest.param("https://h/m?st=s&e=1", "https://h/m", id="nginx, short"),
        pytest.param("https://h/m?md5=a", "https://h/m?md5=a", id="a digest that may choose a file"),
        pytest.param("https://h/m?verify=1484063787-9JQB8v", "https://h/m", id="Cloudflare"),
        pytest.param("https://h/m?verify=yes", "https://h/m?verify=yes", id="no signature"),
        pytest.param("https://h/m?hdnts=exp=1~hmac=2", "https://h/m", id="Akamai"),
        pytest.param("https://h/m?v=&a=1", "https://h/m?a=1&v=", id="order and blank values"),
    ],
)  # fmt: skip
def test_a_source_key_has_what_tells_the_file_and_nothing_else(url: str, key: str) -> None:
    assert urls.source_key(url) == key


def test_a_parameter_called_key_tells_files_apart_without_being_kept() -> None:
    keys = {urls.source_key(f"https://h/m?key={value}") for value in ("AIzaSecret", "b")}

    assert len(keys) == 2
    assert "AIzaSecret" not in "".join(keys)


def test_what_a_url_hides_is_hidden_in_both_spellings_and_plain_words_are_not() -> None:
    url = "https://user:pass-word@h/m?token=a%2Fsecret&type=Model&x=long-enough-to-be-one&e=1&key=AIza1"

    hidden = urls.secrets(url)

    assert set(hidden) == {
        *("pass-word", "a/secret", "a%2Fsecret", "long-enough-to-be-one", "AIza1"),
    }
    assert hidden == sorted(hidden, key=len, reverse=True)


@pytest.mark.parametrize(
    ("one", "other"), [("https://h:443/a", "https://H/b"), ("http://h/", "http://h:80")]
)
def test_a_port_that_goes_without_saying_makes_no_other_origin(one: str, other: str) -> None:
    assert urls.origin(one) == urls.origin(other)


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126, blacklist_characters="#")))
def test_a_source_key_of_a_source_key_is_the_same(tail: str) -> None:
    try:
        key = urls.source_key(f"https://host/{tail}")
    except InvalidInputError:
        return
    if "key=" not in key.lower():
        assert urls.source_key(key) == key


@pytest.mark.parametrize("url", ["https://h:99999/m", "https://h:0/", "https://[::1", "https://"])
def test_a_url_that_names_no_host_is_refused(url: str) -> None:
    with pytest.raises(InvalidInputError):
        urls.source_key(url)


@pytest.mark.parametrize(
    ("url", "authorization"),
    [
        ("https://huggingface.co/org/repo/resolve/main/m", "Bearer hf-own"),
        ("https://hf.co/m", "Bearer hf-own"),
        ("https://cdn-lfs.huggingface.co./m", "Bearer hf-own"),
        ("https://CIVITAI.com/api/download/models/1", "Bearer civitai-own"),
        ("https://civitai.red/m", "Bearer civitai-own"),
        ("https://civitai.green/m", "Bearer civitai-own"),
        ("https://huggingface.co.evil.example/m", ""),
        ("https://evilhuggingface.co/m", ""),
        ("https://example.com/huggingface.co", ""),
    ],
)
def test_a_token_goes_to_its_own_host_alone(url: str, authorization: str) -> None:
    assert sources.web_file(url, SETTINGS, {}).authorization == authorization


def test_a_token_of_the_request_wins() -> None:
    download = sources.web_file("https://hf.co/m", SETTINGS, {"huggingface": "theirs"})

    assert download.authorization == "Bearer theirs"


def test_without_a_token_nothing_is_sent() -> None:
    assert sources.web_file("https://hf.co/m", CacheSettings(), {}).authorization == ""


@pytest.mark.parametrize("token", ["a\r\nX-Other: b", "tökén", "a\0"])
def test_a_token_that_no_header_can_carry_is_refused_unsaid(token: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        sources.web_file("https://hf.co/m", SETTINGS, {"huggingface": token})

    assert token not in str(caught.value.as_response())


def test_a_download_does_not_show_its_secrets() -> None:
    download = sources.web_file("https://hf.co/m?token=signed", SETTINGS, {})

    assert "signed" not in repr(download)
    assert "hf-own" not in repr(download)


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("https://huggingface.co/m", "HF_TOKEN"),
        ("https://civitai.com/m", "CIVITAI_TOKEN"),
        ("https://civitai.com/m", "tokens.civitai"),
        ("https://example.com/m", "signed URL"),
    ],
)
def test_the_hint_names_the_token_that_would_help(url: str, word: str) -> None:
    assert word in tokens.access_hint(url)


def test_the_place_of_a_url_has_no_query() -> None:
    assert urls.place("https://h/a/b?token=s#f") == "h/a/b"


@pytest.mark.parametrize(
    ("url", "reader"),
    [
        ("hf:org/repo/x", huggingface.Reference),
        ("https://huggingface.co/org/repo/blob/main/x", huggingface.Reference),
        ("https://civitai.com/models/1", civitai.Reference),
        ("urn:air:sd1:lora:civitai:1@2", civitai.Reference),
        ("s3://bucket/key", s3.Reference),
        ("https://huggingface.co/gpt2/resolve/main/x", WebFile),
        ("https://example.com/x.safetensors", WebFile),
    ],
)
def test_each_reference_has_one_resolver(url: str, reader: type) -> None:
    assert isinstance(sources.read(url, SETTINGS), reader)


def test_a_plain_url_is_taken_to_mean_one_file_for_ever() -> None:
    assert not sources.read("https://example.com/x.safetensors", SETTINGS).mutable


_STARTS = (
    *("", "https://", "hf:", "hf:org/repo/", "https://huggingface.co/", "s3://", "urn:air:"),
    *("civitai:", "https://civitai.com/models/", "https://civitai.com/api/download/models/7?"),
)


@given(st.sampled_from(_STARTS), st.text())
def test_reading_any_string_gives_a_stable_key_or_invalid_input(start: str, tail: str) -> None:
    try:
        reference = sources.read(start + tail, SETTINGS)
    except InvalidInputError:
        return

    assert reference.key
    if not isinstance(reference, WebFile):
        assert sources.read(reference.key, SETTINGS).key == reference.key


@pytest.mark.parametrize(
    "url",
    [
        f"https://host/x?token={SECRET}&api_key={SECRET}&X-Amz-Signature={SECRET}",
        f"https://huggingface.co/org/repo/resolve/main/x?token={SECRET}",
        f"https://civitai.com/models/1?token={SECRET}",
        f"https://civitai.com/api/download/models/1?token={SECRET}&fileId=2",
        f"civitai:version:4?token={SECRET}",
        f"s3://bucket/key?X-Amz-Signature={SECRET}",
    ],
)
def test_a_secret_in_a_url_is_in_no_key_and_no_text(url: str) -> None:
    reference = sources.read(url, SETTINGS)

    assert SECRET not in reference.key + repr(reference)


@pytest.mark.parametrize(
    "url",
    ["hf:org/repo/x", "hf:org/repo", "civitai:version:1", "civitai:model:1", "s3://bucket/x"],
)
@pytest.mark.parametrize("how", [{"status": 401}, {"status": 404}, {"status": 503}, {"html": True}])
def test_a_planted_token_is_in_no_error(url: str, how: dict[str, Any], model_hub: Hub) -> None:
    model_hub.spoil(times=9, **how)
    tokens = {"huggingface": SECRET, "civitai": SECRET}

    try:
        text = repr(resolved(model_hub, url, Kind.LORA, tokens=tokens))
    except WorkerError as error:
        text = f"{error.as_response()} {error!r} {error.__cause__!r}"

    assert SECRET not in text


def test_a_mirror_gets_its_companys_token_and_no_other_host_does() -> None:
    mirrored = CacheSettings(
        hf_token=SecretStr("hf-own"),
        civitai_token=SecretStr("civitai-own"),
        hf_endpoint="https://hf.mirror.example",
        civitai_endpoint="https://mirror.example:8443/civitai",
    )

    seen = {
        url: sources.web_file(url, mirrored, {}).authorization
        for url in (
            "https://hf.mirror.example/x",
            "https://mirror.example:8443/x",
            "https://mirror.example/x",
            "http://hf.mirror.example/x",
            "https://sub.hf.mirror.example/x",
        )
    }

    assert list(seen.values()) == ["Bearer hf-own", "Bearer civitai-own", "", "", ""]


def test_a_plain_url_is_resolved_without_a_question(model_hub: Hub) -> None:
    url = f"{model_hub.url}/files/x.safetensors?X-Amz-Signature={SECRET}"

    download = resolved(model_hub, url)

    assert download.url == url
    assert download.source == f"{model_hub.url}/files/x.safetensors"
    assert model_hub.requests == []
