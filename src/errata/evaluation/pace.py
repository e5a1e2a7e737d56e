"""How many units are edited and asked together: as many as fit a few seconds.

Records are written when a group of units is finished, so that a group that takes minutes is
minutes of work that a killed run loses. The first group is one unit; what it took says how many
the next ones hold. An edit of a small model takes milliseconds, and groups are as large as
`stack_size` allows from the second on; one of a large model takes half a minute, and goes alone.
That costs a forward pass per evaluation by itself: 0.05 s at GPT-2 small's shape, whatever the
number of records (`python -m benchmarks.evaluation`).

Numbers do not depend on the groups: every row runs under its own patch, and editors treat the
edits of one unit alike whatever stands beside it (`tests/evaluation/test_pace.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

SECONDS = 10.0
"""What a group of units may take."""


def paced(
    items: Sequence[T],
    most: int,
    clock: Callable[[], float] = time.monotonic,
    patience: float = 1.0,
) -> Iterator[Sequence[T]]:
    """Yield consecutive groups of items; the time between two of them is what a group took.

    Args:
        items: In order.
        most: Largest number in a group.
        clock: Seconds from any start.
        patience: Factor of what a group may take.
    """
    start, size = 0, 1
    while start < len(items):
        begun = clock()
        yield items[start : start + size]
        start += size
        taken = max(clock() - begun, 1e-9)
        size = max(1, min(most, int(size * patience * SECONDS / taken)))
