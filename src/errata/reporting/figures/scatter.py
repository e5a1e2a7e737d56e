"""Fig. 2: all editors on all backbones, generality against locality, lines of equal F1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from errata.errors import RunError
from errata.reporting.collect import Cell
from errata.reporting.figures.base import COLOURS, MARKERS, Drawing, mean
from errata.reporting.tables import LEFT_OUT

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)


def drawing(cells: Sequence[Cell]) -> Drawing:
    """Return the scatter: a colour per editor, a marker per backbone, means over data sets.

    As in the paper, zsRE does not count where there is another data set.

    Raises:
        RunError: If no run has both generality and locality.
    """
    counted = [cell for cell in cells if cell.data_name not in LEFT_OUT] or cells
    found: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = {}
    for cell in counted:
        own = found.setdefault((cell.label, cell.model), {"generality": {}, "locality": {}})
        for name, by_data in own.items():
            if cell.summary[name] is not None:
                by_data.setdefault(cell.data, []).append(cell.summary[name])
    points = {key: own for key, own in found.items() if all(own.values())}
    if not points:
        raise RunError(
            "no run has generality and locality",
            "errata eval --editor ibke --data world --out runs/NAME measures both.",
        )
    rows = []
    for (label, model), own in points.items():
        g, loc = (mean([mean(seeds) for seeds in by_data.values()]) for by_data in own.values())
        f1 = 2 * g * loc / (g + loc) if g + loc else 0.0
        rows.append((label, model, g, loc, f1, " ".join(own["generality"])))
    head = ("editor", "model", "generality", "locality", "f1", "data")
    labels = {row[0] for row in rows}
    size = (6.4, max(4.2, 0.2 * len(labels) + 1.6))
    return Drawing("scatter", head, tuple(rows), lambda figure: _paint(figure, rows), size)


def _look(number: int, marker: str) -> dict[str, Any]:
    """Return how the points of an editor look: colours come twice, filled and hollow."""
    colour = COLOURS[number % len(COLOURS)]
    hollow = number // len(COLOURS) % 2 == 1
    return {
        "linestyle": "", "marker": marker, "markersize": 7, "color": colour,
        "markerfacecolor": "white" if hollow else colour,
        "markeredgecolor": colour if hollow else "white",
        "markeredgewidth": 1.6 if hollow else 0.6,
    }  # fmt: skip


def _paint(figure: Figure, rows: Sequence[tuple[Any, ...]]) -> None:
    import numpy as np

    axes = figure.add_subplot()
    for level in LEVELS:  # F1 = 2 G L / (G + L)  <=>  L = F1 G / (2 G - F1)
        g = np.linspace(level / 2 + 1e-3, 1.0, 400)
        line = level * g / (2 * g - level)
        axes.plot(100 * g[line <= 1], 100 * line[line <= 1], color="0.8", linewidth=0.8, zorder=1)
        axes.annotate(
            f"F1 {100 * level:.0f}", (100.0, 100 * level / (2 - level)), fontsize=7, color="0.45",
            xytext=(2, 0), textcoords="offset points", va="center", annotation_clip=False,
        )  # fmt: skip
    labels = list(dict.fromkeys(label for label, *_ in rows))
    models = list(dict.fromkeys(model for _, model, *_ in rows))
    several = len(models) > 1
    for label, model, g, loc, *_ in rows:
        number = labels.index(label)
        marker = MARKERS[(models.index(model) if several else number) % len(MARKERS)]
        axes.plot(100 * g, 100 * loc, zorder=2, **_look(number, marker))
    handles = []
    for at, label in enumerate(labels):
        marker = "o" if several else MARKERS[at % len(MARKERS)]
        handles += axes.plot([], [], label=label, **_look(at, marker))
    if several:
        for at, model in enumerate(models):
            marker = MARKERS[at % len(MARKERS)]
            handles += axes.plot(
                [], [], linestyle="", marker=marker, color="none", markeredgecolor="black",
                label=model,
            )  # fmt: skip
    axes.set(xlabel="generality (%)", ylabel="locality (%)", xlim=(0, 100), ylim=(0, 102))
    figure.legend(handles=handles, fontsize=8, loc="outside right upper", frameon=False)
