"""Which groups a step sees, and its noise: functions of seed and step, so nothing has to be saved.

A run that is resumed, or split over several processes, draws the same as one that is not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from errata.training.groups import Group


class Sampler:
    """Endless shuffled passes over groups, `batch` of them per step.

    Args:
        sizes: Number of groups of each pool; the first is the main data set.
        batch: Groups per step.
        seed: Of the order.
        augment_share: Share of draws from the pools after the first; None: all in one pool.
    """

    def __init__(
        self, sizes: Sequence[int], batch: int, seed: int, augment_share: float | None = None
    ) -> None:
        self.batch, self.seed = batch, seed
        first, rest = sizes[0], sum(sizes[1:])
        self.share = augment_share if augment_share is not None and rest and first else None
        self.pools = [first, rest] if self.share is not None else [first + rest]
        self._orders: dict[tuple[int, int], list[int]] = {}

    def indices(self, step: int) -> list[int]:
        """Return the numbers of the groups of a step, counted over all pools."""
        start = step * self.batch
        if self.share is None:
            return [self._draw(0, start + i) for i in range(self.batch)]
        # how many of all draws so far came from the second pool: spread evenly, without chance
        found = []
        for number in range(start, start + self.batch):
            before, after = int(number * self.share), int((number + 1) * self.share)
            if after > before:
                found.append(self.pools[0] + self._draw(1, before))
            else:
                found.append(self._draw(0, number - before))
        return found

    def _draw(self, pool: int, number: int) -> int:
        size = self.pools[pool]
        epoch, at = divmod(number, size)
        key = (pool, epoch)
        if key not in self._orders:
            generator = torch.Generator().manual_seed(_mix(self.seed, pool, epoch))
            self._orders = {k: v for k, v in self._orders.items() if k[0] != pool}
            self._orders[key] = torch.randperm(size, generator=generator).tolist()
        return self._orders[key][at]


def noise_for(
    seed: int, step: int, groups: Sequence[Group], mine: Sequence[int]
) -> Callable[[int, tuple[int, ...]], Tensor]:
    """Return the noise of a step: one draw per edit and matrix, whoever computes the edit.

    Args:
        seed: Of the run.
        step: Number of the step.
        groups: All groups of the step, over all processes.
        mine: Numbers of those that this process computes.
    """
    starts = [0]
    for group in groups:
        starts.append(starts[-1] + len(group.edits))
    edits = torch.tensor([e for g in mine for e in range(starts[g], starts[g + 1])])

    def draw(matrix: int, shape: tuple[int, ...]) -> Float[Tensor, "E l_m d_m"]:
        generator = torch.Generator().manual_seed(_mix(seed, step, 1 + matrix))
        return torch.randn((starts[-1], *shape[1:]), generator=generator)[edits]

    return draw


def _mix(*numbers: int) -> int:
    """Mix numbers into one seed; neighbouring numbers give unrelated seeds."""
    value = 0x9E3779B97F4A7C15
    for number in numbers:
        value = (value ^ (number + 0x9E3779B9)) * 0xBF58476D1CE4E5B9 % 2**64
        value ^= value >> 31
    return value % 2**63
