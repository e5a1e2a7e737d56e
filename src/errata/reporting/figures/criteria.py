"""Fig. 5b: generality by combination of criteria and number of hops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from errata.reporting.collect import Cell
from errata.reporting.figures.base import COLOURS, HATCHES, Drawing, mean, needed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FEWEST = 3
"""Questions of a combination; fewer say nothing and are left out of the picture."""

COMMAND = (
    "Criteria are those of uniedit and world: errata eval --editor ibke --data world --out DIR"
)


def drawing(cells: Sequence[Cell]) -> Drawing:
    """Return the bars: combinations in order of hops, every row of the table with its own.

    Raises:
        RunError: If a run's generality questions have no criteria.
    """
    found: dict[tuple[int, str, str], list[float]] = {}
    for cell in cells:
        asked = [
            question
            for record in cell.run.records
            for question in record["questions"]
            if question["kind"] == "generality"
        ]
        some = next((q for q in asked if q.get("criteria")), None)
        needed(cell, "criteria of its generality questions", some, COMMAND)
        for question in asked:
            count = int((question.get("hops") or {}).get("asked", 0))
            combination = "+".join(sorted(question.get("criteria") or ())) or "none"
            found.setdefault((count, combination, cell.label), []).append(float(question["score"]))
    rows = tuple((*key, mean(values), len(values)) for key, values in sorted(found.items()))
    groups = len({row[:2] for row in rows if row[4] >= FEWEST})
    return Drawing(
        "criteria", ("hops", "criteria", "editor", "generality", "questions"), rows,
        lambda figure: _paint(figure, rows), (max(5.0, 0.7 * groups + 2), 3.6),
    )  # fmt: skip


def _paint(figure: Figure, rows: Sequence[tuple[int, str, str, float, int]]) -> None:
    groups = sorted({row[:2] for row in rows if row[4] >= FEWEST})
    labels = list(dict.fromkeys(row[2] for row in rows))
    known = {row[:3]: row[3] for row in rows if row[4] >= FEWEST}
    axes = figure.add_subplot()
    width = 0.8 / len(labels)
    for number, label in enumerate(labels):
        axes.bar(
            [x - 0.4 + (number + 0.5) * width for x in range(len(groups))],
            [100 * known.get((*group, label), 0.0) for group in groups], width, label=label,
            color=COLOURS[number % len(COLOURS)], hatch=HATCHES[number % len(HATCHES)],
            edgecolor="white", linewidth=0.5,
        )  # fmt: skip
    ticks = [f"{name}\n{hops} hop{'s' * (hops != 1)}" for hops, name in groups]
    axes.set_xticks(range(len(groups)), ticks, fontsize=7)
    axes.set(ylabel="generality (%)", ylim=(0, 102))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=8, loc="outside upper center", ncols=min(4, len(labels)), frameon=False)
