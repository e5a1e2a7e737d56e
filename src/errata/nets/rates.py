"""Edit learning rates: one per edited matrix, learned directly or as a logarithm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

RateSpace = Literal["log", "direct"]


class EditRates(nn.Module):
    """One scalar per matrix.

    Args:
        count: Number of matrices.
        start: Value of each.
        space: `log`: the logarithm is learned, so the rate keeps its sign and moves by factors;
            `direct`: the rate itself is learned and may change sign, as in MEND.
    """

    def __init__(self, count: int, start: float, space: RateSpace) -> None:
        super().__init__()
        self.space = space
        value = torch.full((count,), float(start))
        self.value = nn.Parameter(value.log() if space == "log" else value)

    def forward(self) -> Float[Tensor, " n"]:
        """Return the rates."""
        return self.value.exp() if self.space == "log" else self.value

    @torch.no_grad()
    def multiply(self, factors: Sequence[float]) -> None:
        """Multiply each rate by a positive factor."""
        by = torch.tensor(list(factors), device=self.value.device)
        self.value.copy_(self.value + by.log() if self.space == "log" else self.value * by)
