"""Fig. 2: all editors on all backbones, generality against locality, lines of equal F1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from errata.errors import RunError
from errata.reporting.collect import Cell
from errata.reporting.figures.base import COLOURS, MARKERS, Drawing, mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9)


def drawing(cells: Sequence[Cell]) -> Drawing:
    """Return the scatter: a colour per editor, a marker per backbone, means over data sets.

    Raises:
        RunError: If no run has both generality and locality.
    """
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    for cell in cells:
        own = found.setdefault((cell.label, cell.model), {"generality": [], "locality": []})
        for name, values in own.items():
            if cell.summary[name] is not None:
                values.append(cell.summary[name])
    points = {key: own for key, own in found.items() if all(own.values())}
    if not points:
        raise RunError(
            "no run has generality and locality",
            "errata eval --editor ibke --data world --out runs/NAME measures both.",
        )
    rows = []
    for (label, model), own in points.items():
        g, loc = mean(own["generality"]), mean(own["locality"])
        rows.append((label, model, g, loc, 2 * g * loc / (g + loc) if g + loc else 0.0))
    head = ("editor", "model", "generality", "locality", "f1")
    return Drawing("scatter", head, tuple(rows), lambda figure: _paint(figure, rows))


def _paint(figure: Figure, rows: Sequence[tuple[str, str, float, float, float]]) -> None:
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
    for label, model, g, loc, _ in rows:
        axes.plot(
            100 * g, 100 * loc, linestyle="", markersize=7, zorder=2, markeredgecolor="white",
            color=COLOURS[labels.index(label) % len(COLOURS)],
            marker=MARKERS[(models.index(model) if len(models) > 1 else labels.index(label))
                           % len(MARKERS)],
        )  # fmt: skip
    handles = []
    for at, label in enumerate(labels):
        marker = "o" if len(models) > 1 else MARKERS[at % len(MARKERS)]
        handles += axes.plot(
            [], [], linestyle="", marker=marker, color=COLOURS[at % len(COLOURS)], label=label
        )
    if len(models) > 1:
        for at, model in enumerate(models):
            marker = MARKERS[at % len(MARKERS)]
            handles += axes.plot(
                [], [], linestyle="", marker=marker, color="none", markeredgecolor="black",
                label=model,
            )  # fmt: skip
    axes.set(xlabel="generality (%)", ylabel="locality (%)", xlim=(0, 100), ylim=(0, 102))
    figure.legend(handles=handles, fontsize=8, loc="outside right upper", frameon=False)
