"""What becomes of a model along sequences of edits: general ability, perplexity, drift, recall.

BLUE's figures of general ability every M batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from errata.errors import RunError
from errata.reporting.collect import Cell
from errata.reporting.figures.base import COLOURS, MARKERS, Drawing, mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES = ("-", "--", ":")
"""Editors of one colour are told apart by these too."""

TITLES = {"perplexity": "perplexity", "recall": "recall of the edits so far (%)",
          "drift": "mean ‖ΔW‖ / ‖W‖ (%)"}  # fmt: skip

WIDE = 3.0
"""Ratio of perplexities from which on they are drawn by their logarithm."""

COMMAND = (
    "Points are measured along sequences: errata eval --regime sequential:100 --batch 10 --every 2"
    " --general world --editor memit --data world --out DIR"
)


def drawing(cells: Sequence[Cell]) -> Drawing:
    """Return the curves; each value is the mean over sequences, data sets and seeds.

    Raises:
        RunError: If a run has no points along a sequence.
    """
    found: dict[tuple[str, str, int], list[float]] = {}
    for cell in cells:
        points = [p for record in cell.run.records for p in record.get("trajectory") or ()]
        if not points:
            raise RunError(f"{cell.run.path} lacks trajectory in its records", COMMAND)
        for point in points:
            for number, value in _numbers(point):
                found.setdefault((cell.label, number, int(point["edits"])), []).append(value)
    rows = tuple((*key, mean(values), len(values)) for key, values in sorted(found.items()))
    order = list(dict.fromkeys(cell.label for cell in cells))
    count = len({row[1] for row in rows})
    across = min(3, count)
    down = -(-count // across)
    return Drawing(
        "trajectory", ("editor", "number", "edits", "value", "sequences"), rows,
        lambda figure: _paint(figure, rows, order),
        (3.1 * across + 0.4, 2.5 * down + 0.5 + 0.17 * -(-len(order) // 3)),
    )  # fmt: skip


def _numbers(point: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers of one point by name; the drift is the mean over changed matrices."""
    if point.get("perplexity") is not None:
        yield "perplexity", float(point["perplexity"])
    if point.get("recall"):
        yield "recall", float(point["recall"]["score"])
    if point.get("drift"):
        yield "drift", mean([float(own["relative"]) for own in point["drift"].values()])
    for name, value in (point.get("general") or {}).items():
        if "stderr" not in name:
            yield name.replace("/", " "), float(value)


def _paint(figure: Figure, rows: Sequence[tuple[Any, ...]], order: Sequence[str]) -> None:
    numbers = sorted({row[1] for row in rows}, key=lambda n: (n in TITLES, n))
    across = min(3, len(numbers))
    down = -(-len(numbers) // across)
    for at, number in enumerate(numbers):
        axes = figure.add_subplot(down, across, at + 1)
        for place, label in enumerate(order):
            own = [row for row in rows if row[:2] == (label, number)]
            scale = 1 if number == "perplexity" else 100
            axes.plot(
                [row[2] for row in own], [scale * row[3] for row in own], linewidth=1.3,
                color=COLOURS[place % len(COLOURS)], linestyle=LINES[place // len(COLOURS) % 3],
                marker=MARKERS[place % len(MARKERS)], markersize=3.5,
                label=label if not at else None,
            )  # fmt: skip
        values = [row[3] for row in rows if row[1] == number]
        if number == "perplexity" and max(values) > WIDE * min(values):
            axes.set_yscale("log")
        axes.set_title(TITLES.get(number, f"{number} (%)"), fontsize=9)
        axes.set_xlabel("edits", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=8, loc="outside lower center", ncols=3, frameon=False)
