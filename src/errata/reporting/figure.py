"""Generality against locality, one point per editor, with lines of equal F1 (matplotlib)."""

from __future__ import annotations

import importlib.util
import io
from typing import TYPE_CHECKING

from errata.reporting.tables import Comparison

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINES = (0.5, 0.6, 0.7, 0.8, 0.9)
MARKERS = "osD^vP*Xp<>h"


def available() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def drawn(table: Comparison) -> dict[str, bytes]:
    """Return the figure as PNG and PDF by file ending; nothing without matplotlib or points."""
    rows = [row for row in table.rows if row.balance is not None]
    if not rows or not available():
        return {}
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points = np.linspace(0.01, 1.0, 400)
    for level in LINES:
        # F1 = 2 G L / (G + L)  <=>  L = F1 G / (2 G - F1)
        g = points[points > level / 2 + 1e-3]
        line = level * g / (2 * g - level)
        kept = line <= 1.0
        axes.plot(100 * g[kept], 100 * line[kept], color="0.8", linewidth=0.8, zorder=1)
        axes.annotate(
            f"F1 {100 * level:.0f}", (100.0, 100 * level / (2 - level)), fontsize=7, color="0.5",
            xytext=(2, 0), textcoords="offset points", va="center",
        )  # fmt: skip
    for number, row in enumerate(rows):
        own = row.balance
        assert own is not None
        bars = [_bars(score.interval, score.value) for score in (own.generality, own.locality)]
        axes.errorbar(
            100 * own.generality.value, 100 * own.locality.value, xerr=bars[0], yerr=bars[1],
            fmt=MARKERS[number % len(MARKERS)], color=f"C{number % 10}", markersize=6,
            elinewidth=0.8, label=row.label, zorder=2,
        )  # fmt: skip
    axes.set(xlabel="generality (%)", ylabel="locality (%)", xlim=(0, 100), ylim=(0, 102))
    axes.set_title(table.title, fontsize=10)
    figure.legend(fontsize=9, loc="outside right upper", frameon=False)
    # without a date, so that the same runs give the same file
    return {"png": _saved(figure, "png", {}), "pdf": _saved(figure, "pdf", {"CreationDate": None})}


def _saved(figure: Figure, ending: str, metadata: dict[str, None]) -> bytes:
    data = io.BytesIO()
    figure.savefig(data, format=ending, dpi=200, metadata=metadata)
    return data.getvalue()


def _bars(interval: tuple[float, float] | None, value: float) -> list[list[float]] | None:
    if interval is None:
        return None
    low, high = interval
    return [[max(0.0, 100 * (value - low))], [max(0.0, 100 * (high - value))]]
