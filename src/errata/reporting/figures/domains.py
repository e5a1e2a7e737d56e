"""Fig. 5a: test domains × what was trained, one heat map per metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from errata.reporting.collect import Cell
from errata.reporting.figures.base import METRICS, Drawing, heat, mean, needed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMMAND = "Domains are those of uniedit and world: errata sweep recipes/ibke-domains.toml"


def drawing(cells: Sequence[Cell]) -> Drawing:
    """Return the maps; every row of the runs' table is a line of them.

    Raises:
        RunError: If a run's cases have no domains.
    """
    found: dict[tuple[str, str, str], list[float]] = {}
    for cell in cells:
        by = needed(cell, "by.domain", cell.summary["by"].get("domain") or None, COMMAND)
        for domain, own in by.items():
            for name in METRICS:
                if own.get(name) is not None:
                    found.setdefault((name, cell.label, domain), []).append(own[name])
    rows = tuple((*key, mean(values)) for key, values in found.items())
    labels = len({row[1] for row in rows})
    return Drawing(
        "domains", ("metric", "trained", "domain", "rate"), rows,
        lambda figure: _paint(figure, rows), (10.0, 2.0 + 0.35 * labels),
    )  # fmt: skip


def _paint(figure: Figure, rows: Sequence[tuple[str, str, str, float]]) -> None:
    labels = list(dict.fromkeys(row[1] for row in rows))
    domains = sorted({row[2] for row in rows})
    known = {row[:3]: row[3] for row in rows}
    shown = [name for name in METRICS if any(row[0] == name for row in rows)]
    for at, name in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), at + 1)
        heat(axes, [[known.get((name, own, d)) for d in domains] for own in labels])
        axes.set_title(f"{name} (%)", fontsize=10)
        axes.set_xticks(range(len(domains)), domains, rotation=45, ha="right")
        axes.set_yticks(range(len(labels)), labels if not at else [""] * len(labels))
