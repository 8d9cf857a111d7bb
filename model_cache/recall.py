"""A model that an infotext names: by its hash, then by its name, then from Civitai.

The hash decides. A file that has the name and another hash is another version of the model, and
would make another picture.
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

from model_cache.asking import asking
from model_cache.cache import ModelCache
from model_cache.engine.download import Allowance
from model_cache.hosts import civitai_about
from model_cache.models import CachedModel, Ensured, Progress
from model_cache.turns import Errand
from model_cache.weights import header
from schemas.errors import InvalidInputError, ModelCorruptError, ModelNotFoundError
from schemas.model_ref import SUFFIX, Kind, ModelRef, Recalled, parse_ref
from schemas.settings import CacheSettings


@dataclass(frozen=True)
class Recall:
    """Makes models of infotexts present. Safe to use from several threads.

    Args:
        cache: where they are, or will be.
        settings: of that cache.
        tokens: of the request, by host.
        allowance: what the job may fetch.
    """

    cache: ModelCache
    settings: CacheSettings
    tokens: Mapping[str, str]
    allowance: Allowance

    def ensure(
        self,
        ref: Recalled,
        *,
        cancelled: threading.Event,
        progress: Callable[[Progress], None] | None = None,
    ) -> Ensured:
        """Make the model present, as `ModelCache.ensure` does, with a warning that tells the choice.

        Raises:
            ModelNotFoundError: nothing here and nothing on Civitai has the hash, or the infotext gives
                none and nothing here has the name.
            WorkerError: as `ModelCache.ensure`.
        """
        errand = Errand(cancelled, self.allowance, progress)
        if ref.hash is None:
            done = self._by_name(ref, errand)
        else:
            done = self._here(ref, cancelled) or self._fetched(ref, errand)
        how = f"by its hash {ref.hash}" if ref.hash else "by its name alone"
        told = f"The infotext's {ref.kind} `{ref.label}` is `{done.model.name}` here, found {how}."
        return replace(done, warnings=(*done.warnings, told))

    def _by_name(self, ref: Recalled, errand: Errand) -> Ensured:
        """Return the model that a request would mean by that name; an alias may be fetched."""
        try:
            return self._ensured(ref, errand)
        except ModelNotFoundError as error:
            raise self._missing(ref, f"It gives no hash. {error} {error.hint}") from error

    def _ensured(self, ref: ModelRef, errand: Errand) -> Ensured:
        return self.cache.ensure(
            ref,
            cancelled=errand.cancelled,
            tokens=self.tokens,
            progress=errand.progress,
            allowance=self.allowance,
        )

    def _here(self, ref: Recalled, cancelled: threading.Event) -> Ensured | None:
        """Return the model if it is here."""
        by_hash = self.cache.find(ref.kind, ref.hash) if ref.hash else None
        # An embedding is applied by its name, so it has to have the one that the prompt says.
        if by_hash is not None and ref.kind is not Kind.EMBEDDING:
            found = ref.model_copy(update={"name": by_hash.name})
            return self.cache.present(found, cancelled=cancelled)
        with suppress(ModelNotFoundError, ModelCorruptError):
            return self.cache.present(ref, cancelled=cancelled)
        named = self._named(ref)
        if named is not None and ref.hash and _noted_hash(named).startswith(ref.hash):
            found = ref.model_copy(update={"name": named.name, "hash": None})
            return self.cache.present(found, cancelled=cancelled)
        return None

    def _named(self, ref: Recalled) -> CachedModel | None:
        """Return the model that has the name; None as well where several are spelled so."""
        with suppress(ModelNotFoundError):
            return self.cache.find(ref.kind, ref.name or "")
        return None

    def _fetched(self, ref: Recalled, errand: Errand) -> Ensured:
        url = self._on_civitai(ref, errand)
        name = None if "/" in (ref.name or "") or ref.name == ref.hash else ref.name
        wanted = parse_ref({"name": name, "url": url, "hash": ref.hash}, ref.kind, "infotext")
        return self._ensured(wanted, errand)

    def _on_civitai(self, ref: Recalled, errand: Errand) -> str:
        """Return the reference to the file that Civitai has with the hash."""
        digest = ref.hash or ""
        try:
            with asking(self.settings, self.tokens, errand, f"the hash {digest}") as asker:
                about = civitai_about.by_hash(digest, asker)
        except ModelNotFoundError:
            raise self._missing(ref, "Civitai knows no file with that hash either.") from None
        except InvalidInputError as error:  # It is not among the hosts that may be asked.
            raise self._missing(ref, f"Civitai was not asked: {error}") from error
        for file in about["versions"][0]["files"]:
            if any(known.startswith(digest) for known in file["hashes"].values()):
                return str(file["url"])
        raise self._missing(ref, "Civitai no longer gives that file out.")

    def _missing(self, ref: Recalled, why: str) -> ModelNotFoundError:
        named = self._named(ref)
        text = f"The infotext names the {ref.kind} `{ref.label}`"
        text += f" with the hash {ref.hash}" if ref.hash else ""
        if named is not None:
            why = f"`{named.name}` here has the hash {(named.sha256 or 'unknown')[:10]}. {why}"
        return ModelNotFoundError(
            f"{text}; it is not here.",
            hint=f"{why} Name another {ref.kind} in the request: that wins over the infotext.",
            field="infotext",
            kind=str(ref.kind),
            name=ref.name,
            hash=ref.hash,
        )


def _noted_hash(model: CachedModel) -> str:
    """Return the hash that a LoRA's maker wrote into its header; empty where there is none.

    A1111 lists that one without computing its own. Source: A1111 1.10.1,
    extensions-builtin/Lora/network.py, NetworkOnDisk.
    """
    if model.kind is not Kind.LORA or model.path.suffix != SUFFIX:
        return ""
    with suppress(ModelCorruptError, OSError):
        return header.read(model.path, model.name).metadata.get("sshs_model_hash", "")
    return ""
