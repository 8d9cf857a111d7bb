"""The envelope: which endpoint is meant, what it takes, and what is refused."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.commands import Command
from schemas.errors import InvalidInputError
from schemas.request import parse
from schemas.routes import OPTIONS, PREFIX, REFUSED, ROUTES, Call, ExtraSingleImage, Route
from schemas.settings import JobSettings, Settings, SettingsError
from simulator.webui import catalogue

LIMITS = JobSettings()
# Draws poses; no older system offered it.
NOT_OFFERED = {"/controlnet/render_openpose_json"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(), below, max_size=3),
    max_leaves=8,
)
FIELDS = sorted({name for route in ROUTES if route.payload for name in route.payload.model_fields})


def called(
    endpoint: str, payload: Any = None, *, method: str | None = "GET", limits: JobSettings = LIMITS
) -> Call:
    job = parse({"api": {"method": method, "endpoint": endpoint}, "payload": payload}, limits).job
    assert isinstance(job, Call)
    return job


def refused(endpoint: str, payload: Any = None, *, method: str = "GET") -> InvalidInputError:
    with pytest.raises(InvalidInputError) as caught:
        called(endpoint, payload, method=method)
    return caught.value


@pytest.mark.parametrize(
    "spelling", ["/sdapi/v1/samplers", "sdapi/v1/samplers", "/sdapi/v1/samplers/", "samplers"]
)
def test_the_usual_spellings_of_an_endpoint_are_the_same(spelling: str) -> None:
    assert called(spelling).route.path == "/sdapi/v1/samplers"


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_every_route_of_the_table_is_found_by_its_path(route: Route) -> None:
    required = {
        "image": "x",
        "target_image": "x",
        "model": "m",
        "imageList": [{"data": "x", "name": "n"}],
        "controlnet_input_images": ["x"],
    }
    fields = route.payload.model_fields if route.payload is not None else {}
    payload = {name: required[name] for name, info in fields.items() if info.is_required()}

    call = called(route.path, payload, method=route.method)

    assert call.route is route
    assert (call.payload or {}) == payload


def test_every_route_of_a1111_and_controlnet_is_offered_or_refused_with_a_reason() -> None:
    paths = catalogue.openapi(controlnet=True)["paths"]
    known = {(verb.upper(), path) for path, verbs in paths.items() for verb in verbs}
    offered = {(route.method, route.path) for route in ROUTES}
    generations = {("POST", f"{PREFIX}txt2img"), ("POST", f"{PREFIX}img2img")}

    left = {path for verb, path in known - offered - generations} - REFUSED.keys()

    assert left == NOT_OFFERED


def test_the_extras_take_what_a1111_takes_with_its_defaults() -> None:
    schema = catalogue.openapi()["components"]["schemas"]["ExtrasSingleImageRequest"]
    theirs = {name: entry.get("default") for name, entry in schema["properties"].items()}

    ours = {name: info.default for name, info in ExtraSingleImage.model_fields.items()}
    del ours["output"]

    assert ours.keys() == theirs.keys()
    assert {name: ours[name] for name in ours if name != "image"} == {
        name: value for name, value in theirs.items() if name != "image"
    }


@pytest.mark.parametrize("method", [None, "", "get", "GET"])
def test_a_method_may_be_left_out_or_written_small(method: str | None) -> None:
    assert called("samplers", method=method).route.method == "GET"


def test_options_without_a_method_are_set_if_there_is_something_to_set() -> None:
    assert called("options", method=None).route.method == "GET"
    assert called("options", {"sd_vae": "x"}, method=None).route.method == "POST"


def test_another_method_is_refused_with_the_right_one() -> None:
    error = refused("/sdapi/v1/samplers", method="POST")

    assert "takes GET" in str(error)
    assert error.details["field"] == "api.method"
    assert refused("/sdapi/v1/samplers", method="DELETE").details["field"] == "api.method"


@pytest.mark.parametrize("path", REFUSED)
def test_what_no_job_may_call_is_refused_with_the_reason(path: str) -> None:
    error = refused(path, method="POST")

    assert REFUSED[path][0] in str(error)


@pytest.mark.parametrize("name", ["interrupt", "skip"])
def test_a_job_that_would_stop_another_is_told_of_cancel(name: str) -> None:
    assert "/cancel/" in refused(f"/sdapi/v1/{name}", method="POST").hint


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        pytest.param("/sdapi/v1/sampler", "/sdapi/v1/samplers", id="A1111's"),
        pytest.param("controlnet/models_list", "/controlnet/model_list", id="an extension's"),
        pytest.param("/v1/helth", "/v1/health", id="ours"),
        pytest.param("text2img", "/sdapi/v1/txt2img", id="a generation"),
    ],
)
def test_an_unknown_endpoint_is_refused_with_near_ones(asked: str, near: str) -> None:
    error = refused(asked)

    assert near in error.hint
    assert near in error.details["near"]


def test_a_setting_adds_routes_and_their_payload_is_left_alone() -> None:
    limits = JobSettings(extra_routes=("POST /sdapi/v1/create/embedding", "GET /my/route"))

    added = called("sdapi/v1/create/embedding", [1, None], method="POST", limits=limits)
    read = called("/my/route?a=1", {"b": None}, limits=limits)

    assert (added.payload, added.route.in_turn) == ([1, None], True)
    assert (read.payload, read.route.in_turn) == ({"a": "1", "b": None}, False)


def test_a_setting_does_not_take_the_checks_from_a_route_of_the_table() -> None:
    limits = JobSettings(extra_routes=("POST /sdapi/v1/png-info",))

    assert not called("png-info", {"image": "x"}, method="POST", limits=limits).route.is_free


@pytest.mark.parametrize("text", ["/sdapi/v1/x", "PUT /x", "POST x", "POST /x?y", "POST /x y"])
def test_a_setting_that_names_no_route_stops_the_worker(text: str) -> None:
    with pytest.raises(SettingsError, match="A1111_JOB_EXTRA_ROUTES"):
        Settings.from_env({"A1111_JOB_EXTRA_ROUTES": text})


def test_a_query_may_stand_in_the_endpoint_or_in_the_payload() -> None:
    in_endpoint = called("/sdapi/v1/progress?skip_current_image=true").payload
    in_payload = called("/sdapi/v1/progress", {"skip_current_image": True}).payload

    assert in_endpoint == in_payload == {"skip_current_image": True}


def test_a_null_counts_as_not_given_but_for_an_option() -> None:
    assert called("png-info", {"image": "x", "y": None}, method="POST").payload == {"image": "x"}
    options = called("options", {"sd_vae": None}, method="POST")
    assert (options.route.path, options.payload) == (OPTIONS, {"sd_vae": None})


@pytest.mark.parametrize(
    ("endpoint", "payload", "field"),
    [
        pytest.param("png-info", {}, "image", id="no picture"),
        pytest.param("png-info", {"image": 5}, "image", id="picture that is a number"),
        pytest.param("png-info", "text", "payload", id="no object"),
        pytest.param("png-info?x=1", {"image": "x"}, "api.endpoint", id="query of a POST"),
        pytest.param("refresh-loras", {"x": 1}, "payload", id="payload where none is taken"),
        pytest.param(
            "extra-single-image", {"image": "x", "upscaling_resize": 0}, "upscaling_resize", id="0x"
        ),
        pytest.param(
            "extra-batch-images", {"imageList": [{"data": "x"}]}, "imageList[0].name", id="no name"
        ),
        pytest.param(
            "controlnet/detect",
            {"controlnet_input_images": "x"},
            "controlnet_input_images",
            id="text in place of a list",
        ),
    ],
)
def test_a_wrong_payload_is_refused_with_the_field(endpoint: str, payload: Any, field: str) -> None:
    assert refused(endpoint, payload, method="POST").details["field"] == field


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("result_file_path", "/etc/x"),
        ("save_to_file", 1),
        ("source_folder", "/runpod-volume"),
        ("face_model", "../x"),
        ("select_source", 2),
        ("unknown", 1),
    ],
)
def test_a_face_swap_names_no_file_of_the_server(field: str, value: object) -> None:
    """ReActor's fields, from its source; unverified against a live server."""
    payload = {"source_image": "x", "target_image": "x", field: value}

    assert refused("/reactor/image", payload, method="POST").details["field"] == field


