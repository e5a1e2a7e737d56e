"""Whether anything can be said under a patch at all."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from errata.errors import PatchError

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.patch import Patch

ASKED = 4
"""Edits of a patch that are asked before it is called sound."""


def check_answers(patch: Patch, lm: LM) -> None:
    """Refuse a patch whose tensors are finite and whose answers are not: nothing can be said of it.

    Raises:
        PatchError: If the model gives NaN or infinity under it.
    """
    rows = [lm.row(edit.prompt, edit.target) for edit in patch.edits[:ASKED]]
    with patch.applied(lm):
        scores = lm.score(rows or [lm.row("The capital is", "a")])
    if not all(math.isfinite(value) for score in scores for value in score.logprobs):
        raise PatchError(
            f"under this patch {lm.name} gives NaN or infinity in the place of probabilities",
            "The patch is damaged, or was scaled too far; make it again.",
        )
