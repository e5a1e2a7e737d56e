"""Training a block to answer what it is told to: squared error of its output, per group.

```
 rows of a group    wanted  [w w w w]  [w w w]      at some positions another output: `moved`
                    kept    [k k k k k]  [k k]      as it was
 block  l           output [B, T, d]  ──▶  mean over wanted tokens + mean over kept tokens
        …           values D_g of group g at work (Trainable.installed)
        0 … l-1     not run: their output stands in (reuse_below)
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from errata.model.passes import capture, module_at, reuse_below, wide
from errata.model.tokens import Batch, Row, bucket
from errata.progress import tracked
from errata.tuning.adam import RowAdam
from errata.tuning.rows import Trainable


@dataclass(frozen=True)
class Wanted:
    """A row and what the block shall answer to it.

    Attributes:
        row: The row; all its tokens count.
        moved: Position → another output than the present one.
        share: Which of its group's two means it is part of: `edit` or `keep`.
    """

    row: Row
    moved: Mapping[int, Float[Tensor, " d"]]
    share: str


@dataclass(frozen=True)
class _Part:
    """Rows of one forward pass; those of one group stand together."""

    batch: Batch
    owner: tuple[int, ...]
    hidden: Tensor | None
    target: Float[Tensor, "B T d"]
    weight: Float[Tensor, "B T"]


class OutputRows:
    """The rows of all groups, and what the lowest block that is trained shall answer to them.

    Args:
        tuned: The values; only those of block `tuned.lowest` are reached.
        groups: Rows of every group, each under the group's earlier patch.
    """

    def __init__(self, tuned: Trainable, groups: Sequence[Sequence[Wanted]]) -> None:
        self.tuned, self.layer = tuned, tuned.lowest
        lm = tuned.lm
        rows = [(g, wanted) for g, group in enumerate(groups) for wanted in group]
        tokens: dict[tuple[int, str], int] = {}
        for g, wanted in rows:
            key = (g, wanted.share)
            tokens[key] = tokens.get(key, 0) + len(wanted.row.ids)
        self._parts = [
            self._part([rows[i] for i in index], tokens)
            for index in bucket([w.row for _, w in rows], lm.max_tokens, range(len(rows)))
        ]

    @torch.no_grad()
    def _part(
        self, rows: Sequence[tuple[int, Wanted]], tokens: Mapping[tuple[int, str], int]
    ) -> _Part:
        """Read what the block is given and answers now, and set what it shall answer."""
        lm = self.tuned.lm
        batch = lm.batch([wanted.row for _, wanted in rows], range(len(rows)))
        blocks = [module_at(lm, n, "block") for n in (self.layer - 1, self.layer) if n >= 0]
        _, read = capture(lm, batch, outputs=blocks)
        hidden = read[0] if self.layer else None
        target = wide(read[-1]).clone()
        weight = target.new_zeros(batch.input_ids.shape)
        for r, (g, wanted) in enumerate(rows):
            for position, output in wanted.moved.items():
                target[r, position] = output.to(target)
            length = len(wanted.row.ids)
            weight[r, :length] = 1 / (tokens[g, wanted.share] * target.shape[-1])
        return _Part(batch, tuple(g for g, _ in rows), hidden, target, weight)

    def losses(self, leaves: Sequence[Tensor]) -> Float[Tensor, " G"]:
        """Return each group's loss: mean squared error over its edits' tokens, and over the kept.

        Padding is no token; no group's loss depends on the others.
        """
        lm, count = self.tuned.lm, leaves[0].shape[0]
        total = leaves[0].new_zeros(count)
        for part in self._parts:
            with ExitStack() as context:
                if part.hidden is not None:
                    context.enter_context(reuse_below(lm, self.layer - 1, part.hidden))
                prompts = part.batch.attention_mask.sum(1)
                context.enter_context(self.tuned.installed(part.owner, leaves, part.batch, prompts))
                _, (output,) = capture(lm, part.batch, outputs=[module_at(lm, self.layer, "block")])
            error = (wide(output) - part.target).square().sum(-1) * part.weight
            owner = torch.tensor(part.owner, device=error.device)
            total = total.index_add(0, owner, error.sum(1).to(total.dtype))
        return total


def fit_outputs(
    rows: OutputRows,
    steps: int,
    lr: float,
    weight_decay: float,
    decayed: Sequence[Float[Tensor, "G ..."]],
) -> list[Float[Tensor, " G"]]:
    """Train the values by AdamW for a number of steps; return the loss before each.

    Args:
        rows: What the block shall answer.
        steps: Updates.
        lr: Learning rate.
        weight_decay: Of the complete weights.
        decayed: What the values are added to: what weight decay pulls at besides them.
    """
    values = rows.tuned.values
    adam = RowAdam(values, lr, weight_decay, decoupled=True)
    everyone = torch.ones(values[0].shape[0], dtype=torch.bool, device=values[0].device)
    losses = []
    for _ in tracked(range(steps), "training the block, step"):
        leaves = [value.detach().requires_grad_() for value in values]
        with torch.enable_grad():  # callers may have switched gradients off
            loss = rows.losses(leaves)
            grads = torch.autograd.grad(
                loss.sum(), leaves, allow_unused=True, materialize_grads=True
            )
        losses.append(loss.detach())
        full = [w + v for w, v in zip(decayed, values, strict=True)]
        adam.step(values, grads, everyone, full)
    return losses
