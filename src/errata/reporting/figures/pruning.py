"""Fig. 7b: what an edit loses when its gates are set to zero, the smallest first.

```
edits that were taken ──▶ editor.pruned(…, shares): a patch per edit and share
   reliability, generality   mean probability and rank of the target's tokens
   locality                  1 − Jensen–Shannon divergence (base 2) to the unedited model,
                             mean over the answer's positions
```
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from errata.case import Case, Edit, Probe
from errata.errors import RunError
from errata.progress import watched
from errata.reporting.collect import Cell
from errata.reporting.figures.base import COLOURS, Drawing, mean
from errata.reporting.figures.relations import looked_into
from errata.reporting.reopened import Reopened

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from torch import Tensor

    from errata.editors.base_inside import InsideEditor
    from errata.model.lm import LM, RowScore
    from errata.model.tokens import Row
    from errata.patch import Patch

SHARES = tuple(step / 10 for step in range(11))

MOST = 350
"""Cases of each run unless told otherwise; of so many about 300 edits are taken and count."""

TOGETHER = 32
"""Edits whose patches of one share are asked side by side."""

LINES = ("-", "--", "-.", ":")


def drawing(cells: Sequence[Cell], limit: int = MOST) -> Drawing:
    """Return the curves, one per run, over the edits that were taken with all gates open.

    Questions that build on other facts are left out: those would have to be edited too.

    Args:
        cells: Runs of editors with gates; others are passed over.
        limit: Cases of each run at most.

    Raises:
        RunError: If no run has gates, or no edit of one was taken.
        ConfigError: If networks were trained without gates, or join tokens.
    """
    rows: list[tuple[Any, ...]] = []
    for run in looked_into(cells, limit):
        rows += _measured(run)
    head = ("editor", "data", "pruned", "kind", "number", "value", "questions", "edits")
    return Drawing(
        "pruning", head, tuple(rows), lambda figure: _paint(figure, rows), (9.6, 3.2)
    )  # fmt: skip


def _measured(run: Reopened) -> list[tuple[Any, ...]]:
    """Return the means over the edits that are taken unpruned."""
    found: dict[tuple[float, str, str], list[float]] = {}
    taken = 0
    with watched(f"pruning gates of {run.cell.label}") as step:
        for start in range(0, len(run.cases), TOGETHER):
            step(start, len(run.cases))
            cases = run.cases[start : start + TOGETHER]
            groups = [case.edits for case in cases]
            patches = cast("InsideEditor", run.editor).pruned(run.lm, groups, SHARES)
            whole = _scores(run.lm, [list(case.edits) for case in cases], [p[0] for p in patches])
            good = [i for i, own in enumerate(whole) if all(not any(s.ranks) for s in own)]
            taken += len(good)
            for at, share in enumerate(SHARES):
                _ask(run.lm, [cases[i] for i in good], [patches[i][at] for i in good], share, found)
    if not taken:
        raise RunError(
            f"{run.cell.run.path} has no edit that is taken: there is nothing to prune",
            "Train the networks longer.",
        )
    return [
        (run.cell.label, run.cell.data, share, kind, number, mean(values), len(values), taken)
        for (share, kind, number), values in sorted(found.items())
    ]


def _ask(
    lm: LM,
    cases: Sequence[Case],
    patches: Sequence[Patch],
    share: float,
    found: dict[tuple[float, str, str], list[float]],
) -> None:
    """Add what is measured on some cases, each under its patch."""
    plain = [[p for p in case.of("generality") if not p.hops] for case in cases]
    for kind, asked in (("reliability", [list(case.edits) for case in cases]),
                        ("generality", plain)):  # fmt: skip
        for own in _scores(lm, asked, patches):
            for score in own:
                confidence = mean([math.exp(value) for value in score.logprobs])
                found.setdefault((share, kind, "confidence"), []).append(confidence)
                rank = mean([1.0 + value for value in score.ranks])
                found.setdefault((share, kind, "rank"), []).append(rank)
    alike = _likeness(lm, [case.of("locality") for case in cases], patches)
    if alike:
        found.setdefault((share, "locality", "similarity"), []).extend(alike)


def _scores(
    lm: LM, asked: Sequence[Sequence[Edit | Probe]], patches: Sequence[Patch]
) -> list[list[RowScore]]:
    """Score the questions of each case under its patch."""
    from errata.evaluation.scoring import Scorer

    pairs = [(q, patch) for own, patch in zip(asked, patches, strict=True) for q in own]
    scores = iter(Scorer(lm).score([lm.row_of(q) for q, _ in pairs], [p for _, p in pairs]))
    return [[next(scores) for _ in own] for own in asked]


# ---------------------------------------------------------------------- whole distributions


def _likeness(lm: LM, asked: Sequence[Sequence[Probe]], patches: Sequence[Patch]) -> list[float]:
    """Return for each locality question how alike edited and unedited distributions are."""
    from errata.editors.base import under
    from errata.model.tokens import patched

    rows = [[lm.row_of(probe) for probe in own] for own in asked]
    before = _distributions(lm, [row for own in rows for row in own])
    starts = [sum(len(own) for own in rows[:n]) for n in range(len(rows))]
    found: list[float] = [0.0] * len(before)
    for numbers, places in under(lm, patches):
        lines = [(starts[n] + i, row, place)
                 for n, place in zip(numbers, places, strict=True)
                 for i, row in enumerate(rows[n])]  # fmt: skip
        after = _distributions(
            lm, patched([row for _, row, _ in lines], [place for *_, place in lines])
        )
        for (line, *_), own in zip(lines, after, strict=True):
            found[line] = 1 - float(jensen_shannon(own, before[line]).mean())
    return found


def _distributions(lm: LM, rows: Sequence[Row]) -> list[Tensor]:
    """Return natural log-probabilities over the vocabulary at each row's positions, `[n, V]`."""
    import torch

    from errata.model.tokens import positions_of

    found: list[Any] = [None] * len(rows)
    if not rows:
        return []
    with torch.no_grad():
        for batch in lm.batches(rows):
            logits = lm.logits(batch, positions_of(rows, batch.index, lm.device))
            sizes = [len(rows[i].positions) for i in batch.index]
            for i, own in zip(batch.index, logits.float().split(sizes), strict=True):
                found[i] = own.log_softmax(-1)
    return found


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Return the Jensen–Shannon divergence of distributions, in bits: from 0 (equal) to 1.

    Args:
        p: Natural log-probabilities, `[n, V]`.
        q: Likewise.
    """
    import torch

    middle = torch.logaddexp(p, q) - math.log(2)

    def apart(one: Tensor) -> Tensor:
        terms = one.exp() * (one - middle)
        return torch.where(one == -math.inf, 0.0, terms).sum(-1)

    return ((apart(p) + apart(q)) / 2 / math.log(2)).clamp(0, 1)


# ---------------------------------------------------------------------- picture


def _paint(figure: Figure, rows: Sequence[tuple[Any, ...]]) -> None:
    panels = (
        ("confidence", ("reliability", "generality"), "mean probability of the target (%)"),
        ("rank", ("reliability", "generality"), "mean rank of the target (1: first)"),
        ("similarity", ("locality",), "likeness on other questions (%)"),
    )
    labels = list(dict.fromkeys(row[:2] for row in rows))
    several = len({data for _, data in labels}) > 1
    for at, (number, kinds, title) in enumerate(panels):
        axes = figure.add_subplot(1, 3, at + 1)
        for colour, (label, data) in zip(COLOURS * len(labels), labels, strict=False):
            for kind, line in zip(kinds, LINES, strict=False):
                own = [r for r in rows if r[:2] == (label, data) and r[3:5] == (kind, number)]
                scale = 1 if number == "rank" else 100
                name = f"{label} on {data}" if several else label
                axes.plot(
                    [100 * row[2] for row in own], [scale * row[5] for row in own],
                    color=colour, linestyle=line, linewidth=1.4, marker="o", markersize=3,
                    label=f"{name}, {kind}" if not at else None,
                )  # fmt: skip
        if number == "rank":
            axes.set_yscale("log")
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("smallest gates set to zero (%)", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=8, loc="outside lower center", ncols=2, frameon=False)
