"""What T-Patcher's edits build on: where units go, and what an earlier patch holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from errata.editors.t_patcher.units import KIND, Units, form_of
from errata.errors import PatchError
from errata.model.lm import LM
from errata.model.spec import Site
from errata.nets.ffn import FfnForm
from errata.patch import Patch
from errata.patch.changes import Module

STATE = "t_patcher.states"
"""Where a patch keeps the states of its edits that later edits must leave alone."""


@dataclass(frozen=True)
class Place:
    """Where units go: block, second matrix and form of its FFN, biases, width of its input."""

    layer: int
    site: Site
    form: FfnForm
    bias: bool
    width: int

    @staticmethod
    def dtype_of(held: Sequence[Held]) -> torch.dtype:
        """Return the type that the units of all groups are held in."""
        return held[0].units.values.dtype


@dataclass(frozen=True)
class Held:
    """What a group has so far: units, and states of its edits that later ones leave alone."""

    units: Units
    states: Float[Tensor, "e d"]

    def kept(self) -> dict[str, Tensor]:
        """Return what a patch holds for the next edit."""
        return {STATE: self.states.detach().cpu()} if len(self.states) else {}


def earlier(lm: LM, patch: Patch, place: Place) -> Held:
    """Return the units of an earlier patch; none if it has none.

    Raises:
        PatchError: If they cannot be joined with new ones: another version, block or FFN, or
            several changes with units.
    """
    dtype = torch.float64 if lm.dtype == torch.float64 else torch.float32
    states = patch.state.get(STATE)
    if not isinstance(states, Tensor) or states.shape[-1] != place.width:
        states = torch.zeros(0, place.width)
    states = states.to(lm.device, dtype)
    own = patch.split(KIND, Module)[1]
    if not own:
        empty = Units.empty(place.form, place.width, place.site.d_out, dtype, lm.device)
        return Held(empty, states)
    if len(own) > 1:
        raise PatchError(
            f"the earlier patch holds T-Patcher's units in {len(own)} changes",
            "Edit after one patch (--after) instead of adding two.",
        )
    module = own[0]
    assert isinstance(module, Module)
    units = Units.restored(module.config, module.weights, module.path)
    if module.path != place.site.path:
        raise PatchError(
            f"the earlier patch has its units at {module.path}, not at {place.site.path}",
            "Edit with the layer that its patch.json names.",
        )
    if form_of(module.config) != replace(place.form, bias=False):
        raise PatchError(
            f"the earlier patch has units of another kind of FFN at {module.path}",
            "The patch is for another model.",
        )
    return Held(units.to(lm.device, dtype), states)
