"""Fig. 5a: test domains × what was trained, one heat map per metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from errata.reporting.collect import Cell
from errata.reporting.figures.base import METRICS, Drawing, heat, mean, needed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIDE_BY_SIDE = 8
"""Domains at most of maps side by side; more of them (UniEdit's 25) stand below each other."""

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
    labels, domains = len({row[1] for row in rows}), len({row[2] for row in rows})
    maps = len({row[0] for row in rows})
    size = (10.0, 2.0 + 0.35 * labels)
    if domains > SIDE_BY_SIDE:
        size = (3.0 + 0.36 * domains, maps * (0.6 + 0.26 * labels) + 1.2)
    return Drawing(
        "domains", ("metric", "trained", "domain", "rate"), rows,
        lambda figure: _paint(figure, rows), size,
    )  # fmt: skip


def _paint(figure: Figure, rows: Sequence[tuple[str, str, str, float]]) -> None:
    labels = list(dict.fromkeys(row[1] for row in rows))
    domains = sorted({row[2] for row in rows})
    known = {row[:3]: row[3] for row in rows}
    shown = [name for name in METRICS if any(row[0] == name for row in rows)]
    below = len(domains) > SIDE_BY_SIDE  # so that the numbers can be read
    for at, name in enumerate(shown):
        shape = (len(shown), 1) if below else (1, len(shown))
        axes = figure.add_subplot(*shape, at + 1)
        heat(axes, [[known.get((name, own, d)) for d in domains] for own in labels])
        axes.set_title(f"{name} (%)", fontsize=10)
        named = not below or at == len(shown) - 1
        axes.set_xticks(
            range(len(domains)), domains if named else [""] * len(domains), rotation=45, ha="right"
        )
        axes.set_yticks(range(len(labels)), labels if below or not at else [""] * len(labels))
