"""Logits to scores: log-probability and rank of labels, most probable tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

SCORED_AT_ONCE = {"cpu": 1 << 18, "cuda": 1 << 26}
"""Logits that are scored together; on a CPU so few that they stay in its cache."""


@dataclass(frozen=True, slots=True)
class RowScore:
    """What the model says at the supervised positions of one row.

    Attributes:
        logprobs: Natural log-probability of each label.
        argmax: Most probable token at each position.
        ranks: Rank of each label, 0 for the most probable; ties go to the lower token id. Where the
            logits are not finite, the size of the vocabulary: never a hit.
    """

    logprobs: tuple[float, ...]
    argmax: tuple[int, ...]
    ranks: tuple[int, ...]


def score_logits(
    logits: Float[Tensor, "U V"],
    labels: Int[Tensor, " N"],
    at: Int[Tensor, " N"] | None = None,
) -> tuple[list[float], list[int], list[int]]:
    """Return log-probability and rank of each label, and the most probable token.

    Half-precision logits are scored in float32. Ties are broken by the lower token id, as argmax
    does.

    Args:
        logits: Logits of the positions.
        labels: Labels asked for.
        at: For each label, its line in `logits`; default: label by label.
    """
    at = torch.arange(len(labels), device=logits.device) if at is None else at
    budget = SCORED_AT_ONCE.get(logits.device.type, SCORED_AT_ONCE["cuda"])
    lines = max(1, budget // logits.shape[1])
    totals, tops = [], []
    for part in logits.split(lines):
        values = _wide(part)
        totals.append(values.logsumexp(-1))
        tops.append(values.max(-1).indices)  # the first of equals, as argmax, and twice as fast
    own = _wide(logits[at, labels])
    argmax = torch.cat(tops)[at]
    ranks = torch.zeros_like(labels)
    for part in (argmax != labels).nonzero()[:, 0].split(lines):  # all others have rank 0
        ranks[part] = _rank(_wide(logits[at[part]]), own[part, None], labels[part, None])
    # NaN compares false with everything and would pass for the best token: a ruined model must not
    # score full marks
    ranks[~torch.isfinite(torch.cat(totals)[at])] = logits.shape[1]
    return (own - torch.cat(totals)[at]).tolist(), argmax.tolist(), ranks.tolist()


def _rank(
    values: Float[Tensor, "n V"], own: Float[Tensor, "n 1"], labels: Int[Tensor, "n 1"]
) -> Int[Tensor, " n"]:
    """Count the tokens that come before each label."""
    mask = torch.empty_like(values)  # sums of floats are several times as fast as sums of bools
    ahead = torch.gt(values, own, out=mask).sum(-1).long()
    tied = (torch.eq(values, own, out=mask).sum(-1) > 1).nonzero()[:, 0]
    if len(tied):
        ids = torch.arange(values.shape[1], device=values.device)
        lower = (values[tied] == own[tied]) & (ids[None, :] < labels[tied])
        ahead[tied] += lower.sum(-1)
    return ahead


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
