"""What the jobs of a soak ask for, and what each must be answered: all forms, good and bad.

Stock     the models and pictures that the host has; each name has its bytes
Oracle    an A1111 to which nothing happens: it says what is right
Wishes    one seed, and for each number the same wish every time
"""

import base64
import io
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from PIL import Image

from simulator import models

CHECKPOINTS = ("soak_alpha", "soak_beta", "soak_gamma")
CANNY = "control_v11p_sd15_canny"
# A job wants LoRAs of those near its own number, so that there is always one to fetch.
JOBS_PER_LORA = 8
LORAS_NEAR = 4
SUBJECTS = ("a cat", "a lighthouse", "an old town", "two ships", "a forest")
SAMPLERS = ("Euler a", "DPM++ 2M", "Heun")
BAD_INPUT = frozenset({"INVALID_INPUT"})
_ANSWER_S = 30


@dataclass(frozen=True)
class Stock:
    """What the host at `url` serves from `folder`, for so many jobs."""

    url: str
    folder: Path
    jobs: int

    @property
    def loras(self) -> list[str]:
        """The names of the LoRAs, in the order in which they are wanted."""
        return [f"soak_lora{n}" for n in range(self.jobs // JOBS_PER_LORA + LORAS_NEAR)]

    def write(self) -> None:
        """Write the files, below folders that are called as A1111's are."""
        for name in CHECKPOINTS:
            models.write_checkpoint(self._file("Stable-diffusion", name), seed=name)
        for name in self.loras:
            models.write_lora(self._file("Lora", name), seed=name)
        models.write_controlnet(self._file("ControlNet", CANNY), seed=CANNY)
        self._file("Lora", "pickle").write_bytes(b"\x80\x02csystem\n" + bytes(5000))
        (self.folder / "picture.png").write_bytes(base64.b64decode(picture()))

    def _file(self, folder: str, name: str) -> Path:
        path = self.folder / folder / f"{name}.safetensors"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def named(self, folder: str, name: str, fault: str = "") -> dict[str, Any]:
        """Return the reference of a model, as callers write it; `fault` spoils its answers."""
        return {"name": name, "url": f"{self.url}/{folder}/{name}.safetensors{fault}"}


class Oracle:
    """Asks an A1111 that has all models; safe to use from one thread."""

    def __init__(self, url: str) -> None:
        self._root = url
        self._url = f"{url}/sdapi/v1"
        self._session = requests.Session()

    def get(self, route: str) -> Any:
        """Return the answer of a route."""
        return self._session.get(f"{self._url}/{route}", timeout=_ANSWER_S).json()

    def post(self, route: str, body: Mapping[str, Any]) -> Any:
        """Return the answer of a route; a request that it refuses is a mistake of the soak."""
        answer = self._session.post(f"{self._url}/{route}", json=body, timeout=_ANSWER_S)
        assert answer.ok, answer.text
        return answer.json()

    def listed(self, name: str) -> str:
        """Return how ControlNet lists a model, which is what pictures say of it."""
        listed = self._session.get(f"{self._root}/controlnet/model_list", timeout=_ANSWER_S).json()
        shown: list[str] = listed["model_list"]
        return next(entry for entry in shown if entry.startswith(f"{name} ["))


View = Callable[[Any], Any]


@dataclass(frozen=True)
class Wish:
    """One job: what is sent, and what must come of it."""

    kind: str
    value: Any
    """The job's input."""
    right: Callable[[Oracle], Any] | None = None
    """What must be seen in the output; None: it must fail."""
    view: View = field(default=lambda output: output)
    """What of the output is looked at."""
    codes: frozenset[str] = frozenset()
    """How it must fail."""
    cancel_after_s: float | None = None


@dataclass(frozen=True)
class Wishes:
    """All wishes of a seed."""

    seed: int
    stock: Stock

    def wish(self, number: int) -> Wish:
        """Return the wish with this number, from 0."""
        chance = random.Random(f"{self.seed} {number}")  # noqa: S311 - an order, no secret
        (make,) = chance.choices(list(_KINDS), weights=list(_KINDS.values()))
        return make(_Draft(chance, number, self.stock))


def drawn_by(oracle: Oracle, route: str, body: Mapping[str, Any]) -> Any:
    """Return what `seen` shows of a right answer."""
    answer = oracle.post(route, body)
    return [answer["images"], json.loads(answer["info"])["all_seeds"]]


def seen(output: Any) -> Any:
    """Return what of a job's pictures must be as A1111 has it."""
    return [output["images"], output["seeds"]]


def picture(colour: str = "red") -> str:
    """Return a picture with an edge in it, as base64."""
    drawn = Image.new("RGB", (64, 64))
    drawn.paste(colour, (8, 8, 40, 40))
    output = io.BytesIO()
    drawn.save(output, "PNG")
    return base64.b64encode(output.getvalue()).decode()


@dataclass(frozen=True)
class _Draft:
    """What a wish is made with."""

    chance: random.Random
    number: int
    stock: Stock

    def fields(self) -> dict[str, Any]:
        """Return what a job and A1111 call alike."""
        chance = self.chance
        return {
            "prompt": f"({chance.choice(SUBJECTS)}:1.3), number {self.number}",
            "negative_prompt": "blurry",
            "steps": chance.randint(1, 6),
            "cfg_scale": chance.choice([5.0, 7.5]),
            "sampler_name": chance.choice(SAMPLERS),
            "width": 64,
            "height": 64,
            "batch_size": chance.choice([1, 1, 1, 2]),
            "n_iter": chance.choice([1, 1, 1, 2]),
            "seed": self.number,
        }

    def models(self, fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return `fields` with a checkpoint and LoRAs as a job names them, and as A1111 does."""
        chance, stock = self.chance, self.stock
        checkpoint = chance.choice(CHECKPOINTS)
        first = self.number // JOBS_PER_LORA
        near = stock.loras[first : first + LORAS_NEAR]
        loras = {
            name: chance.choice([0.5, 0.8]) for name in chance.sample(near, chance.randint(0, 2))
        }
        tags = "".join(f"<lora:{name}:{scale}> " for name, scale in loras.items())
        asked = {
            **fields,
            "checkpoint": stock.named("Stable-diffusion", checkpoint),
            "loras": [{**stock.named("Lora", name), "scale": s} for name, s in loras.items()],
        }
        body = {
            **fields,
            "prompt": tags + fields["prompt"],
            "override_settings": {"sd_model_checkpoint": f"{checkpoint}.safetensors"},
        }
        return asked, body

    def drawn(self, kind: str, value: Any, route: str, body: Mapping[str, Any]) -> Wish:
        """Return a wish for the pictures that A1111 draws for `body`."""
        return Wish(
            kind,
            value,
            lambda oracle: drawn_by(oracle, route, body),
            seen,
        )


def _txt2img(draft: _Draft) -> Wish:
    asked, body = draft.models(draft.fields())
    return draft.drawn("txt2img", asked, "txt2img", body)


def _cancelled(draft: _Draft) -> Wish:
    # Whoever does not hear of its cancel is at it for longer than a worker has time to hear of it.
    asked, body = draft.models({**draft.fields(), "steps": 150, "batch_size": 1, "n_iter": 12})
    wish = draft.drawn("cancelled", asked, "txt2img", body)
    return Wish(
        wish.kind, wish.value, wish.right, wish.view, cancel_after_s=draft.chance.uniform(0, 4)
    )


def _img2img(draft: _Draft) -> Wish:
    image = picture(draft.chance.choice(["red", "blue"]))
    fields = {**draft.fields(), "init_images": [image], "denoising_strength": 0.6}
    asked, body = draft.models(fields)
    return draft.drawn("img2img", asked, "img2img", body)


def _by_url(draft: _Draft) -> Wish:
    asked, body = draft.models({**draft.fields(), "denoising_strength": 0.6})
    asked["init_images"] = [f"{draft.stock.url}/picture.png"]
    return draft.drawn("image by url", asked, "img2img", {**body, "init_images": [picture()]})


def _envelope(draft: _Draft) -> Wish:
    asked, body = draft.models(draft.fields())
    value = {"api": {"method": "POST", "endpoint": "/sdapi/v1/txt2img"}, "payload": asked}
    return draft.drawn("envelope", value, "txt2img", body)


def _controlled(draft: _Draft) -> Wish:
    asked, body = draft.models(draft.fields())
    unit = {"image": picture(), "module": "canny"}
    asked["controlnet_args"] = [{**unit, "model": draft.stock.named("ControlNet", CANNY)}]

    def right(oracle: Oracle) -> Any:
        units = [{**unit, "enabled": True, "model": oracle.listed(CANNY)}]
        controlled = {**body, "alwayson_scripts": {"controlnet": {"args": units}}}
        return drawn_by(oracle, "txt2img", controlled)

    return Wish("controlnet", asked, right, seen)


def _samplers(draft: _Draft) -> Wish:
    route = draft.chance.choice(["samplers", "upscalers", "schedulers"])
    value = {"api": {"method": "GET", "endpoint": f"/sdapi/v1/{route}"}}
    return Wish("a1111's list", value, lambda oracle: oracle.get(route))


def _infotext(_draft: _Draft) -> Wish:
    body = {"image": picture("green")}
    value = {"api": {"method": "POST", "endpoint": "/sdapi/v1/png-info"}, "payload": body}
    return Wish("png-info", value, lambda oracle: oracle.post("png-info", body))


def _download(draft: _Draft) -> Wish:
    name = draft.stock.loras[draft.number // JOBS_PER_LORA]
    url = f"{draft.stock.url}/Lora/{name}.safetensors"
    payload = {"source_url": url, "download_path": f"loras/{name}"}
    value = {"api": {"method": "POST", "endpoint": "/v1/download"}, "payload": payload}
    right = ["Download successful", url]
    return Wish(
        "download", value, lambda _: right, lambda output: [output["msg"], output["source_url"]]
    )


def _health(_draft: _Draft) -> Wish:
    value = {"api": {"method": "GET", "endpoint": "/v1/health"}}
    return Wish("health", value, lambda _: True, lambda output: "jobs" in output)


_BAD_FIELDS: tuple[Mapping[str, Any], ...] = (
    {"steps": "many"},
    {"sampler_name": "Eulr a"},
    {"init_images": ["bm90IGFuIGltYWdl"]},
    {"styles": ["nope"]},
    {"prompt": "<lora:../../x:1>"},
    {"prompt": "<hypernet:x:1>"},
    {"override_settings": {"outdir_samples": "/x"}},
    {"loras": [{"name": "../x"}]},
    {"width": 1 << 40},
    {"seed": {"a": [1]}},
)
_BAD_VALUES: tuple[Any, ...] = (
    None,
    [],
    "text",
    5,
    {"api": {"method": "GET", "endpoint": "/sdapi/v1/nope"}},
)


def _bad_field(draft: _Draft) -> Wish:
    asked, _ = draft.models(draft.fields())
    return Wish("bad field", {**asked, **draft.chance.choice(_BAD_FIELDS)}, codes=BAD_INPUT)


def _bad_value(draft: _Draft) -> Wish:
    return Wish("bad input", draft.chance.choice(_BAD_VALUES), codes=BAD_INPUT)


# What is wrong with the answer for a LoRA -> what its job is told. The digest is nobody's.
_BAD_HOSTS = {
    "?fault-status=404": "MODEL_NOT_FOUND",
    "?fault-status=401": "MODEL_ACCESS_DENIED",
    "?fault-html=1": "MODEL_UNSAFE",
    "?fault-json-error=1": "MODEL_UNSAFE",
    "?fault-filename=x": "MODEL_CORRUPT",
}


def _bad_model(draft: _Draft) -> Wish:
    fault = draft.chance.choice(list(_BAD_HOSTS))
    name = f"bad{draft.number}"
    url = f"{draft.stock.url}/Lora/{draft.stock.loras[0]}.safetensors{fault}"
    lora = {"name": name, "url": url, "hash": "0" * 64}
    asked, _ = draft.models(draft.fields())
    # A fault of the host's goes before that of the URL: then it is the true file, of another digest.
    codes = frozenset({_BAD_HOSTS[fault], "MODEL_CORRUPT"})
    return Wish("bad model", {**asked, "loras": [lora]}, codes=codes)


def _pickle(draft: _Draft) -> Wish:
    asked, _ = draft.models(draft.fields())
    lora = draft.stock.named("Lora", "pickle")
    return Wish("pickle", {**asked, "loras": [lora]}, codes=frozenset({"MODEL_UNSAFE"}))


def _unknown(draft: _Draft) -> Wish:
    field_of = draft.chance.choice(["checkpoint", "vae"])
    asked, _ = draft.models(draft.fields())
    return Wish(
        "unknown model", {**asked, field_of: "nope_v1"}, codes=frozenset({"MODEL_NOT_FOUND"})
    )


_KINDS: Mapping[Callable[[_Draft], Wish], int] = {
    _txt2img: 30,
    _img2img: 10,
    _by_url: 4,
    _envelope: 10,
    _controlled: 6,
    _cancelled: 5,
    _samplers: 4,
    _infotext: 3,
    _download: 3,
    _health: 2,
    _bad_field: 8,
    _bad_value: 4,
    _bad_model: 6,
    _pickle: 2,
    _unknown: 3,
}