@pytest.mark.parametrize(
    "api",
    [
        pytest.param({}, id="empty"),
        pytest.param({"endpoint": None}, id="null"),
        pytest.param({"endpoint": 5}, id="number"),
        pytest.param({"endpoint": " / "}, id="slash"),
        pytest.param([], id="list"),
    ],
)
def test_an_envelope_without_an_endpoint_is_refused(api: object) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse({"api": api, "payload": {}}, LIMITS)

    assert caught.value.details["field"] == "api.endpoint"


@given(
    st.sampled_from([route.path for route in ROUTES]) | st.text(),
    st.sampled_from(["GET", "POST", None]) | JSON,
    st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5) | JSON,
)
def test_whatever_an_envelope_holds_is_a_call_or_a_refusal_with_its_field(
    endpoint: str, method: Any, payload: Any
) -> None:
    value = {"api": {"method": method, "endpoint": endpoint}, "payload": payload}

    fields = ["-"]
    try:
        parse(value, LIMITS)
    except InvalidInputError as error:
        fields = [error.details["field"]]

    assert all(fields)


@pytest.mark.parametrize(
    ("endpoint", "payload", "field"),
    [
        ("/v1/prune?dry_run=true", {"dry_run": False}, "dry_run"),
        ("/v1/compatibility?lora=a&lora=b", None, "api.endpoint"),
        ("txt2img?steps=5", {"prompt": "x"}, "api.endpoint"),
    ],
)
def test_a_query_is_refused_where_it_would_be_dropped(
    endpoint: str, payload: Any, field: str
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse({"api": {"method": "POST", "endpoint": endpoint}, "payload": payload}, JobSettings())

    assert caught.value.details["field"] == field


def test_a_payload_that_no_api_goes_with_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="`payload` needs `api`") as caught:
        parse({"payload": {"prompt": "a cat"}}, JobSettings())

    assert caught.value.details["field"] == "api"


def test_a_query_beside_a_payload_counts() -> None:
    envelope = {"api": {"method": "POST", "endpoint": "/v1/prune?dry_run=true"}}

    job = parse({**envelope, "payload": {"to_gb": 1}}, JobSettings()).job

    assert isinstance(job, Command)
    assert job.payload.model_dump() == {"to_gb": 1.0, "dry_run": True}


def test_what_looks_at_lists_that_empty_themselves_has_them_to_itself() -> None:
    in_turn = {route.path.rpartition("/")[2] for route in ROUTES if route.in_turn}

    assert {"refresh-loras", "refresh-checkpoints", "model_list"} <= in_turn


def test_reactors_model_is_no_path() -> None:
    error = refused("reactor/image", {"target_image": "x", "model": "/etc/passwd"}, method="POST")

    assert error.details["field"] == "model"
