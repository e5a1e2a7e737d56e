"""Changes of weights.

Orientation: a projection computes `v = W k + b` with `W` of shape `d_out x d_in`, and a low-rank
change is `W += B A`. Only `errata.model.spec`, `errata.patch.places` and this file know that some
modules store the transpose.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from errata.errors import PatchError
from errata.patch.changes.base import Change, Factors, numbers_of, text_of
from errata.patch.changes.kinds import change_kind
from errata.patch.places import (
    device_of,
    is_projection,
    is_transposed,
    module_of,
    stored_shape,
)

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.patch.parts import Parts


def _check_shape(path: str, have: tuple[int, ...], want: tuple[int, ...]) -> None:
    if have != want:
        raise PatchError(
            f"the change of {path} has shape {want}, the model's is {have}",
            "The patch is for another model.",
        )


@change_kind("low_rank")
@dataclass(frozen=True, eq=False, repr=False)
class LowRank(Change):
    """`W += B A` on the weight of one projection.

    Attributes:
        path: Dotted path of the module.
        B: `[d_out, r]`.
        A: `[r, d_in]`.
    """

    kind: ClassVar[str] = "low_rank"
    path: str
    B: Float[Tensor, "d_out r"]
    A: Float[Tensor, "r d_in"]

    def __post_init__(self) -> None:
        if self.B.ndim != 2 or self.A.ndim != 2 or self.B.shape[1] != self.A.shape[0]:
            raise PatchError(
                f"low-rank change of {self.path}: B is {tuple(self.B.shape)}, "
                f"A is {tuple(self.A.shape)}; expected d_out x r and r x d_in"
            )

    @property
    def rank(self) -> int:
        """Number of rank-one terms."""
        return self.A.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved in the tensor file."""
        return {"B": self.B, "A": self.A}

    def describe(self) -> dict[str, Any]:
        """Return what is saved in the JSON file."""
        return {"kind": self.kind, "path": self.path}

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> LowRank:
        """Return the change that was saved."""
        return cls(text_of(entry, "path"), numbers_of(tensors, "B"), numbers_of(tensors, "A"))

    @property
    def parameter(self) -> str:
        """The weight of the projection."""
        return f"{self.path}.weight"

    @property
    def factors(self) -> Factors:
        """`B` and `A`."""
        return self.B, self.A

    def check(self, lm: LM) -> None:
        """Refuse a model that has no such projection, or one of another shape."""
        module = module_of(lm, self.path)
        stored = stored_shape(lm, self.parameter)
        have = stored[::-1] if is_transposed(module) else stored
        _check_shape(self.path, have, (self.B.shape[0], self.A.shape[1]))

    def install(self, parts: Parts, group: int) -> None:
        """Add two thin factors."""
        parts.add_factors(group, self)

    def difference(self, lm: LM) -> Tensor:
        """Return `B A` as the weight is stored, multiplied in float32 at least."""
        device = device_of(lm, self.parameter)
        wide = torch.promote_types(self.B.dtype, torch.float32)
        product = self.B.to(device, wide) @ self.A.to(device, wide)
        return product.T if is_transposed(module_of(lm, self.path)) else product

    def in_float64(self) -> LowRank:
        """Return the same with factors in float64."""
        return replace(self, B=self.B.double(), A=self.A.double())

    def scaled(self, factor: float) -> LowRank:
        """Return the change `factor` times as strong."""
        return replace(self, B=self.B * factor)

    def projection(self, lm: LM) -> str:
        """Return the path of the projection."""
        return self.path


@change_kind("dense")
@dataclass(frozen=True, eq=False, repr=False)
class Dense(Change):
    """`parameter += delta`, for any parameter.

    Attributes:
        path: Name of the parameter.
        delta: In the parameter's stored shape.
    """

    kind: ClassVar[str] = "dense"
    path: str
    delta: Float[Tensor, ...]

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved in the tensor file."""
        return {"delta": self.delta}

    def describe(self) -> dict[str, Any]:
        """Return what is saved in the JSON file."""
        return {"kind": self.kind, "path": self.path}

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Dense:
        """Return the change that was saved."""
        return cls(text_of(entry, "path"), numbers_of(tensors, "delta"))

    @property
    def parameter(self) -> str:
        """The parameter itself."""
        return self.path

    def check(self, lm: LM) -> None:
        """Refuse a model that has no such parameter, or one of another shape."""
        _check_shape(self.path, stored_shape(lm, self.path), tuple(self.delta.shape))

    def install(self, parts: Parts, group: int) -> None:
        """Add a difference of a parameter."""
        parts.add_difference(group, self)

    def difference(self, lm: LM) -> Tensor:
        """Return `delta` where the parameter is."""
        return self.delta.to(device_of(lm, self.path))

    def in_float64(self) -> Dense:
        """Return the same in float64."""
        return replace(self, delta=self.delta.double())

    def scaled(self, factor: float) -> Dense:
        """Return the change `factor` times as strong."""
        return replace(self, delta=self.delta * factor)

    def projection(self, lm: LM) -> str:
        """Return the path of the projection, if this is the weight of one.

        Raises:
            PatchError: If it is not.
        """
        path, _, leaf = self.path.rpartition(".")
        if leaf != "weight" or self.delta.ndim != 2 or not is_projection(lm.module(path)):
            raise PatchError(
                f"LoRA cannot carry a change of {self.path}: it is no projection weight",
                "Export with --to merged, or edit weights only (for ft: --set bias=false).",
            )
        return path
