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
    from errata.model.logprobs import RowScore
    from errata.model.tokens import Row

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
    scored = scores_under(lm, [[lm.row_of(edit) for edit in own] for own in groups], patches)
    return [min(math.exp(sum(score.logprobs)) for score in own) for own in scored]


def scores_under(
    lm: LM, rows: Sequence[Sequence[Row]], patches: Sequence[Patch]
) -> list[list[RowScore]]:
    """Score some rows under each of several patches, as many side by side as a stack holds.

    Args:
        lm: The model.
        rows: For each patch, its rows.
        patches: The patches.
    """
    found: list[list[RowScore]] = [[] for _ in patches]
    for numbers, names in under(lm, patches):
        owner = [n for n in numbers for _ in rows[n]]
        asked = [
            replace(row, patch=at) for n, at in zip(numbers, names, strict=True) for row in rows[n]
        ]
        for n, score in zip(owner, lm.score(asked), strict=True):
            found[n].append(score)
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
