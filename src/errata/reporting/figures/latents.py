"""Fig. 3: number of latents × weight of the bottleneck, one heat map per metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from errata.errors import RunError
from errata.reporting.collect import Cell
from errata.reporting.figures.base import METRICS, Drawing, heat, mean, settings_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def drawing(cells: Sequence[Cell]) -> Drawing:
    """Return the grid; each value is the mean over data sets and seeds.

    Raises:
        RunError: If no run says `l_m` and `beta`.
    """
    found: dict[tuple[int, float], dict[str, list[float]]] = {}
    for cell in cells:
        own = settings_of(cell)
        if own.get("l_m") is None or own.get("beta") is None:
            continue
        values = found.setdefault((int(own["l_m"]), float(own["beta"])), {m: [] for m in METRICS})
        for name in METRICS:
            if cell.summary[name] is not None:
                values[name].append(cell.summary[name])
    if not found:
        raise RunError(
            "no run has the settings l_m and beta: none is of IBKE",
            "errata sweep recipes/ibke-latents-pocket.toml trains and measures a grid of them.",
        )
    rows = tuple(
        (l_m, beta, name, mean(own[name]))
        for (l_m, beta), own in sorted(found.items())
        for name in METRICS
        if own[name]
    )
    return Drawing(
        "latents", ("l_m", "beta", "metric", "rate"), rows, lambda figure: _paint(figure, rows),
        (8.4, 3.0),
    )  # fmt: skip


def _paint(figure: Figure, rows: Sequence[tuple[int, float, str, float]]) -> None:
    numbers = sorted({l_m for l_m, *_ in rows})
    weights = sorted({beta for _, beta, *_ in rows})
    known = {(l_m, beta, name): rate for l_m, beta, name, rate in rows}
    shown = [name for name in METRICS if any(name == row[2] for row in rows)]
    for at, name in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), at + 1)
        heat(axes, [[known.get((n, w, name)) for w in weights] for n in numbers])
        axes.set_title(f"{name} (%)", fontsize=10)
        axes.set_xticks(range(len(weights)), [f"{w:g}" for w in weights])
        axes.set_yticks(range(len(numbers)), [str(n) for n in numbers])
        axes.set_xlabel("β")
        if not at:
            axes.set_ylabel("latents $l_m$")
