"""The loop that fine-tuning shares: passes over edits in mini-batches, many groups side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from errata.model.tokens import Row
from errata.progress import tracked
from errata.tuning.adam import RowAdam
from errata.tuning.rows import Trainable, TuningRows


@dataclass(frozen=True)
class Descent:
    """How a loss is descended on.

    Attributes:
        lr: Learning rate.
        steps: Passes over the edits.
        weight_decay: Of the optimiser.
        decoupled: AdamW's decay.
        batch_size: Edits per update; None: all of a group.
        stop_loss: No update, and the end, below this.
        shuffle: Another order of the edits in every pass.
        seed: Of the orders.
        limit: Largest change of any value.
    """

    lr: float
    steps: int
    weight_decay: float = 0.0
    decoupled: bool = False
    batch_size: int | None = None
    stop_loss: float = 1e-2
    shuffle: bool = False
    seed: int = 0
    limit: float | None = None


def descend(
    tuned: Trainable,
    rows: Sequence[Sequence[Row]],
    how: Descent,
    *,
    adam: RowAdam | None = None,
    decayed: Sequence[Float[Tensor, "G ..."]] | None = None,
) -> Bool[Tensor, " G"]:
    """Train the values of all groups, each on its own rows; return which groups made a step.

    A group's course does not depend on the others: its orders are drawn by a generator of its own.

    Args:
        tuned: What is trained, in place.
        rows: Rows of every group.
        how: The recipe.
        adam: The optimiser, where its state is to be kept; None: a new one.
        decayed: Of values that are differences, what weight decay pulls at besides them.
    """
    values, device = tuned.values, tuned.lm.device
    if adam is None:
        adam = RowAdam(values, how.lr, how.weight_decay, how.decoupled)
    before = adam.count.clone()
    generators = [torch.Generator().manual_seed(how.seed) for _ in rows]
    size = how.batch_size or max(map(len, rows))
    shuffled = how.shuffle and size < max(map(len, rows))
    batches = [] if shuffled else [TuningRows(tuned, batch) for batch in split(rows, size)]
    running = torch.ones(len(rows), dtype=torch.bool, device=device)
    for _ in tracked(range(how.steps), "tuning, step"):
        total = torch.zeros(len(rows), dtype=torch.float64, device=device)
        count = torch.zeros_like(total)
        for batch in _shuffled(tuned, rows, size, generators) if shuffled else batches:
            loss, grads = batch.losses(running, how.stop_loss)
            sizes = batch.sizes * running
            total += loss.double() * sizes
            count += sizes
            # "not <" lets a NaN loss through, so that the update is refused
            active = running & (batch.sizes > 0) & ~(loss < how.stop_loss)
            full = None
            if decayed is not None:
                full = [w + v for w, v in zip(decayed, values, strict=True)]
            adam.step(values, grads, active, full)
            if how.limit is not None:
                for value in values:
                    value.clamp_(-how.limit, how.limit)
        running = running & ~(total < how.stop_loss * count)
        if not bool(running.any()):
            break
    return adam.count > before


def split(rows: Sequence[Sequence[Row]], size: int) -> Iterator[list[list[Row]]]:
    """Yield the rows of every group for each update of a pass; a short group has none left."""
    for first in range(0, max(map(len, rows)), size):
        yield [list(group[first : first + size]) for group in rows]


def _shuffled(
    tuned: Trainable,
    rows: Sequence[Sequence[Row]],
    size: int,
    generators: Sequence[torch.Generator],
) -> Iterator[TuningRows]:
    mixed = [
        [group[i] for i in torch.randperm(len(group), generator=generator).tolist()]
        for group, generator in zip(rows, generators, strict=True)
    ]
    for batch in split(mixed, size):
        yield TuningRows(tuned, batch)
