"""How far a patch moves the weights of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from errata.model.stored import read
from errata.patch import Patch
from errata.patch.deltas import by_parameter, weight_deltas

if TYPE_CHECKING:
    from errata.model.lm import LM


@torch.no_grad()
def drift(lm: LM, patch: Patch | None) -> dict[str, dict[str, float]]:
    """Return the drift of every parameter that a patch changes.

    Args:
        lm: The unedited model.
        patch: The patch; changes of one parameter add up. Modules have no drift.

    Returns:
        By name of the parameter, `relative`: `||W - W0|| / ||W0||` (Frobenius norms), and
        `published`: `||W - W0|| / numel(W)` (Gupta et al. 2024, Rebuilding ROME,
        https://arxiv.org/abs/2403.07175).
    """
    changed = by_parameter(() if patch is None else patch.changes)
    found = {}
    for name, changes in changed.items():  # one after another: only one delta is held at a time
        weight = read(lm.model, name)
        moved = _norm(weight_deltas(lm, changes)[name])
        size = _norm(weight)
        found[name] = {
            "relative": moved / size if size else 0.0,
            "published": moved / weight.numel(),
        }
    return found


def _norm(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.double()))
