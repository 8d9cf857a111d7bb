"""A job from its request to its pictures: overrides, batches, what is put on, grids, files.

Source: A1111 1.10.1, modules/processing.py, process_images and process_images_inner.
"""

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from simulator.webui import catalogue, describe, draw, forge, img2img, pictures
from simulator.webui.controlnet import ControlNet
from simulator.webui.failure import WebuiError
from simulator.webui.job import Job, Processed
from simulator.webui.model import Model, Parts
from simulator.webui.passes import Painter
from simulator.webui.prepare import Run, prepare
from simulator.webui.progress import State
from simulator.webui.prompts import Style

_VAE_OPTIONS = {"sd_vae", forge.MODULES}


@dataclass(frozen=True)
class Places:
    """Where styles come from, and where the program writes: `outputs/` and, if wanted, params.txt.

    `controlnet` is the extension, if it is there.
    """

    styles: dict[str, Style]
    data: Path
    params: Path | None
    controlnet: ControlNet | None = None


class Generator:
    """Runs jobs, one at a time: callers hold the queue's lock."""

    def __init__(
        self, parts: Parts, model: Model, state: State, painter: Painter, places: Places
    ) -> None:
        self._parts = parts
        self._options = parts.options
        self._painter = painter
        self._model = model
        self._state = state
        self._places = places

    def process(self, job: Job) -> Processed:
        """Run the job with its overrides, and take those back that were set before.

        Raises:
            WebuiError: in all the ways A1111 has.
        """
        options = self._options
        stored = options.stored(list(job.override_settings))
        try:
            self._override(job)
            job.sampler_name, job.scheduler = catalogue.sampler_and_scheduler(
                job.sampler_name, job.scheduler, convert_automatic=False
            )
            return self._process(job)
        finally:
            if job.override_settings_restore_afterwards:
                for key, value in stored.items():
                    options.data[key] = value
                    if key in _VAE_OPTIONS:
                        self._model.reload_vae()

    def _override(self, job: Job) -> None:
        """Set the job's options; a checkpoint that does not exist is passed over in silence."""
        wanted = job.override_settings
        if self._parts.checkpoints.find(wanted.get("sd_model_checkpoint")) is None:
            wanted.pop("sd_model_checkpoint", None)
            self._model.reload()
        for key, value in wanted.items():
            self._options.set(key, value)
            if key == "sd_model_checkpoint":
                self._model.reload()
            if key in _VAE_OPTIONS:
                self._model.reload_vae()

    def _process(self, job: Job) -> Processed:
        state = self._state
        controlnet = self._places.controlnet
        controls = controlnet.apply(job) if controlnet else []
        run = prepare(job, self._parts, self._model, self._places.styles, state)
        if state.job_count == -1:
            state.job_count = job.n_iter or 0
        for batch in range(job.n_iter or 0):
            state.skipped = False
            if state.interrupted or state.stopping_generation:
                break
            # The refiner may have left its own.
            self._model.reload()
            size = job.batch_size or 0
            indices = list(range(len(job.all_prompts))[batch * size : (batch + 1) * size])
            if not indices:
                break
            self._batch(run, batch, indices)
        processed = self._collected(run)
        if controlnet:
            processed.images += controlnet.maps(controls, job)
        return processed

    def _batch(self, run: Run, batch: int, indices: list[int]) -> None:
        job = run.job
        if job.width is None or job.height is None:
            text = "unsupported operand type(s) for //: 'NoneType' and 'int'"
            raise WebuiError("TypeError", text)
        conditions = self._painter.encoder.encode(job, indices)
        if batch == 0:
            self._write_params(job)
        if (job.n_iter or 0) > 1:
            self._state.job = f"Batch {batch + 1} out of {job.n_iter}"
        describe.note_sampling(job, self._options)
        painted = self._painter.paint(run, indices, conditions)
        self._state.next_job()
        for place, (index, image) in enumerate(zip(indices, painted, strict=True)):
            self._finish(run, index, image, place)

    def _finish(self, run: Run, index: int, image: Image.Image, place: int) -> None:
        job, options = run.job, self._options
        mask = None
        if run.canvases:
            canvas = run.canvases[place]
            mask = canvas.mask_for_overlay
            image = img2img.finish(image, canvas, options)
        # A copy: what an init image brought along is no part of the result.
        image = image.copy()
        image.info = {}
        draw.sign(image, job.all_prompts[index])
        text = describe.infotext_of(job, options, index)
        run.infotexts.append(text)
        if options["enable_pnginfo"]:
            image.info["parameters"] = text
        cut_short = self._state.interrupted or self._state.skipped
        if job.save_images and options["samples_save"] and not cut_short:
            self._save(image, f"{job.kind}_samples", job.all_seeds[index])
        run.images.append(image)
        if mask is not None and options["return_mask"]:
            run.images.append(mask.convert("RGB"))

    def _save(self, image: Image.Image, kind: str, seed: int | None) -> None:
        general = self._options["outdir_grids" if seed is None else "outdir_samples"]
        folder = self._places.data / (general or self._options[f"outdir_{kind}"])
        pictures.save(image, folder, seed, self._options)

    def _write_params(self, job: Job) -> None:
        """Write params.txt, which is where a prompt that is no valid Unicode fails."""
        text = describe.infotext_of(job, self._options, 0)
        try:
            data = text.encode()
        except UnicodeEncodeError as error:
            raise WebuiError("UnicodeEncodeError", str(error)) from error
        if self._places.params is not None:
            self._places.params.parent.mkdir(parents=True, exist_ok=True)
            self._places.params.write_bytes(data)

    def _collected(self, run: Run) -> Processed:
        job, options = run.job, self._options
        if not run.infotexts:
            run.infotexts.append(describe.infotext_of(job, options, 0))
        said = describe.said(job, options, self._state.job_timestamp)
        processed = Processed(run.images, run.infotexts, 0, said)
        enough = len(run.images) > 1 or (run.images and not options["grid_only_if_multiple"])
        # Unless images are saved there is no grid, whatever do_not_save_grid says.
        if job.save_images and not job.do_not_save_grid and enough:
            self._add_grid(job, processed)
        return processed

    def _add_grid(self, job: Job, processed: Processed) -> None:
        options = self._options
        if not (options["return_grid"] or options["grid_save"]):
            return
        whole = pictures.grid(processed.images, options, job.batch_size or 1)
        text = describe.infotext_of(job, options, 0)
        whole.info["parameters"] = text
        if options["return_grid"]:
            processed.images.insert(0, whole)
            processed.infotexts.insert(0, text)
            processed.index_of_first_image = 1
        if options["grid_save"]:
            self._save(whole, f"{job.kind}_grids", None)
