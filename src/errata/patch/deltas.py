"""What patches add up to: the summed difference of each parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from errata.patch.changes import Change, Dense
from errata.patch.places import stored_shape

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.patch.patch import Patch


def by_parameter(changes: Sequence[Change]) -> dict[str, list[Change]]:
    """Return the changes of each parameter, those of no weight left out."""
    found: dict[str, list[Change]] = {}
    for change in changes:
        if change.parameter is not None:
            found.setdefault(change.parameter, []).append(change)
    return found


def weight_deltas(lm: LM, changes: Sequence[Change]) -> dict[str, Tensor]:
    """Return the summed difference of each changed parameter: stored shape, float32 at least."""
    total: dict[str, Tensor] = {}
    for name, own in by_parameter(changes).items():
        for change in own:
            delta = change.difference(lm)
            total[name] = total[name] + delta if name in total else delta
    return total


def bounded(lm: LM, patch: Patch) -> Patch:
    """Keep a patch within twice the size of what it changes, however many edits it carries out.

    Changes of one weight that together hold more than twice its numbers are added up into one dense
    change; all others stay as they are, and so do those from which single edits can be taken back.
    """
    merged: dict[int, Change] = {}  # position of the first -> what stands for all of them
    gone: set[int] = set()
    for name, changes in by_parameter([c for c in patch.changes if not c.held]).items():
        numbers = sum(tensor.numel() for change in changes for tensor in change.tensors().values())
        if numbers <= 2 * math.prod(stored_shape(lm, name)):
            continue
        own = [i for i, change in enumerate(patch.changes) if any(change is c for c in changes)]
        # summed in float64, so that a long sequence does not gather rounding errors
        total = weight_deltas(lm, [change.in_float64() for change in changes])[name]
        dtype = torch.float32
        for change in changes:
            for tensor in change.tensors().values():
                dtype = torch.promote_types(dtype, tensor.dtype)
        merged[own[0]] = Dense(name, total.to(dtype).contiguous())
        gone |= set(own)
    if not merged:
        return patch
    kept = [
        merged.get(i, change)
        for i, change in enumerate(patch.changes)
        if i in merged or i not in gone
    ]
    return replace(patch, changes=tuple(kept))
