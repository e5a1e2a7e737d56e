"""Questions of many groups in one line of tokens, each under its group's update.

```
 line [1, N, d_in] ─ matrix ─▶ [1, N, d_out] ─────────────────────────── + ──▶
        └─ by group [G, W, d_in] ─ A_gᵀ ─ B_gᵀ ─▶ [G, W, d_out] ─ picked ─┘
```

A group's questions lie side by side, so its factors are read once, not once for each question.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from errata.model.hooks import after, hooked
from errata.model.packing import Lanes, Line, widest
from errata.model.passes import first, reuse_below, with_first
from errata.model.tokens import Row

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.training.prepared import Prepared


def may_share_a_line(lm: LM, rows: Sequence[Row]) -> bool:
    """Whether no row is longer than what a sliding window of the model holds."""
    limit = widest(lm)
    return limit is None or max(len(row.ids) for row in rows) <= limit


def line_logits(
    lm: LM,
    prepared: Prepared,
    rows: Sequence[Row],
    owner: Sequence[int],
    factors: Mapping[str, tuple[Tensor, Tensor]],
) -> Float[Tensor, "M V"]:
    """Return the logits at the supervised positions of rows that run in one line.

    Args:
        lm: The model.
        prepared: Knows what comes out below the lowest edited block.
        rows: The questions.
        owner: For each, the group under whose update it runs.
        factors: Per module `A` of shape `[G, r, d_in]` and `B` of shape `[G, d_out, r]`.
    """
    line = Line([*rows], lm.device)
    here = sorted(set(owner))
    lanes = line.grouped([here.index(group) for group in owner])
    groups = len(next(iter(factors.values()))[0])
    chosen: Any = slice(None) if len(here) == groups else torch.tensor(here, device=lm.device)
    with ExitStack() as context:
        context.enter_context(line.attending())
        if prepared.lowest:
            below = prepared.line_below(rows, line)
            context.enter_context(reuse_below(lm, prepared.lowest - 1, below))
        hooks = [
            after(lm.module(path), _adds(lanes, A[chosen], B[chosen]))
            for path, (A, B) in factors.items()
        ]
        context.enter_context(hooked(lm, *hooks))
        return lm.logits(line.batch, line.at)


def _adds(lanes: Lanes, A: Float[Tensor, "L r d_in"], B: Float[Tensor, "L d_out r"]) -> Any:
    """Return a hook that adds every group's low-rank change at its tokens, in the wider type."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        x, y = args[0], first(output)
        wide = torch.promote_types(x.dtype, A.dtype)
        x = lanes.spread(x.reshape(-1, x.shape[-1])).to(wide)
        extra = (x @ A.to(wide).transpose(1, 2)) @ B.to(wide).transpose(1, 2)
        moved = y.to(wide) + lanes.pick(extra).view(y.shape)
        return with_first(output, moved.to(y.dtype))

    return hook
