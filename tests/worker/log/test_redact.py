"""What a log may hold of a job, and what an answer may."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.log import redact

TOKEN = "hf_Zk3pQ9vLs7"


@pytest.fixture(autouse=True)
def _nothing_learnt() -> Iterator[None]:
    yield
    redact.learn({})


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("GET https://host/f.safetensors?token=a&b=c now", "GET https://host/f.safetensors?… now"),
        ("see https://me:pa55@host/x", "see https://…@host/x"),
        ("proxy http://user@10.0.0.1:3128", "proxy http://…@10.0.0.1:3128"),
        ("url: /dl/7?X-Amz-Signature=ab12 (Caused by", "url: /dl/7?… (Caused by"),
        ("s3://bucket/key?versionId=3", "s3://bucket/key?…"),
        ("https://h/#access_token=abc", "https://h/#…"),
        ("Authorization: Bearer abcdefgh12", "Authorization: Bearer …"),
        ("{'X-Amz-Security-Token=abc'}", "{'X-Amz-Security-Token=…'}"),
        ("args: --api-auth me:secret --port 1", "args: --api-auth … --port 1"),
        ("what? A question; x=1 and y?z", "what? A question; x=1 and y?z"),
        ("https://civitai.com/models/123", "https://civitai.com/models/123"),
    ],
)
def test_urls_and_headers_lose_what_is_secret_in_them(line: str, kept: str) -> None:
    assert redact.text(line) == kept


@pytest.mark.parametrize(
    "name",
    [
        *("RUNPOD_AI_API_KEY", "HF_TOKEN", "A1111_CACHE_S3_SECRET_ACCESS_KEY", "DB_PASSWORD"),
        *("BUCKET_ACCESS_KEY_ID", "A1111_CACHE_S3_SESSION_TOKEN", "API_AUTH", "apikey"),
    ],
)
def test_the_value_of_a_variable_that_is_named_as_a_secret_is_known(name: str) -> None:
    redact.learn({name: TOKEN})

    assert redact.text(f"it said {TOKEN}!") == "it said …!"


def test_the_password_of_a_proxy_is_known_by_its_place() -> None:
    redact.learn({"HTTPS_PROXY": "http://me:sesam%20open@proxy:3128"})

    assert redact.text("refused: sesam open") == "refused: …"


@pytest.mark.parametrize(
    "job",
    [
        {"input": {"tokens": {"civitai": TOKEN}}},
        {"input": {"api": {"endpoint": "/v1/sync"}, "payload": {"hf_token": TOKEN}}},
        {"input": {}, "s3Config": {"accessId": "x", "accessSecret": TOKEN}},
        {"input": {"loras": [{"url": f"https://civitai.com/api/1?type=Model&token={TOKEN}"}]}},
        {"input": {"checkpoint": f"https://me:{TOKEN}@host/m.safetensors"}},
        {"input": {}, "webhook": f"https://host/done?sig={TOKEN}"},
    ],
)
def test_the_secrets_of_a_job_are_known_while_it_runs_and_a_while_after(job: Any) -> None:
    with redact.knowing(job):
        assert redact.text(f"<{TOKEN}>") == "<…>"
        assert redact.answer({"error": [f"bad {TOKEN}"], "n": 1}) == {"error": ["bad …"], "n": 1}

    assert redact.text(f"<{TOKEN}>") == "<…>"


def test_a_job_that_runs_is_known_however_many_others_end_meanwhile() -> None:
    with redact.knowing({"input": {"tokens": {"civitai": TOKEN}}}):
        for number in range(100):
            with redact.knowing({"input": {"tokens": {"civitai": f"other-{number}"}}}):
                pass
        assert redact.text(TOKEN) == "…"


def test_a_huge_job_costs_those_after_it_neither_time_nor_memory() -> None:
    lines = [f"{number:07} of many lines" for number in range(50_000)]
    for _ in range(2):
        with redact.knowing({"input": {"prompt": "\n".join(lines), "tokens": {"x": TOKEN}}}):
            start = time.perf_counter()
            assert redact.text("x" * 1000) == "x" * 1000
            assert redact.text("as sent: " + "\n".join(lines)) == "as sent: …"
            assert time.perf_counter() - start < 5

    assert redact.text(TOKEN) == "…"
    for number in range(3):
        with redact.knowing({"input": {"prompt": f"{number} {'x' * 400_000}"}}):
            pass
    assert redact.text(TOKEN) == TOKEN


PROMPT = 'a <lora:detail:0.8> "red"  fox\nin the snow, naïve'


def test_prompts_are_taken_out_of_a_log_and_left_in_an_answer() -> None:
    with redact.knowing({"input": {"prompt": PROMPT, "alwayson": [{"ad_prompt": "a blue eye"}]}}):
        assert redact.text(f"drawing {PROMPT}") == "drawing …"
        assert redact.text(f"drawing {PROMPT!r}") == "drawing '…'"
        assert redact.text(json.dumps({"p": PROMPT})) == '{"p": "…"}'
        assert redact.text("without tags: in the snow, naïve.") == "without tags: …."
        assert redact.text("ADetailer: a blue eye") == "ADetailer: …"
        assert redact.answer(PROMPT) == PROMPT


def test_a_prompt_that_was_cut_off_is_taken_out_and_a_word_of_it_is_not() -> None:
    with redact.knowing({"input": {"prompt": "masterpiece, a castle by the sea"}}):
        assert redact.text("not 'masterpiece, a ca…") == "not '……"
        assert redact.text("masterpiece_v2 is here") == "masterpiece_v2 is here"


def test_a_setting_lets_prompts_be_read() -> None:
    redact.learn({}, prompts=True)

    with redact.knowing({"input": {"prompt": PROMPT, "tokens": {"civitai": TOKEN}}}):
        assert redact.text(f"{PROMPT} {TOKEN}") == f"{PROMPT} …"


def test_what_is_too_short_to_be_a_secret_stays() -> None:
    redact.learn({"SOME_KEY": "abc"})

    assert redact.text("abc") == "abc"


@given(
    secret=st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=6),
    before=st.text(),
    after=st.text(),
)
def test_no_text_holds_a_whole_secret(secret: str, before: str, after: str) -> None:
    redact.learn({"TOKEN": secret})

    assert secret not in redact.text(before + secret + after)
    assert secret not in redact.text(repr(before + secret + after))


@pytest.mark.parametrize("text", ["a.", "a://", "?a=", "https://" + "@", "x" * 7 + " "])
def test_no_text_takes_long(text: str) -> None:
    with redact.knowing({"input": {"prompt": "x" * 50_000}}):
        start = time.perf_counter()
        redact.text(text * (12_000 // len(text)))

        assert time.perf_counter() - start < 5
