"""Wanted changes of many edits at one matrix, written together by ridge regression.

Adding the updates of several edits adds what they have in common as often as there are edits. The
ridge asks for one shift of the weights that brings every edit's output at every key close to what
the edit alone would give, and little at keys in general:

    S = argmin sum_t w_t |S h_t - v_t|² + λ tr(S C Sᵀ) = V W Hᵀ (H W Hᵀ + λ C)^{-1}

with one column of `H` (keys) and `V` (wanted changes of the output) per token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from errata.errors import PatchError


@dataclass(frozen=True)
class Wanted:
    """Keys and wanted changes at one matrix: each by itself while they are few, else their sums.

    Memory never grows beyond `d_in × (d_in + d_out)`, whatever the number of edits, and all of it
    adds up: the order in which tokens came leaves no trace beyond the rounding of float64.

    Attributes:
        keys: `[n, d_in]`, each times the root of its weight; None once there are `d_in` of them.
        values: `[n, d_out]`, likewise.
        gram: `sum w h hᵀ`, once there are too many.
        cross: `sum w h vᵀ`, likewise.
        mass: Sum of the weights.
    """

    keys: Float[Tensor, "n d_in"] | None
    values: Float[Tensor, "n d_out"] | None
    gram: Float[Tensor, "d_in d_in"] | None
    cross: Float[Tensor, "d_in d_out"] | None
    mass: float

    @classmethod
    def empty(cls) -> Wanted:
        """Return that of no edit."""
        return cls(None, None, None, None, 0.0)

    def add(
        self,
        keys: Float[Tensor, "n d_in"],
        values: Float[Tensor, "n d_out"],
        weights: Float[Tensor, " n"] | None = None,
    ) -> Wanted:
        """Return the same with further tokens, each of weight one by default."""
        keys, values = keys.detach().double(), values.detach().double()
        roots = keys.new_ones(len(keys), 1) if weights is None else weights.to(keys).sqrt()[:, None]
        mass = self.mass + float(roots.square().sum())
        keys, values = roots * keys, roots * values
        if self.gram is None or self.cross is None:
            if self.keys is not None and self.values is not None:
                keys = torch.cat([self.keys.to(keys), keys])
                values = torch.cat([self.values.to(values), values])
            if len(keys) < keys.shape[1]:
                return Wanted(keys, values, None, None, mass)
            return Wanted(None, None, keys.T @ keys, keys.T @ values, mass)
        gram, cross = self.gram.to(keys), self.cross.to(keys)
        return Wanted(None, None, gram + keys.T @ keys, cross + keys.T @ values, mass)

    def solve(
        self, weight: float, moment: Float[Tensor, "d_in d_in"] | None = None
    ) -> tuple[Float[Tensor, "d_out r"], Float[Tensor, "r d_in"]]:
        """Return factors `B`, `A` of the shift `S = B A`, float64, of rank min(n, d_in, d_out).

        Args:
            weight: `λ`: how many ordinary tokens the edits' tokens are weighed against.
            moment: `C`, the second moment of ordinary keys; None: the identity times the weighted
                mean square of the edits' own keys.

        Raises:
            ValueError: If nothing was added.
        """
        if self.keys is not None and self.values is not None:
            if moment is None:
                A = self.keys / (weight * self._mean_square(float(self.keys.square().sum())))
            else:
                A = torch.linalg.solve(weight * moment.to(self.keys), self.keys.T).T
            system = self.keys @ A.T
            system.diagonal().add_(1.0)
            B = torch.linalg.solve(system, self.values).T
            wide, high = self.keys.shape[1], self.values.shape[1]
            if len(A) <= min(wide, high):
                return B, A
            dense = B @ A
        elif self.gram is not None and self.cross is not None:
            system = self.gram.clone()
            if moment is None:
                square = self._mean_square(float(self.gram.diagonal().sum()))
                system.diagonal().add_(weight * square)
            else:
                system += weight * moment.to(system)
            dense = torch.linalg.solve(system, self.cross).T
        else:
            raise ValueError("nothing to solve for")
        high, wide = dense.shape
        eye = torch.eye(min(high, wide), dtype=dense.dtype, device=dense.device)
        return (eye, dense) if high <= wide else (dense, eye)

    def _mean_square(self, total: float) -> float:
        """Return the weighted mean of the keys' squared entries."""
        tensor = self.keys if self.keys is not None else self.gram
        assert tensor is not None
        return max(total / (self.mass * tensor.shape[1]), torch.finfo(torch.float32).tiny)

    # ------------------------------------------------------------------ in the state of a patch

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return it as named tensors; see `from_tensors`."""
        named = {f"{prefix}.mass": torch.tensor(self.mass, dtype=torch.float64)}
        for name in ("keys", "values", "gram", "cross"):
            tensor = getattr(self, name)
            if tensor is not None:
                named[f"{prefix}.{name}"] = tensor
        return named

    @classmethod
    def from_tensors(cls, state: Mapping[str, object], prefix: str) -> Wanted:
        """Return what `tensors` named with this prefix; without any such tensor, an empty one.

        Raises:
            PatchError: If the tensors contradict each other.
        """
        found = {
            name: state.get(f"{prefix}.{name}") for name in ("keys", "values", "gram", "cross")
        }
        tensors = {k: v.double() for k, v in found.items() if isinstance(v, Tensor)}
        mass = state.get(f"{prefix}.mass")
        if mass is None and not tensors:
            return cls.empty()
        raw = tensors.keys() == {"keys", "values"}
        fits = isinstance(mass, Tensor) and (raw or tensors.keys() == {"gram", "cross"})
        if fits and raw:
            fits = len(tensors["keys"]) == len(tensors["values"])
        if not fits:
            raise PatchError(
                f"the state {prefix!r} of the patch contradicts itself: its tensors are of "
                "different edits",
                "Make the patch again.",
            )
        kept = (tensors.get(name) for name in ("keys", "values", "gram", "cross"))
        return cls(*kept, mass=float(mass) if isinstance(mass, Tensor) else 0.0)
