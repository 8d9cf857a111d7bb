"""The routes: what each takes, and what of the program answers it.

Source: A1111 1.10.1, modules/api/api.py, Api.__init__, and
extensions-builtin/Lora/scripts/lora_script.py, api_networks.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from simulator.webui import catalogue, coerce, controlnet_answers, extensions, forge
from simulator.webui.controlnet import ControlNet
from simulator.webui.failure import WebuiError
from simulator.webui.program import Program


@dataclass(frozen=True)
class Call:
    """A request as a handler gets it: the parsed body, and the query."""

    body: Any
    query: dict[str, str]


@dataclass(frozen=True)
class Text:
    """An answer that is no JSON."""

    content: str
    status: int = 200


@dataclass(frozen=True)
class Endpoint:
    """One route. `answer` runs in a thread and returns JSON or a `Text`."""

    answer: Callable[[Call], Any]
    takes_body: bool = False
    is_protected: bool = True


def endpoints(program: Program) -> dict[tuple[str, str], Endpoint]:
    """Return the routes by method and path."""
    api = "/sdapi/v1"
    routes = {
        ("GET", f"{api}/{name}"): Endpoint(_plainly(answer))
        for name, answer in _lists(program).items()
    }
    routes |= {
        ("POST", f"{api}/{name}"): Endpoint(_plainly(answer))
        for name, answer in _actions(program).items()
    }
    routes |= {
        ("POST", f"{api}/{name}"): Endpoint(answer, takes_body=True)
        for name, answer in _requests(program).items()
    }
    routes["GET", f"{api}/progress"] = Endpoint(_progress(program))
    # The built-in extension adds these two itself, past the API's authentication.
    routes["GET", f"{api}/loras"] = Endpoint(
        lambda _: [lora.listed() for lora in list(program.networks.available.values())],
        is_protected=False,
    )
    routes["POST", f"{api}/refresh-loras"] = Endpoint(
        _plainly(program.refresh_loras), is_protected=False
    )
    if program.flags.forge:
        _forge(routes, program, api)
    if program.controlnet:
        routes |= _controlnet(program.controlnet)
    for path in extensions.paths(program.flags.extensions):
        routes["GET", path] = Endpoint(_plainly(extensions.models), is_protected=False)
    if program.flags.server_stop:
        for name, answer in _endings(program).items():
            routes["POST", f"{api}/server-{name}"] = Endpoint(_plainly(answer))
    return routes


def _forge(routes: dict[tuple[str, str], Endpoint], program: Program, api: str) -> None:
    """Make `routes` those of Forge."""
    folders = [program.flags.models_dir / "VAE", program.flags.models_dir / "text_encoder"]
    folders += [
        folder
        for folder in (program.flags.vae_dir, program.flags.text_encoder_dir)
        if folder is not None
    ]
    del routes["GET", f"{api}/sd-vae"]
    del routes["POST", f"{api}/train/embedding"]
    del routes["POST", f"{api}/train/hypernetwork"]
    routes["GET", f"{api}/sd-modules"] = Endpoint(
        lambda _: [
            {"model_name": name, "filename": str(path)}
            for name, path in forge.modules(folders).items()
        ]
    )


def _controlnet(extension: ControlNet) -> dict[tuple[str, str], Endpoint]:
    """Return the extension's routes, which the API's authentication does not protect."""

    def flag(call: Call, name: str, *, default: bool) -> bool:
        return coerce.query_flag(name, call.query.get(name), default=default)

    answers: dict[str, Callable[[Call], Any]] = {
        "version": lambda _: {"version": controlnet_answers.API_VERSION},
        "model_list": lambda call: controlnet_answers.models(
            extension, update=flag(call, "update", default=True)
        ),
        "module_list": lambda call: controlnet_answers.modules(
            alias_names=flag(call, "alias_names", default=False)
        ),
        "control_types": lambda _: controlnet_answers.types(extension),
        "settings": lambda _: controlnet_answers.settings(extension),
    }
    routes = {
        ("GET", f"/controlnet/{name}"): Endpoint(answer, is_protected=False)
        for name, answer in answers.items()
    }
    routes["POST", "/controlnet/detect"] = Endpoint(
        lambda call: controlnet_answers.detect(extension, coerce.mapping(call.body)),
        takes_body=True,
        is_protected=False,
    )
    routes["POST", "/controlnet/render_openpose_json"] = Endpoint(
        lambda call: controlnet_answers.poses(extension, call.body),
        takes_body=True,
        is_protected=False,
    )
    return routes


def _plainly(answer: Callable[[], Any]) -> Callable[[Call], Any]:
    return lambda _: answer()


def _lists(program: Program) -> dict[str, Callable[[], Any]]:
    # Copied before they are walked through: a job may scan a folder meanwhile.
    lists = catalogue.load("lists")
    return {
        "options": program.options.shown,
        "cmd-flags": lambda: program.flags.shown,
        "samplers": lambda: lists["samplers"],
        "schedulers": lambda: lists["schedulers"],
        "upscalers": lambda: program.upscalers,
        "latent-upscale-modes": lambda: lists["latent_upscale_modes"],
        "sd-models": lambda: [
            entry.listed() for entry in list(program.checkpoints.by_title.values())
        ],
        "sd-vae": lambda: [
            {"model_name": name, "filename": str(path)}
            for name, path in list(program.vaes.by_name.items())
        ],
        "hypernetworks": lambda: [
            {"name": path.stem, "path": str(path)}
            for path in sorted(program.flags.hypernetwork_dir.rglob("*.pt"))
        ],
        "face-restorers": lambda: lists["face_restorers"],
        "realesrgan-models": lambda: lists["realesrgan_models"],
        "prompt-styles": lambda: [vars(style) for style in program.styles.values()],
        "embeddings": lambda: {
            "loaded": {one.name: one.listed() for one in list(program.embeddings.loaded.values())},
            "skipped": {
                one.name: one.listed() for one in list(program.embeddings.skipped.values())
            },
        },
        "memory": program.memory,
        "scripts": lambda: program.scripts,
        "script-info": lambda: program.script_info,
        "extensions": lambda: (
            [catalogue.load("controlnet")["extension"]] if program.controlnet else []
        ),
    }


def _actions(program: Program) -> dict[str, Callable[[], Any]]:
    return {
        "interrupt": program.interrupt,
        "skip": program.skip,
        "refresh-embeddings": program.refresh_embeddings,
        "refresh-checkpoints": program.refresh_checkpoints,
        "refresh-vae": program.refresh_vae,
        "unload-checkpoint": program.on_device,
        "reload-checkpoint": program.on_device,
    }


def _requests(program: Program) -> dict[str, Callable[[Call], Any]]:
    txt2img, img2img = (f"StableDiffusionProcessing{tab}" for tab in ("Txt2Img", "Img2Img"))

    def generation(
        title: str, answer: Callable[[dict[str, Any], set[str]], Any]
    ) -> Callable[[Call], Any]:
        def answered(call: Call) -> Any:
            return answer(coerce.model(title, call.body), set(call.body or ()))

        return answered

    def with_model(title: str, answer: Callable[[dict[str, Any]], Any]) -> Callable[[Call], Any]:
        return lambda call: answer(coerce.model(title, call.body))

    return {
        "txt2img": generation(txt2img, program.txt2img),
        "img2img": generation(img2img, program.img2img),
        "extra-single-image": with_model("ExtrasSingleImageRequest", program.extras_single),
        "extra-batch-images": with_model("ExtrasBatchImagesRequest", program.extras_batch),
        "png-info": with_model("PNGInfoRequest", program.png_info),
        "interrogate": with_model("InterrogateRequest", program.interrogate),
        "options": lambda call: program.set_options(coerce.mapping(call.body)),
        "create/embedding": lambda call: _create("create_embedding", coerce.mapping(call.body)),
        "create/hypernetwork": lambda call: _create(
            "create_hypernetwork", coerce.mapping(call.body)
        ),
        "train/embedding": lambda call: _train("embedding", coerce.mapping(call.body)),
        "train/hypernetwork": lambda call: _train("hypernetwork", coerce.mapping(call.body)),
    }


def _progress(program: Program) -> Callable[[Call], Any]:
    def answer(call: Call) -> Any:
        name = "skip_current_image"
        skip = coerce.query_flag(name, call.query.get(name), default=False)
        return program.progress(skip_current_image=skip)

    return answer


# What the two functions behind create/ take: with a default, or without.
_SIGNATURES = {
    "create_embedding": (("name", "num_vectors_per_token", "overwrite_old"), ("init_text",)),
    "create_hypernetwork": (
        ("name", "enable_sizes", "overwrite_old"),
        (
            "layer_structure",
            "activation_func",
            "weight_init",
            "add_layer_norm",
            "use_dropout",
            "dropout_structure",
        ),
    ),
}


def _create(function: str, arguments: dict[str, Any]) -> dict[str, str]:
    """Answer create/…: with arguments that do not fit as A1111 does, else that nothing is made.

    Raises:
        WebuiError: TypeError, with Python's text.
    """
    required, optional = _SIGNATURES[function]
    for name in arguments:
        if name not in required + optional:
            text = f"{function}() got an unexpected keyword argument {name!r}"
            raise WebuiError("TypeError", text)
    missing = [repr(name) for name in required if name not in arguments]
    if missing:
        plural = "s" if len(missing) > 1 else ""
        listed = missing[0] if len(missing) == 1 else ", ".join(missing[:-1])
        listed += f"{',' if len(missing) > 2 else ''} and {missing[-1]}" if plural else ""
        count = f"{len(missing)} required positional argument{plural}"
        raise WebuiError("TypeError", f"{function}() missing {count}: {listed}")
    kind = function.removeprefix("create_")
    return {"info": f"create {kind} error: the simulator makes no model files"}


def _train(kind: str, arguments: dict[str, Any]) -> dict[str, str]:
    """Answer train/…: errors come with status 200 there, and nothing is trained here."""
    del arguments
    reason = "the simulator trains nothing"
    return {"info": f"train {kind} complete: filename:  error: {reason}"}


def _endings(program: Program) -> dict[str, Callable[[], Any]]:
    """Return what --api-server-stop adds.

    Source: recorded from A1111 1.9.4: flag_server_kill, flag_server_restart, flag_server_stop.
    """

    def restart() -> Text:
        if program.flags.restartable:
            (program.flags.data_dir / "tmp").mkdir(parents=True, exist_ok=True)
            (program.flags.data_dir / "tmp" / "restart").touch()
            os._exit(0)
        return Text("", 501)

    return {
        "kill": lambda: os._exit(0),
        "restart": restart,
        # Without a page nothing waits for this command, and the program goes on.
        "stop": lambda: Text("Stopping."),
    }
