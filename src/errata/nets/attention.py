"""Cross attention as IBKE uses it: no output projection, scale and heads as settings."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

AttentionScale = Literal["sqrt", "none"]


class CrossAttention(nn.Module):
    """`softmax(c (a W_q)(b W_k)ᵀ) (b W_v)`, keys and values from `b`.

    Args:
        d_query: Width of `a`.
        d_key: Width of `b`.
        d: Width of queries, keys and values.
        heads: Number of heads; `d` is divided among them.
        scale: `sqrt`: `c = 1/√(d/heads)`; `none`: `c = 1`, as printed in the paper.
        bias: Whether the projections have biases.
    """

    def __init__(
        self,
        d_query: int,
        d_key: int,
        d: int,
        heads: int = 1,
        scale: AttentionScale = "sqrt",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.c = (d // heads) ** -0.5 if scale == "sqrt" else 1.0
        self.q = nn.Linear(d_query, d, bias=bias)
        self.k = nn.Linear(d_key, d, bias=bias)
        self.v = nn.Linear(d_key, d, bias=bias)

    def forward(
        self,
        a: Float[Tensor, "E Q d_query"],
        b: Float[Tensor, "E K d_key"],
        mask: Bool[Tensor, "E K"] | None = None,
    ) -> Float[Tensor, "E Q d"]:
        """Return what each query gathers; keys with `mask` false are not looked at.

        A row without any key gathers zero.
        """
        q, k, v = (self._split(x) for x in (self.q(a), self.k(b), self.v(b)))
        logits = self.c * (q @ k.transpose(-1, -2))
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None, None, :], -torch.inf)
            empty = ~mask.any(-1)
            if bool(empty.any()):
                logits = logits.masked_fill(empty[:, None, None, None], 0.0)
        out = logits.softmax(-1) @ v
        if mask is not None:
            out = out * mask.any(-1)[:, None, None, None]
        return out.transpose(1, 2).flatten(2)

    def _split(self, x: Float[Tensor, "E N d"]) -> Float[Tensor, "E h N d_head"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
