"""Updates in several rounds: each computed on the model as edited so far, until the answer is said.

```
 round 1   gradients of the model itself ──▶ networks ──▶ W + s D1         p(answer) < enough
 round 2   gradients under W + s D1      ──▶ networks ──▶ W + s (D1 + D2)  p(answer) ≥ enough: stop
```

One full step of an update that was learned on some relations misses the answers of others; smaller
ones, each with new gradients, do not. An edit leaves when its answer is probable enough, and what
is kept of it is the round after which it was the most probable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from errata.case import Edit
from errata.editors.base import under
from errata.patch import Patch
from errata.patch.changes import Change, LowRank

if TYPE_CHECKING:
    from errata.model.lm import LM

Round = Callable[[Sequence[Sequence[Edit]], Sequence[Patch]], list[Patch]]
"""Makes one update of every group, each on top of a patch of its own."""


def in_rounds(
    lm: LM,
    groups: Sequence[Sequence[Edit]],
    before: Sequence[Patch],
    update: Round,
    most: int,
    enough: float,
) -> list[Patch]:
    """Return what each group adds after as many rounds as it needs.

    Args:
        lm: The model.
        groups: Edits that belong together.
        before: What is there already, for each group.
        update: Makes one round of some groups.
        most: Rounds at most.
        enough: Probability of its least probable answer from which on a group is left as it is.
    """
    now = update(groups, before)
    best, likely = list(now), [-1.0] * len(groups)
    left = list(range(len(groups)))
    for number in range(1, most + 1):
        there = [before[n] + now[n] for n in left]
        chances = _chances(lm, [groups[n] for n in left], there)
        for n, chance in zip(left, chances, strict=True):
            if chance > likely[n]:
                best[n], likely[n] = now[n], chance
        open_ones = [i for i, n in enumerate(left) if likely[n] < enough]
        if not open_ones or number == most:
            break
        left, there = [left[i] for i in open_ones], [there[i] for i in open_ones]
        for n, more in zip(left, update([groups[n] for n in left], there), strict=True):
            now[n] = added_up(now[n], more)
    return best


def _chances(
    lm: LM, groups: Sequence[Sequence[Edit]], patches: Sequence[Patch]
) -> list[float]:  # fmt: skip
    """Return the probability of each group's least probable answer under its patch."""
    found = [1.0] * len(groups)
    for numbers, names in under(lm, patches):
        owner = [n for n in numbers for _ in groups[n]]
        rows = [
            replace(lm.row_of(edit), patch=at)
            for n, at in zip(numbers, names, strict=True)
            for edit in groups[n]
        ]
        for n, score in zip(owner, lm.score(rows), strict=True):
            found[n] = min(found[n], math.exp(sum(score.logprobs)))
    return found


def added_up(patch: Patch, more: Patch) -> Patch:
    """Return the changes of both, one low-rank change per matrix."""
    own: dict[str, Change] = {change.path: change for change in patch.changes}
    for change in more.changes:
        old = own.get(change.path)
        if isinstance(old, LowRank) and isinstance(change, LowRank):
            B, A = torch.cat([old.B, change.B], 1), torch.cat([old.A, change.A], 0)
            change = LowRank(change.path, B, A)
        elif old is not None:
            raise TypeError(f"{change.path}: two changes that are not both low-rank")
        own[change.path] = change
    return replace(patch, changes=tuple(own.values()))
