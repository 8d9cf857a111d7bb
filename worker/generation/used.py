"""Which models a job used, and what it cost to have them."""

from schemas.result import ModelUsed
from worker.generation.prepare import Prepared


def used_models(prepared: Prepared) -> list[ModelUsed]:
    """Return the models of a job: those that its fields name, then LoRAs that tags alone name."""
    listed = [
        ModelUsed(
            kind=ensured.model.kind.value,
            name=prepared.names[field],
            sha256=ensured.model.sha256,
            checked=ensured.checked,
            cached=ensured.cached,
            fetched_bytes=ensured.bytes_fetched,
            download_s=round(ensured.download_s, 3),
        )
        for field, ensured in prepared.found.items()
    ]
    named = {ensured.model.path for ensured in prepared.found.values()}
    by_tag = [
        ModelUsed(
            kind="lora",
            name=name,
            sha256=lora.sha256,
            checked="",
            cached=True,
            fetched_bytes=0,
            download_s=0.0,
        )
        for name, lora in prepared.tagged.loras.items()
        if lora.path not in named
    ]
    return listed + by_tag
