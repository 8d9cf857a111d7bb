from pathlib import Path

import pytest

from schemas.settings import Settings
from worker.machine.webui_flags import GIB, Machine, command, shown

PLAIN = Machine(vram_bytes=None, xformers=False)


def flags(machine: Machine = PLAIN, environ_args: str = "", **webui: str) -> list[str]:
    settings = Settings.from_env(
        {f"A1111_WEBUI_{name.upper()}": text for name, text in webui.items()}
    )
    return command(settings.webui, Path("/py"), Path("/data"), machine, environ_args)


def chosen(argv: list[str]) -> list[str]:
    """Return the flags of attention and memory, those between the folders and the user's own."""
    start = argv.index("/data/models/CLIP") + 1
    return argv[start : argv.index("--server-name")]


def test_the_address_is_last_whatever_the_user_adds() -> None:
    argv = flags(flags="--server-name 0.0.0.0", port="3456")

    assert argv[-4:] == ["--server-name", "127.0.0.1", "--port", "3456"]


@pytest.mark.parametrize(
    ("webui", "xformers", "given"),
    [
        pytest.param({}, True, ["--xformers", "--opt-sdp-attention"], id="auto with xformers"),
        pytest.param({}, False, ["--opt-sdp-attention"], id="auto without"),
        pytest.param({"attention": "sdp"}, True, ["--opt-sdp-attention"], id="sdp"),
        pytest.param(
            {"attention": "xformers"}, False, ["--xformers", "--opt-sdp-attention"], id="xformers"
        ),
        pytest.param({"attention": "none"}, True, [], id="none"),
        pytest.param(
            {"flags": "--opt-split-attention-v1"},
            True,
            ["--opt-split-attention-v1"],
            id="the user's own",
        ),
        pytest.param({"kind": "forge"}, True, [], id="forge takes xformers itself"),
        pytest.param(
            {"kind": "forge"},
            False,
            ["--disable-xformers", "--attention-pytorch"],
            id="forge without",
        ),
    ],
)
def test_attention_is_what_was_asked_for_or_what_is_there(
    webui: dict[str, str], *, xformers: bool, given: list[str]
) -> None:
    assert chosen(flags(Machine(None, xformers), **webui)) == given


@pytest.mark.parametrize(
    ("gib", "webui", "given"),
    [
        pytest.param(2, {}, ["--lowvram"], id="2 GB"),
        pytest.param(3.8, {}, ["--medvram"], id="4 GB"),
        pytest.param(7.7, {}, ["--medvram-sdxl"], id="8 GB"),
        pytest.param(11.7, {}, [], id="12 GB"),
        pytest.param(2, {"vram": "high"}, [], id="high"),
        pytest.param(80, {"vram": "medium"}, ["--medvram"], id="medium"),
        pytest.param(80, {"vram": "low"}, ["--lowvram"], id="low"),
        pytest.param(2, {"flags": "--medvram"}, ["--medvram"], id="the user's own"),
        pytest.param(2, {"kind": "forge"}, [], id="forge decides itself"),
        pytest.param(
            80,
            {"kind": "forge", "vram": "medium"},
            ["--always-offload-from-vram"],
            id="forge medium",
        ),
        pytest.param(80, {"kind": "forge", "vram": "low"}, ["--always-low-vram"], id="forge low"),
        pytest.param(
            80, {"kind": "forge", "vram": "high"}, ["--always-high-vram"], id="forge high"
        ),
    ],
)
def test_memory_is_shared_as_asked_for_or_by_its_size(
    gib: float, webui: dict[str, str], given: list[str]
) -> None:
    machine = Machine(int(gib * GIB), xformers=False)

    assert chosen(flags(machine, **{"attention": "none", **webui})) == given


def test_flags_that_the_webui_appends_itself_count_as_the_users() -> None:
    argv = flags(Machine(2 * GIB, xformers=True), "--lowvram --xformers")

    assert chosen(argv) == []


def test_controlnets_folder_is_named_only_where_the_extension_is() -> None:
    assert "--controlnet-dir" not in flags()
    assert "--controlnet-dir" in flags(Machine(None, xformers=False, controlnet=True))
    assert "--controlnet-dir" in flags(kind="forge")


def test_secrets_among_the_flags_are_not_shown() -> None:
    text = shown(flags(flags="--gradio-auth me:secret --gradio-auth=me:secret --no-half"))

    assert text.startswith("--skip-prepare-environment ")
    assert "secret" not in text
    assert "--no-half" in text
