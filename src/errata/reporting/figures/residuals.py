"""BLUE's figure: how far a spread residual is from what each block misses, by distance.

```
R_L   what is missing at the last block L, where a host finds its values
R*_l  what is missing at block l itself, found there
error |R*_l - R_L| / |R*_l|: undivided; |R*_l - R_L/(L - l + 1)| / |R*_l|: as MEMIT spreads it
```
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from errata.errors import RunError
from errata.reporting.collect import Cell
from errata.reporting.figures.base import COLOURS, MARKERS, Drawing, mean
from errata.reporting.reopened import Reopened, reopened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from errata.editors.base_joint import JointEditor

MOST = 20
"""Edits of each run that values are found for unless told otherwise."""

COMMAND = "errata sweep recipes/blue-pocket.toml runs such hosts."


def drawing(cells: Sequence[Cell], limit: int = MOST) -> Drawing:
    """Return the curves of hosts that spread a residual over several blocks.

    Args:
        cells: Runs of such hosts; others are passed over.
        limit: Cases of each run at most.

    Raises:
        RunError: If no run is of such a host.
    """
    from errata.editors import editors
    from errata.editors.base_joint import JointEditor

    able = []
    for cell in cells:
        if cell.editor not in editors:  # a finished patch
            continue
        kind = editors.load(cell.editor)
        if issubclass(kind, JointEditor) and kind.rule != "direct":
            able.append(cell)
    if not able:
        raise RunError("no run is of a host that spreads its residual over blocks", COMMAND)
    rows = [row for run in reopened(able, limit) for row in _measured(run)]
    if not rows:
        raise RunError("the hosts of these runs edit one block each", COMMAND)
    head = ("editor", "block", "distance", "error", "error_spread", "cosine", "size", "edits")
    return Drawing(
        "residuals", head, tuple(rows), lambda figure: _paint(figure, rows), (8.4, 3.3)
    )  # fmt: skip


def _measured(run: Reopened) -> list[tuple[Any, ...]]:
    edits = [edit for case in run.cases for edit in case.edits]
    missing = cast("JointEditor", run.editor).residuals(run.lm, edits)
    last = max(missing)
    rows = []
    for layer, own in missing.items():
        if len(missing) == 1:
            break
        aimed, distance = missing[last], last - layer
        size = own.norm(dim=-1)
        able = size > 0
        undivided = ((own - aimed).norm(dim=-1) / size)[able].tolist()
        spread = ((own - aimed / (distance + 1)).norm(dim=-1) / size)[able].tolist()
        cosine = (own * aimed).sum(-1) / (size * aimed.norm(dim=-1))
        rows.append(
            (run.cell.label, layer, distance, mean(undivided), mean(spread),
             mean(cosine[able].tolist()), mean(size.tolist()), int(able.sum()))
        )  # fmt: skip
    return rows


def _paint(figure: Figure, rows: Sequence[tuple[Any, ...]]) -> None:
    labels = list(dict.fromkeys(row[0] for row in rows))
    titles = {
        3: "undivided: ‖R*ₗ − R_L‖ / ‖R*ₗ‖",
        4: "as MEMIT spreads it",
        5: "cosine of R*ₗ and R_L",
    }
    for at, (place, title) in enumerate(titles.items()):
        axes = figure.add_subplot(1, 3, at + 1)
        for number, label in enumerate(labels):
            own = sorted((row[2], row[place]) for row in rows if row[0] == label)
            axes.plot(
                *zip(*own, strict=True), color=COLOURS[number % len(COLOURS)], linewidth=1.3,
                marker=MARKERS[number % len(MARKERS)], markersize=4,
                label=label if not at else None,
            )  # fmt: skip
        axes.set_title(title, fontsize=9)
        axes.set_xlabel("blocks below the last", fontsize=8)
        axes.set_ylim(bottom=0)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=8, loc="outside lower center", ncols=4, frameon=False)
