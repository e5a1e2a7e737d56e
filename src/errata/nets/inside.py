"""What a bottleneck holds while it compresses an edit: latents and gates, to be looked at.

```
signals [E, T, D] ──▶ μ, v [E, l_m, d_m]   latents: what is left of an edit
                  ──▶ σ(f_Ws) [E, T]       gates: how much of each token's factors is written
```
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from errata.nets.update import Update


@dataclass(frozen=True)
class Inside:
    """What the network of one matrix holds of E edits, without noise.

    Attributes:
        seen: Normalised signals, the mean over each edit's tokens, `[E, d_in + d_out]`.
        latents: Means μ of the latents, `[E, l_m, d_m]`.
        variance: Their variances; None without a bottleneck.
        gates: Gate of each token, between 0 and 1, `[E, T]`; None if trained without gates.
        mask: Tokens that are written, `[E, T]`; gates elsewhere mean nothing.
    """

    seen: Float[Tensor, "E D"]
    latents: Float[Tensor, "E l_m d_m"]
    variance: Float[Tensor, "E l_m d_m"] | None
    gates: Float[Tensor, "E T"] | None
    mask: Bool[Tensor, "E T"]


def smallest(
    gates: Sequence[Float[Tensor, "E T"]],
    masks: Sequence[Bool[Tensor, "E T"]],
    mine: Bool[Tensor, " E"],
    share: float,
) -> list[Bool[Tensor, "E T"]]:
    """Return which tokens of a group stay when the smallest gates of all its matrices go.

    Args:
        gates: Per matrix.
        masks: Per matrix, tokens that are written.
        mine: Edits of the group.
        share: Share of its tokens, over all matrices together, whose gates are set to zero; rounded
            to the nearest token, and of equal gates the first goes first.
    """
    here = [mask & mine[:, None] for mask in masks]
    values = torch.cat([g[m] for g, m in zip(gates, here, strict=True)])
    order = torch.argsort(values, stable=True)
    stay = torch.ones(len(values), dtype=torch.bool, device=values.device)
    stay[order[: round(share * len(values))]] = False
    kept, start = [], 0
    for mask in here:
        own = mask.clone()
        count = int(mask.sum())
        own[mask] = stay[start : start + count]
        start += count
        kept.append(own)
    return kept


def only(update: Update, kept: Sequence[Bool[Tensor, "E T"]]) -> Update:
    """Return an update of which only the factors of some tokens are left.

    A gate multiplies both factors of its token, so a gate of zero and a factor that is left out
    are the same.
    """
    terms = [
        replace(term, mask=term.mask & own) for term, own in zip(update.terms, kept, strict=True)
    ]
    return replace(update, terms=tuple(terms))
