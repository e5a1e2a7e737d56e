"""What patches add up to: checks against a model, and the summed difference of each parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from errata.errors import PatchError
from errata.patch.changes import Change, Context, Dense, LowRank, Route

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.patch.patch import Patch


def parameter_of(lm: LM, name: str) -> nn.Parameter:
    """Return a parameter.

    Raises:
        PatchError: If the model has none of that name.
    """
    try:
        return lm.model.get_parameter(name)
    except AttributeError:
        raise PatchError(
            f"{lm.name} has no parameter {name}; the patch is for another model"
        ) from None


def module_of(lm: LM, path: str) -> nn.Module:
    """Return a module.

    Raises:
        PatchError: If the model has none of that path.
    """
    try:
        return lm.model.get_submodule(path)
    except AttributeError:
        raise PatchError(
            f"{lm.name} has no module {path}; the patch is for another model"
        ) from None


def is_transposed(module: nn.Module) -> bool:
    """Whether a projection stores its weight as `d_in x d_out`."""
    return isinstance(module, Conv1D)


def check_changes(lm: LM, changes: Sequence[Change]) -> None:
    """Check that every change finds its place and fits.

    Raises:
        PatchError: Says which module or parameter is missing or has another shape.
    """
    for change in changes:
        if isinstance(change, Dense):
            have, want = tuple(parameter_of(lm, change.path).shape), tuple(change.delta.shape)
        elif isinstance(change, LowRank):
            module = module_of(lm, change.path)
            stored = tuple(parameter_of(lm, f"{change.path}.weight").shape)
            have = stored[::-1] if is_transposed(module) else stored
            want = (change.B.shape[0], change.A.shape[1])
        elif isinstance(change, Route):
            continue
        elif isinstance(change, Context):
            _check_context(lm, change)
            continue
        else:
            module_of(lm, change.path)
            if change.source is not None:
                module_of(lm, change.source)
            continue
        if have != want:
            raise PatchError(
                f"the change of {change.path} has shape {want}, the model's is {have}",
                "The patch is for another model.",
            )


def _check_context(lm: LM, change: Context) -> None:
    ids, limit = change.ids, lm.max_length
    if int(ids.min()) < 0 or int(ids.max()) >= lm.embedding.shape[0]:
        raise PatchError(f"{change.label} holds ids that {lm.name} does not have")
    if limit is not None and len(ids) >= limit:
        raise PatchError(
            f"{change.label} leaves no room: {lm.name} holds {limit} positions",
            "Edit fewer facts at once, or give fewer demonstrations.",
        )


def low_rank_delta(change: LowRank, device: torch.device) -> Float[Tensor, "d_out d_in"]:
    """Return `B A`, multiplied in float32 at least."""
    wide = torch.promote_types(change.B.dtype, torch.float32)
    return change.B.to(device, wide) @ change.A.to(device, wide)


def weight_deltas(lm: LM, changes: Sequence[Change]) -> dict[str, Tensor]:
    """Return the summed delta of each changed parameter: stored shape, float32 at least."""
    total: dict[str, Tensor] = {}
    for change in changes:
        if isinstance(change, LowRank):
            name = f"{change.path}.weight"
            delta = low_rank_delta(change, parameter_of(lm, name).device)
            if is_transposed(module_of(lm, change.path)):
                delta = delta.T
        elif isinstance(change, Dense):
            name = change.path
            delta = change.delta.to(parameter_of(lm, name).device)
        else:
            continue
        total[name] = total[name] + delta if name in total else delta
    return total


def bounded(lm: LM, patch: Patch) -> Patch:
    """Keep a patch within twice the size of what it changes, however many edits it carries out.

    Changes of one weight that together hold more than twice its numbers are added up into one dense
    change; all others stay as they are.
    """
    held: dict[str, list[Change]] = {}
    for change in patch.changes:
        if isinstance(change, LowRank):
            held.setdefault(f"{change.path}.weight", []).append(change)
        elif isinstance(change, Dense):
            held.setdefault(change.path, []).append(change)
    merged: dict[int, Change] = {}  # position of the first -> what stands for all of them
    gone: set[int] = set()
    for name, changes in held.items():
        numbers = sum(tensor.numel() for change in changes for tensor in change.tensors().values())
        dense = len(changes) == 1 and isinstance(changes[0], Dense)
        if dense or numbers <= 2 * parameter_of(lm, name).numel():
            continue
        own = [i for i, change in enumerate(patch.changes) if any(change is c for c in changes)]
        # summed in float64, so that a long sequence does not gather rounding errors
        wide = [_widened(change) for change in changes]
        total = weight_deltas(lm, wide)[name]
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


def _widened(change: Change) -> Change:
    if isinstance(change, LowRank):
        return replace(change, B=change.B.double(), A=change.A.double())
    return replace(change, delta=change.delta.double()) if isinstance(change, Dense) else change
