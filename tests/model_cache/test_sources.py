import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from model_cache import sources, tokens, urls
from schemas.errors import InvalidInputError
from schemas.settings import CacheSettings

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
        pytest.param("https://h/m?v=&a=1", "https://h/m?a=1&v=", id="order and blank values"),
    ],
)  # fmt: skip
def test_a_source_key_has_what_tells_the_file_and_nothing_else(url: str, key: str) -> None:
    assert urls.source_key(url) == key


def test_a_parameter_called_key_tells_files_apart_without_being_kept() -> None:
    keys = {urls.source_key(f"https://h/m?key={value}") for value in ("AIzaSecret", "b")}

    assert len(keys) == 2
    assert "AIzaSecret" not in "".join(keys)


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
    assert sources.resolve(url, SETTINGS, {}).authorization == authorization


def test_a_token_of_the_request_wins() -> None:
    download = sources.resolve("https://hf.co/m", SETTINGS, {"huggingface": "theirs"})

    assert download.authorization == "Bearer theirs"


def test_without_a_token_nothing_is_sent() -> None:
    assert sources.resolve("https://hf.co/m", CacheSettings(), {}).authorization == ""


@pytest.mark.parametrize("token", ["a\r\nX-Other: b", "tökén", "a\0"])
def test_a_token_that_no_header_can_carry_is_refused_unsaid(token: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        sources.resolve("https://hf.co/m", SETTINGS, {"huggingface": token})

    assert token not in str(caught.value.as_response())


def test_a_download_does_not_show_its_secrets() -> None:
    download = sources.resolve("https://hf.co/m?token=signed", SETTINGS, {})

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
