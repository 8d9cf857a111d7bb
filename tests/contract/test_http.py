"""What any request meets: shapes of errors, coercions, routing, headers, authentication."""

import json
from typing import Any

import pytest
import requests

from tests.contract.conftest import Start, Webui, pixels


def handler(kind: str, *, detail: str = "", text: str = "") -> dict[str, str]:
    return {"error": kind, "detail": detail, "body": "", "errors": text}


@pytest.mark.parametrize(
    ("path", "body", "status", "expected"),
    [
        pytest.param(
            "options",
            {"sd_model_checkpoint": "nope"},
            500,
            handler("RuntimeError", text="model 'nope' not found"),
            id="an exception has its text in errors",
        ),
        pytest.param(
            "txt2img",
            {"script_name": "nope"},
            422,
            handler("HTTPException", detail="Script 'nope' not found"),
            id="an HTTPException has its text in detail",
        ),
        pytest.param(
            "txt2img",
            {"prompt": None},
            500,
            handler("AssertionError"),
            id="a bare assert has no text at all",
        ),
        pytest.param(
            "txt2img",
            {"steps": "abc", "styles": "x"},
            422,
            {
                "detail": [
                    {
                        "loc": ["body", "styles"],
                        "msg": "value is not a valid list",
                        "type": "type_error.list",
                    },
                    {
                        "loc": ["body", "steps"],
                        "msg": "value is not a valid integer",
                        "type": "type_error.integer",
                    },
                ]
            },
            id="validation answers a list of all errors",
        ),
        pytest.param("nope", {}, 404, {"detail": "Not Found"}, id="routing has a detail alone"),
    ],
)
def test_each_kind_of_error_has_its_shape(
    steady: Webui, path: str, body: Any, status: int, expected: Any
) -> None:
    answer = steady.post(path, body)

    assert (answer.status_code, answer.json()) == (status, expected)


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ({"steps": "3"}, 3),
        ({"steps": 2.7}, 2),
        ({"steps": True}, 1),
        ({"cfg_scale": "7"}, 7.0),
        ({"cfg_scale": 7}, 7.0),
        ({"prompt": 5}, "5"),
        ({"prompt": 1.5}, "1.5"),
        ({"tiling": "yes"}, True),
        ({"tiling": 0}, False),
        ({"override_settings": []}, {}),
        ({"seed": None}, None),
        ({"styles": ["Oil", 3]}, ["Oil", "3"]),
    ],
)
def test_values_are_coerced_as_pydantic_1_does(steady: Webui, sent: Any, shown: Any) -> None:
    answer = steady.generate(**sent)

    (name,) = sent
    assert answer["parameters"][name] == shown
    assert type(answer["parameters"][name]) is type(shown)


@pytest.mark.parametrize(
    ("sent", "kind"),
    [
        ({"steps": "1e3"}, "type_error.integer"),
        ({"steps": []}, "type_error.integer"),
        ({"prompt": ["a"]}, "type_error.str"),
        ({"tiling": 2}, "type_error.bool"),
        ({"tiling": "maybe"}, "type_error.bool"),
        ({"override_settings": [1]}, "type_error.dict"),
        ({"styles": [None]}, "type_error.none.not_allowed"),
        ({"sampler_index": None}, "type_error.none.not_allowed"),
        ({"send_images": None}, "type_error.none.not_allowed"),
        ({"alwayson_scripts": None}, "type_error.none.not_allowed"),
    ],
)
def test_other_values_are_refused(steady: Webui, sent: Any, kind: str) -> None:
    answer = steady.post("txt2img", sent)

    assert answer.status_code == 422
    assert [error["type"] for error in answer.json()["detail"]] == [kind]


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        (
            {"gfpgan_visibility": 2},
            {
                "loc": ["body", "gfpgan_visibility"],
                "msg": "ensure this value is less than or equal to 1",
                "type": "value_error.number.not_le",
                "ctx": {"limit_value": 1},
            },
        ),
        (
            {"upscaling_resize": 0},
            {
                "loc": ["body", "upscaling_resize"],
                "msg": "ensure this value is greater than 0",
                "type": "value_error.number.not_gt",
                "ctx": {"limit_value": 0},
            },
        ),
        (
            {"resize_mode": 2},
            {
                "loc": ["body", "resize_mode"],
                "msg": "unexpected value; permitted: 0, 1",
                "type": "value_error.const",
                "ctx": {"given": 2, "permitted": [0, 1]},
            },
        ),
    ],
)
def test_extras_have_bounds(steady: Webui, fields: Any, error: Any) -> None:
    answer = steady.post("extra-single-image", fields)

    assert (answer.status_code, answer.json()) == (422, {"detail": [error]})


@pytest.mark.parametrize(
    ("body", "kind", "location"),
    [
        (b"", "value_error.missing", ["body"]),
        (b"null", "value_error.missing", ["body"]),
        (b"[1, 2]", "type_error.dict", ["body"]),
        (b'"text"', "type_error.dict", ["body"]),
        (b'{"prompt": ', "value_error.jsondecode", ["body", 11]),
    ],
)
def test_a_body_that_is_no_object_is_refused(
    steady: Webui, body: bytes, kind: str, location: list[Any]
) -> None:
    answer = steady.call("POST", "txt2img", data=body, headers={"Content-Type": "application/json"})

    (error,) = answer.json()["detail"]
    assert (answer.status_code, error["type"], error["loc"]) == (422, kind, location)
    if kind == "value_error.jsondecode":
        assert error["ctx"]["doc"] == body.decode()


