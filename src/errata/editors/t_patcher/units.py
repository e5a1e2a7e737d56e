"""T-Patcher's units: further inner units of an FFN, kept beside it.

A unit is a key (gated FFNs: one for the gate and one for up), a bias for each if there are biases,
and a value. It does to the FFN's input what the FFN's own units do, and its value is added to the
FFN's output. Nothing is replaced, so units may be added to units, and removing them restores the
model.

Sources: Huang et al., "Transformer-Patcher", 2023, arXiv:2301.09785; UniEdit's editor of that name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from errata.editors.t_patcher.merge import Widening
from errata.errors import PatchError
from errata.nets.ffn import FfnForm
from errata.patch.changes import Module, module_kind

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from errata.model.lm import LM

KIND = "t_patcher"
"""Name under which patches hold units."""

VERSION = 1
"""Format of units in a patch."""


@dataclass(frozen=True)
class Units:
    """The units of one FFN, in the order in which they were added.

    Attributes:
        keys: What each unit compares the FFN's input with, for each part (gate, up).
        values: What is added to the FFN's output, times the unit's activation.
        biases: Added to the products with the keys; None: no unit has any.
    """

    keys: Float[Tensor, "p n d"]
    values: Float[Tensor, "n d_out"]
    biases: Float[Tensor, "p n"] | None = None

    @classmethod
    def empty(
        cls, form: FfnForm, d: int, d_out: int, dtype: torch.dtype, device: torch.device
    ) -> Units:
        """Return no units."""
        made = {"dtype": dtype, "device": device}
        return cls(torch.zeros(form.parts, 0, d, **made), torch.zeros(0, d_out, **made))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def nbytes(self) -> int:
        """Bytes of keys, biases and values."""
        found = (self.keys, self.values, *([] if self.biases is None else [self.biases]))
        return sum(t.numel() * t.element_size() for t in found)

    def joined(self, more: Units) -> Units:
        """Return these units and more of them; where only some have biases, the others' are 0."""
        biases = None
        if self.biases is not None or more.biases is not None:
            biases = torch.cat([self._biases(), more._biases()], 1)
        return Units(
            torch.cat([self.keys, more.keys], 1), torch.cat([self.values, more.values]), biases
        )

    def _biases(self) -> Float[Tensor, "p n"]:
        return self.keys.new_zeros(self.keys.shape[:2]) if self.biases is None else self.biases

    def to(self, device: torch.device, dtype: torch.dtype) -> Units:
        """Return the same on a device and in a type."""
        biases = None if self.biases is None else self.biases.to(device, dtype)
        return Units(self.keys.to(device, dtype), self.values.to(device, dtype), biases)

    def added(self, form: FfnForm, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d_out"]:
        """Return what the units add to the FFN's output, `x` being its input."""
        parts = torch.einsum("...d,pnd->...pn", x, self.keys)
        if self.biases is not None:
            parts = parts + self.biases
        return form.inner(parts) @ self.values

    # ------------------------------------------------------------------ in patches

    def module(self, path: str, form: FfnForm) -> Module:
        """Return what a patch holds of the units.

        Args:
            path: The second matrix of the FFN.
            form: The FFN.
        """
        tensors = {"keys": self.keys, "values": self.values}
        if self.biases is not None:
            tensors["biases"] = self.biases
        config = {
            "version": VERSION, "inputs": list(form.inputs), "gated": form.gated,
            "fused": form.fused, "activation": form.activation,
        }  # fmt: skip
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return Module(path, KIND, config, kept, where="both", source=form.inputs[0])

    @classmethod
    def restored(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: str = "this FFN"
    ) -> Units:
        """Return the units of a patch.

        Raises:
            PatchError: If they are of another version, or incomplete.
        """
        version = config.get("version")
        if version != VERSION:
            raise PatchError(
                f"T-Patcher's units at {path} have format {version}; this errata reads {VERSION}",
                "Use the version of errata that patch.json names, or make the patch again.",
            )
        try:
            keys, values, biases = tensors["keys"], tensors["values"], tensors.get("biases")
        except KeyError as missing:
            raise PatchError(f"T-Patcher's units at {path} lack their {missing.args[0]}") from None
        parts = 2 if config.get("gated") else 1
        want = (parts, len(values))
        if (
            keys.ndim != 3
            or keys.shape[:2] != want
            or (biases is not None and biases.shape != want)
        ):
            raise PatchError(
                f"T-Patcher's units at {path}: {len(values)} values with keys of shape "
                f"{tuple(keys.shape)}; expected {parts} x {len(values)} keys"
            )
        return cls(keys, values, biases)


def form_of(config: Mapping[str, Any]) -> FfnForm:
    """Return the form of the FFN that a patch's units were made for."""
    return FfnForm(
        tuple(config["inputs"]), config["gated"], config["fused"], config["activation"], False
    )


@module_kind(KIND)
class Beside(nn.Module):
    """Units at work beside an FFN.

    Args:
        config: `version`, and the form of the FFN.
        tensors: `keys`, `values` and perhaps `biases` of
            [`Units`][errata.editors.t_patcher.units.Units].

    Raises:
        PatchError: If they are of another version.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        units = Units.restored(config, tensors)
        self.form = form_of(config)
        self.register_buffer("keys", units.keys, persistent=False)
        self.register_buffer("values", units.values, persistent=False)
        self.register_buffer("biases", units.biases, persistent=False)

    @staticmethod
    def merged(lm: LM, changes: Sequence[Module]) -> Callable[[LM], PreTrainedModel]:
        """Return what builds the model with FFNs that are wide enough for all units.

        Raises:
            PatchError: If no checkpoint of this architecture can hold them.
        """
        return Widening.of(lm, changes).model

    def forward(
        self, given: Float[Tensor, "*batch d"], output: Float[Tensor, "*batch d_out"]
    ) -> Float[Tensor, "*batch d_out"]:
        """Return `output` with the units' values added, in float32 at least, rounded once."""
        biases = self.biases if isinstance(self.biases, Tensor) else None
        units = Units(self.get_buffer("keys"), self.get_buffer("values"), biases)
        wide = torch.promote_types(given.dtype, units.keys.dtype)
        term = units.to(given.device, wide).added(self.form, given.to(wide))
        return (output.to(wide) + term).to(output.dtype)


def stacked(
    groups: Sequence[Units],
) -> tuple[Float[Tensor, "G p n d"], Float[Tensor, "G p n"], Float[Tensor, "G n d_out"]]:
    """Return keys, biases and values of several groups, filled up with units that add nothing."""
    n = max(map(len, groups))

    def filled(tensor: Tensor, units: Units) -> Tensor:
        return nn.functional.pad(tensor, (0, 0, 0, n - len(units)))

    keys = torch.stack([filled(units.keys, units) for units in groups])
    values = torch.stack([filled(units.values, units) for units in groups])
    biases = torch.stack(
        [nn.functional.pad(units._biases(), (0, n - len(units))) for units in groups]
    )
    return keys, biases, values
