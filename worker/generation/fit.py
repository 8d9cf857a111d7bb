"""Do the models of a job go together, and what becomes of those that do not.

A1111 answers 200 with the picture unchanged, and lists the misfit as if it worked
(recorded: lora_sdxl_mismatch), so it is judged before, from the headers.
"""

from dataclasses import dataclass, field
from pathlib import Path

from model_cache.models import CachedModel
from model_cache.weights import fit
from schemas.errors import ModelIncompatibleError


@dataclass
class Judge:
    """Compares the models of one job with its checkpoint."""

    checkpoint: CachedModel
    skips: bool
    """Whether a model that does not fit is left out, with a warning; else it fails the job."""
    warnings: list[str] = field(default_factory=list)
    skipped: set[Path] = field(default_factory=set)

    def takes(self, other: CachedModel, at: str) -> bool:
        """Return whether `other`, whose header was read, is used; what is not known to misfit is.

        Asking twice of one file warns once.

        Args:
            other: a LoRA, an embedding or a ControlNet model.
            at: the field of the request that names it.

        Raises:
            ModelIncompatibleError: it does not fit, and is not skipped.
        """
        reason = fit.misfit(self.checkpoint, other)
        if not reason:
            return True
        if not self.skips:
            have, need = fit.family(other.base), fit.family(self.checkpoint.base)
            raise ModelIncompatibleError(
                reason,
                hint=f"Use a {need} {other.kind}, or a {have} checkpoint; or send"
                ' "on_incompatible": "skip" to go on without it.',
                field=at,
            )
        if other.path not in self.skipped:
            self.skipped.add(other.path)
            self.warnings.append(f"{reason} It was skipped.{_left_over(other)}")
        return False


def _left_over(other: CachedModel) -> str:
    """Return what becomes of an embedding's name in the prompt.

    Source: A1111 1.10.1, modules/textual_inversion/textual_inversion.py, load_from_file: an
    embedding of another width is not registered, so that its name is read as words.
    """
    return " Its name in the prompt is read as words." if other.kind == "embedding" else ""
