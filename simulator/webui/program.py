"""The program as a whole: everything that A1111 keeps in memory, and the handlers that need several.

Handlers run in threads, as A1111's do, and wait for the queue's lock there.

Source: A1111 1.10.1, modules/api/api.py and modules/initialize.py.
"""

import os
import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from simulator.webui import (
    catalogue,
    controlnet,
    extensions,
    forge,
    infotext,
    job,
    pictures,
    postprocess,
    scripts,
    upscalers,
)
from simulator.webui.checkpoints import Checkpoints
from simulator.webui.embeddings import Embeddings
from simulator.webui.failure import HttpError, WebuiError
from simulator.webui.faults import Faults
from simulator.webui.flags import Flags
from simulator.webui.generate import Generator, Places
from simulator.webui.hashes import HashCache
from simulator.webui.job import Processed
from simulator.webui.journal import Journal
from simulator.webui.model import Model, Parts
from simulator.webui.networks import Networks
from simulator.webui.options import Options
from simulator.webui.passes import Painter
from simulator.webui.progress import FifoLock, State
from simulator.webui.prompts import read_styles
from simulator.webui.sampling import Clockwork, NanCheck, Sampler
from simulator.webui.vaes import Vaes

Fields = dict[str, Any]


class Program:
    """One running WebUI."""

    def __init__(self, flags: Flags) -> None:
        """Read the world that `flags` name; load nothing yet."""
        self.flags = flags
        self.queue = FifoLock()
        self.state = State()
        self.journal = Journal()
        self.faults = Faults(is_interrupted=lambda: self.state.interrupted)
        self.faults.set(flags.order)
        self.options = Options(
            flags.config_file,
            forge.OPTIONS if flags.forge else {},
            controlnet.OPTIONS if flags.controlnet_dirs else (),
        )
        self.hashes = HashCache(flags.cache, self.faults.on_hash, disabled=flags.no_hashing)
        self.checkpoints = Checkpoints(flags, self.hashes)
        if flags.ckpt.exists():
            self.options.data["sd_model_checkpoint"] = next(iter(self.checkpoints.by_title))
        self.vaes = Vaes(flags, self.options)
        self.networks = Networks(flags, self.hashes)
        self.embeddings = Embeddings(flags.embeddings_dir, self.hashes)
        self.styles = read_styles(flags.styles_files)
        self.upscalers = upscalers.found(
            [flags.models_dir / "ESRGAN", Path(flags.shown["esrgan_models_path"])]
        )
        self._upscaler_names = [entry["name"] for entry in self.upscalers]
        parts = Parts(
            self.options,
            self.hashes,
            self.checkpoints,
            self.vaes,
            self.networks,
            self.embeddings,
            self._upscaler_names,
        )
        self.model = Model(parts, self.faults.on_load)
        clockwork = Clockwork(
            lambda: self.faults.step_ms / 1000, lambda: self.faults.at("sampling"), _never_returning
        )
        nan = NanCheck(flags.shown["disable_nan_check"], flags.shown["no_half"])
        sampler = Sampler(self.model, self.state, clockwork, nan)
        params = None if flags.no_prompt_history else flags.data_dir / "params.txt"
        self.controlnet = controlnet.installed(
            flags.controlnet_dirs, flags.annotators_dir, self.options
        )
        places = Places(self.styles, flags.data_dir, params, self.controlnet)
        painter = Painter(parts, self.model, self.state, sampler)
        self._generator = Generator(parts, self.model, self.state, painter, places)
        # The page's controls are built once; what they offer does not change with a refresh.
        self.script_info = catalogue.script_info(
            list(self.checkpoints.by_title), self._upscaler_names
        )
        self.scripts = self._offered_scripts()

    def _offered_scripts(self) -> dict[str, list[str]]:
        offered: dict[str, list[str]] = catalogue.load("lists")["scripts"]
        if self.controlnet is not None:
            self.script_info += controlnet.script_info()
            offered = {tab: controlnet.listed(names) for tab, names in offered.items()}
        installed = self.flags.extensions
        self.script_info += extensions.script_info(installed, self._upscaler_names)
        return {tab: extensions.listed(installed, names) for tab, names in offered.items()}

    def load_at_start(self) -> None:
        """Load the checkpoint in the background, unless --skip-load-model-at-start."""
        if not self.flags.skip_load:
            threading.Thread(target=self.model.get, daemon=True).start()

    def txt2img(self, fields: Fields, given: set[str]) -> Fields:
        """Answer txt2img; `given` are the fields that the request sent.

        Raises:
            WebuiError: in all the ways A1111 has.
            HttpError: 422 for an unknown script.
        """
        return self._generation("txt2img", fields, given, None)

    def img2img(self, fields: Fields, given: set[str]) -> Fields:
        """Answer img2img.

        Raises:
            WebuiError: see `txt2img`.
            HttpError: 404 without init images, 500 for one that is no picture.
        """
        if fields["init_images"] is None:
            raise HttpError(404, "Init image not found")
        mask = pictures.decode(fields["mask"], self.options) if fields["mask"] else None
        answer = self._generation("img2img", fields, given, mask)
        if not fields["include_init_images"]:
            answer["parameters"] |= {"init_images": None, "mask": None}
        return answer

    def _generation(
        self, kind: str, fields: Fields, given: set[str], mask: Image.Image | None
    ) -> Fields:
        self._apply_infotext(kind, fields, given)
        always_on = fields["alwayson_scripts"]
        scripts.check(kind, fields["script_name"], always_on, self.scripts, self.script_info)
        sampler, scheduler = catalogue.sampler_and_scheduler(
            fields["sampler_name"] or fields["sampler_index"], fields["scheduler"]
        )
        changed: Fields = {"sampler_name": sampler, "scheduler": fields["scheduler"]}
        if self.controlnet:
            changed["controlnet"] = self.controlnet.units(always_on)
        if not changed["scheduler"] and scheduler != catalogue.AUTOMATIC:
            changed["scheduler"] = scheduler
        with self.queue:
            self.model.get()
            if kind == "img2img":
                decoded = [pictures.decode(image, self.options) for image in fields["init_images"]]
                changed |= {"init_images": decoded, "mask": mask}
            processed = self._run(kind, fields, changed)
        images = processed.images if fields["send_images"] else []
        encoded = [pictures.encode(image, self.options) for image in images]
        return {"images": encoded, "parameters": fields, "info": processed.info()}

    def _run(self, kind: str, fields: Fields, changed: Fields) -> Processed:
        self.state.begin(f"scripts_{kind}")
        self.journal.jobs += 1
        self.faults.leak()
        try:
            return scripts.run(
                fields["script_name"],
                fields["script_args"],
                job.from_fields(kind, fields, **changed),
                self.options,
                self._generator.process,
            )
        finally:
            self.state.end()

    def _apply_infotext(self, kind: str, fields: Fields, given: set[str]) -> None:
        text = fields["infotext"]
        if not text:
            return
        mode = self.options["infotext_styles"]
        parameters = infotext.parse(text, self.styles.values(), mode)
        infotext.fill(fields, given, parameters, is_txt2img=kind == "txt2img")
        sent = fields["override_settings"] or {}
        fields["override_settings"] = {**infotext.overrides(parameters, self.options), **sent}

    def extras_single(self, fields: Fields) -> Fields:
        """Answer extra-single-image."""
        image = pictures.decode(fields["image"], self.options)
        with self.queue:
            result, text = self._extras([image], fields)
        return {"html_info": text, "image": pictures.encode(result[0], self.options)}

    def extras_batch(self, fields: Fields) -> Fields:
        """Answer extra-batch-images."""
        images = [pictures.decode(entry["data"], self.options) for entry in fields["imageList"]]
        with self.queue:
            results, text = self._extras(images, fields)
        encoded = [pictures.encode(image, self.options) for image in results]
        return {"html_info": text, "images": encoded}

    def _extras(self, images: list[Image.Image], fields: Fields) -> tuple[list[Image.Image], str]:
        self.state.begin("extras")
        try:
            done = [
                postprocess.extras(image, fields, self.options, self._upscaler_names)
                for image in images
            ]
        finally:
            self.state.end()
        return [image for image, _ in done], done[-1][1] if done else "<p></p>"

    def png_info(self, fields: Fields) -> Fields:
        """Answer png-info, which does not wait for the queue."""
        image = pictures.decode(fields["image"].strip(), self.options)
        return postprocess.png_info(image, self.styles, self.options, self.networks)

    def interrogate(self, fields: Fields) -> Fields:
        """Answer interrogate."""
        pictures.decode(fields["image"], self.options)
        with self.queue:
            return postprocess.interrogate(fields["model"])

    def progress(self, *, skip_current_image: bool) -> Fields:
        """Answer progress: of the running job alone, whoever asks."""
        fraction, left, image = 0.0, 0.0, None
        if self.state.job_count != 0:
            fraction, left = self.state.fraction()
            every = self.options["show_progress_every_n_steps"]
            preview = self.state.preview(every if self.options["live_previews_enable"] else 0)
            if preview is not None and not skip_current_image:
                image = pictures.encode(preview, self.options)
        return {
            "progress": fraction,
            "eta_relative": left,
            "state": self.state.shown(),
            "current_image": image,
            "textinfo": None,
        }

    def set_options(self, values: Fields) -> None:
        """Set options one after the other and save them; a failure leaves those before it set.

        Raises:
            WebuiError: RuntimeError for an unknown checkpoint, KeyError for an unknown option.
        """
        wanted = values.get("sd_model_checkpoint")
        if wanted is not None and self.checkpoints.find(wanted) is None:
            raise WebuiError("RuntimeError", f"model {wanted!r} not found")
        for key, value in values.items():
            before = self.options.data.get(key)
            if not self.options.set(key, value):
                continue
            react = self._reactions().get(key)
            if react is None:
                continue
            try:
                with self.queue:
                    react()
            except WebuiError as failure:
                # A1111 puts the old value back, says so in its log and answers 200.
                print(f"changing setting {key} to {value}: {failure}", file=sys.stderr)
                self.options.data[key] = before
        self.options.save()

    def _reactions(self) -> dict[str, Callable[[], None]]:
        """Return what happens when an option changes.

        Source: A1111 1.10.1, modules/initialize_util.py, configure_opts_onchange.
        """
        return {
            "sd_model_checkpoint": self.model.reload,
            "sd_vae": self.model.reload_vae,
            "sd_vae_overrides_per_model_preferences": self.model.reload_vae,
            forge.MODULES: self.model.reload_vae,
        }

    def refresh_checkpoints(self) -> None:
        """Scan the checkpoint folders again."""
        self.journal.refreshes["checkpoints"] += 1
        with self.queue:
            self.checkpoints.refresh()

    def refresh_vae(self) -> None:
        """Scan the VAE folders again."""
        self.journal.refreshes["vae"] += 1
        with self.queue:
            self.vaes.refresh()

    def refresh_loras(self) -> None:
        """Scan the LoRA folders again, without waiting for the queue."""
        self.journal.refreshes["loras"] += 1
        self.networks.refresh()

    def refresh_embeddings(self) -> None:
        """Read the embeddings again, for which a checkpoint must be loaded.

        Raises:
            WebuiError: AttributeError, when none can be.
        """
        self.journal.refreshes["embeddings"] += 1
        with self.queue:
            if self.model.get() is None:
                raise WebuiError(
                    "AttributeError", "'NoneType' object has no attribute 'cond_stage_model'"
                )
            self.embeddings.reload(self.model.width, force=True)

    def on_device(self) -> Fields:
        """Answer unload- and reload-checkpoint: the weights move, and move back by themselves.

        Raises:
            WebuiError: AttributeError, when there is no checkpoint.
        """
        if self.model.get() is None:
            raise WebuiError("AttributeError", "'NoneType' object has no attribute 'lowvram'")
        return {}

    def interrupt(self) -> Fields:
        """Answer interrupt."""
        self.journal.interrupts += 1
        if not self.faults.deafens():
            self.state.interrupted = True
        return {}

    def skip(self) -> None:
        """Answer skip."""
        self.state.skipped = True

    def memory(self) -> Fields:
        """Answer memory: this process's, and of the GPU that there is none, or what broke it."""
        page = resource.getpagesize()
        total = os.sysconf("SC_PHYS_PAGES") * page
        with open("/proc/self/statm") as file:  # noqa: PTH123 - one short line of the kernel's
            used = int(file.read().split()[1]) * page
        ram = {"free": float(total - used), "used": used, "total": float(total)}
        return {"ram": ram, "cuda": {"error": self.faults.broken or "unavailable"}}

    def counted(self) -> dict[str, int]:
        """Return the counters that the journal shows beside its own."""
        return {
            "loads": self.model.loads,
            "lora_applies": self.networks.applications,
            "hashed": self.hashes.read_files,
            "hashed_bytes": self.hashes.read_bytes,
        }


def _never_returning() -> None:
    """Stand in for a step that takes for ever, which nothing but SIGKILL ends."""
    threading.Event().wait()
