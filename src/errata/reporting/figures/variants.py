"""Fig. 4: variants of an editor as bars, one panel per metric, one group per data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from errata.errors import RunError
from errata.reporting.collect import Cell
from errata.reporting.figures.base import COLOURS, HATCHES, METRICS, Drawing, mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def drawing(cells: Sequence[Cell]) -> Drawing:
    """Return the bars: every row of the runs' table is a variant.

    Raises:
        RunError: If there is one variant only, or two backbones.
    """
    found: dict[tuple[str, str, str], list[float]] = {}
    for cell in cells:
        for name in METRICS:
            if cell.summary[name] is not None:
                found.setdefault((name, cell.data, cell.label), []).append(cell.summary[name])
    if len({label for *_, label in found}) < 2:
        raise RunError(
            "there is one variant only, and nothing to hold it against",
            "errata sweep recipes/ibke-ablation-pocket.toml trains and measures four.",
        )
    if len({cell.model for cell in cells}) > 1:
        raise RunError("the runs are of several models", "Name the runs of one.")
    rows = tuple((*key, mean(values)) for key, values in found.items())
    return Drawing(
        "variants", ("metric", "data", "variant", "rate"), rows,
        lambda figure: _paint(figure, rows), (9.0, 3.2),
    )  # fmt: skip


def _paint(figure: Figure, rows: Sequence[tuple[str, str, str, float]]) -> None:
    variants = list(dict.fromkeys(row[2] for row in rows))
    known = {row[:3]: row[3] for row in rows}
    shown = [name for name in METRICS if any(row[0] == name for row in rows)]
    width = 0.8 / len(variants)
    first = None
    for at, name in enumerate(shown):
        axes = first = figure.add_subplot(1, len(shown), at + 1, sharey=first)
        sets = list(dict.fromkeys(row[1] for row in rows if row[0] == name))
        for number, variant in enumerate(variants):
            places = [x - 0.4 + (number + 0.5) * width for x in range(len(sets))]
            axes.bar(
                places, [100 * known.get((name, data, variant), 0.0) for data in sets], width,
                color=COLOURS[number % len(COLOURS)], edgecolor="white", linewidth=0.5,
                hatch=HATCHES[number % len(HATCHES)], label=variant if not at else None,
            )  # fmt: skip
        axes.set_title(f"{name} (%)", fontsize=10)
        axes.set_xticks(range(len(sets)), sets, fontsize=8)
        axes.set_ylim(0, 102)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        fontsize=8, loc="outside lower center", ncols=min(4, len(variants)), frameon=False
    )