def test_json_under_another_content_type_is_no_object(steady: Webui) -> None:
    answer = steady.call("POST", "txt2img", data=b"{}", headers={"Content-Type": "text/plain"})

    assert answer.json()["detail"][0]["type"] == "type_error.dict"


def test_bytes_that_are_no_text_are_a_400(steady: Webui) -> None:
    answer = steady.call(
        "POST", "txt2img", data=b'{"a": "\xff"}', headers={"Content-Type": "application/json"}
    )

    expected = handler("HTTPException", detail="There was an error parsing the body")
    assert (answer.status_code, answer.json()) == (400, expected)


def test_unknown_fields_are_ignored(steady: Webui) -> None:
    plain = steady.generate()

    assert pixels(steady.generate(sd_model_checkpoint="beta", nonsense=[1])) == pixels(plain)


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "DELETE", "POST"])
def test_another_method_is_a_405(steady: Webui, method: str) -> None:
    answer = steady.call(method, "samplers")

    assert answer.status_code == 405
    assert answer.headers["Allow"] == "GET"


def test_a_trailing_slash_redirects_to_an_absolute_location(steady: Webui) -> None:
    answer = steady.get("samplers/?a=1", headers={"Host": "example.org"})

    assert answer.status_code == 307
    assert answer.headers["Location"] == "http://example.org/sdapi/v1/samplers?a=1"


def test_only_answers_of_1000_bytes_and_more_are_compressed(steady: Webui) -> None:
    large, small = steady.get("options"), steady.get("progress")
    plain = steady.get("options", headers={"Accept-Encoding": "identity"})

    assert large.headers["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in small.headers
    assert "Content-Encoding" not in plain.headers
    assert large.json() == plain.json()


@pytest.mark.parametrize(
    ("path", "body", "has_it"),
    [
        ("interrupt", None, True),
        ("nope", None, True),
        ("txt2img", {"steps": "x"}, True),
        ("png-info", {"image": "zzz"}, True),
        ("txt2img", {"steps": 0}, False),
    ],
)
def test_a_500_that_is_no_http_exception_has_no_process_time(
    steady: Webui, path: str, body: Any, *, has_it: bool
) -> None:
    assert ("X-Process-Time" in steady.post(path, body).headers) is has_it


def test_nan_in_a_request_cannot_be_answered(steady: Webui) -> None:
    body = '{"prompt": "x", "steps": 1, "width": 8, "height": 8, "s_churn": NaN}'

    answer = steady.call("POST", "txt2img", data=body, headers={"Content-Type": "application/json"})

    text = "Out of range float values are not JSON compliant"
    assert answer.status_code == 500
    assert answer.json()["error"] == "ValueError"
    assert text in answer.json()["errors"]


def test_half_a_surrogate_pair_fails_and_the_next_job_does_not(steady: Webui) -> None:
    body = json.dumps({"prompt": "\ud800", "steps": 1, "width": 8, "height": 8})

    answer = steady.call("POST", "txt2img", data=body, headers={"Content-Type": "application/json"})

    assert (answer.status_code, answer.json()["error"]) == (500, "UnicodeEncodeError")
    assert steady.generate()["images"]


def test_every_path_of_the_schema_is_served(steady: Webui) -> None:
    schema = steady.get("/openapi.json").json()

    assert len(schema["paths"]) == 37
    for path, methods in schema["paths"].items():
        for method in methods:
            answer = steady.call(method.upper(), path, data=b"[1]")
            assert answer.status_code not in {404, 405}, f"{method} {path}"


def test_the_documentation_is_a_page(steady: Webui) -> None:
    answer = steady.get("/docs")

    assert "text/html" in answer.headers["Content-Type"]
    assert "FastAPI - Swagger UI" in answer.text


@pytest.mark.parametrize("path", ["/internal/ping", "/", "/sdapi/v1/server-kill"])
def test_what_only_other_modes_have_is_a_404(steady: Webui, path: str) -> None:
    assert steady.get(path).status_code == 404


def test_authentication_guards_all_but_a_few_routes(start: Start, world: Any) -> None:
    webui = start("--models-dir", world, "--api-auth", "me:secret,you:other")

    def status(path: str, user: str = "", password: str = "") -> tuple[int, str]:
        arguments = {"auth": (user, password)} if user else {}
        answer = webui.get(path, **arguments)
        return answer.status_code, answer.json().get(
            "detail", ""
        ) if answer.status_code > 200 else ""

    assert status("samplers") == (401, "Not authenticated")
    assert status("samplers", "me", "wrong") == (401, "Incorrect username or password")
    assert status("samplers", "you", "other") == (200, "")
    assert status("loras") == (200, "")
    assert status("/openapi.json") == (200, "")
    assert status("nope") == (404, "Not Found")


def test_authentication_comes_before_validation_and_after_parsing(start: Start, world: Any) -> None:
    webui = start("--models-dir", world, "--api-auth", "me:secret")

    assert webui.post("txt2img", {"steps": "x"}).status_code == 401
    broken = webui.call("POST", "txt2img", data=b"{", headers={"Content-Type": "application/json"})
    assert broken.status_code == 422


def test_a_client_that_speaks_through_another_connection_sees_the_same(steady: Webui) -> None:
    with requests.Session() as session:
        answer = session.get(f"{steady.url}/sdapi/v1/samplers", timeout=10)

    assert answer.json()[0]["name"] == "DPM++ 2M"
