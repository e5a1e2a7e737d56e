"""REP's figures: whitened similarity of perturbed, unrelated and random keys to an edit's own key.

```
left    similarity by group: what a rank-one update answers on its own, 1 at the edit's key
right   share of keys on which the adapter's gate is open, by threshold: perturbed ones should be
        moved, unrelated ones not; the threshold with the widest gap is named
```
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from errata.errors import RunError
from errata.progress import watched
from errata.reporting.collect import Cell
from errata.reporting.figures.base import COLOURS, Drawing, Numbers, mean
from errata.reporting.reopened import reopened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from errata.strategies.rep.strategy import Rep

MOST = 30
"""Edits of each run that are read unless told otherwise."""

TOGETHER = 10
"""Edits whose adapters are trained side by side, between two reports of progress."""

TEXTS = 64
"""Ordinary texts that unrelated tokens are drawn from."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Drawn as a line from the first to the last, a bar between the second and the fourth."""

THRESHOLDS = tuple(step / 100 for step in range(5, 100, 5))

APART = ("unrelated", "random")
"""Groups whose keys no adapter should move."""

COMMAND = "errata sweep recipes/rep-pocket.toml runs hosts with REP under the robustness suite."


def drawing(cells: Sequence[Cell], limit: int = MOST) -> Drawing:
    """Return the boxes and curves of the hosts with REP, one line of panels each.

    Args:
        cells: Runs of hosts with REP under the robustness suite; others are passed over.
        limit: Cases of each run at most.

    Raises:
        RunError: If no run is of a host with REP under the suite.
    """
    able = [
        cell
        for cell in cells
        if cell.editor.endswith("+rep") and cell.run.config["protocol"].get("suite")
    ]
    if not able:
        raise RunError("no run is of a host with REP under the robustness suite", COMMAND)
    values: dict[tuple[str, int], dict[str, dict[str, list[float]]]] = {}
    for run in reopened(able, limit):
        for layer, groups in _read(run).items():
            values[run.cell.label, layer] = groups
    rows, curves = [], []
    for (label, layer), groups in values.items():
        for group, own in groups.items():
            for name in ("answer", "cosine", "gate"):
                rows.append((label, layer, group, name, len(own[name]), *_spread(own[name])))
        curves += [(label, layer, *line) for line in _open(groups)]
    head = ("editor", "block", "group", "number", "keys",
            *(f"q{round(100 * share):02}" for share in QUANTILES))  # fmt: skip
    shown = ("editor", "block", "threshold", "perturbed", "unrelated", "gap")
    return Drawing(
        "keys", head, tuple(rows), lambda figure: _paint(figure, values, curves),
        (9.6, 2.9 * len(values) + 0.2), (Numbers("threshold", shown, tuple(curves)),),
    )  # fmt: skip


def _read(run: Any) -> dict[int, dict[str, dict[str, list[float]]]]:
    """Return numbers of all keys by block and group."""
    from errata.locate.own_text import text_for
    from errata.strategies.rep.likeness import likeness

    editor = cast("Rep", run.editor)
    settings = editor.config
    source = settings.rep_text or settings.moments_text
    texts = text_for(run.lm, source, settings.rep_documents).texts[:TEXTS]
    cases = [case for case in run.cases if len(case.edits) == 1]
    found: dict[int, dict[str, dict[str, list[float]]]] = {}
    with watched(f"keys of {run.cell.label}") as step:
        for start in range(0, len(cases), TOGETHER):
            step(start, len(cases))
            for blocks in likeness(run.lm, editor, cases[start : start + TOGETHER], texts):
                for one in blocks:
                    groups = found.setdefault(one.layer, {})
                    for group in one.cosine:
                        own = groups.setdefault(group, {"answer": [], "cosine": [], "gate": []})
                        own["answer"] += one.answer[group].tolist()
                        own["cosine"] += one.cosine[group].tolist()
                        own["gate"] += one.gate[group].tolist()
    return found


def _spread(values: Sequence[float]) -> tuple[float, ...]:
    """Return the percentiles of `QUANTILES`."""
    ordered = sorted(values)
    return tuple(ordered[round(share * (len(ordered) - 1))] for share in QUANTILES)


def _open(groups: dict[str, dict[str, list[float]]]) -> list[tuple[float, float, float, float]]:
    """Return threshold, shares of perturbed and unrelated keys with an open gate, and their gap."""
    perturbed = [g for name, own in groups.items() if name not in APART for g in own["gate"]]
    apart = groups["unrelated"]["gate"]
    lines = []
    for threshold in THRESHOLDS:
        opened = mean([float(gate > threshold) for gate in perturbed])
        wrongly = mean([float(gate > threshold) for gate in apart])
        lines.append((threshold, opened, wrongly, opened - wrongly))
    return lines


def _paint(
    figure: Figure,
    values: dict[tuple[str, int], dict[str, dict[str, list[float]]]],
    curves: Sequence[tuple[Any, ...]],
) -> None:
    panels = figure.subplots(len(values), 2, squeeze=False, width_ratios=(1.6, 1))
    for line, ((label, layer), groups) in enumerate(values.items()):
        left, right = panels[line]
        names = [*(n for n in groups if n not in APART), *(n for n in APART if n in groups)]
        for at, name in enumerate(names, 1):
            low, lower, middle, upper, high = _spread(groups[name]["answer"])
            colour = COLOURS[1] if name in APART else COLOURS[0]
            left.hlines(at, low, high, color=colour, linewidth=1.2)
            left.hlines(at, lower, upper, color=colour, linewidth=6)
            left.plot([middle], [at], marker="|", markersize=11, color="black")
        left.set_yticks(range(1, len(names) + 1), [n.replace("_", " ") for n in names], fontsize=8)
        left.invert_yaxis()
        left.axvline(1, color="0.7", linewidth=0.8, zorder=0)
        left.set_title(f"{label}, block {layer}: whitened similarity", fontsize=9)
        own = [curve for curve in curves if curve[:2] == (label, layer)]
        for place, name in ((3, "perturbed"), (4, "unrelated")):
            right.plot(
                [curve[2] for curve in own], [100 * curve[place] for curve in own],
                color=COLOURS[place - 3], marker="os"[place - 3], markersize=3, label=name,
                linestyle=("-", "--")[place - 3],
            )  # fmt: skip
        best = max(own, key=lambda curve: curve[5])
        right.set_title(f"gates open (%); widest gap at {best[2]:.2f}", fontsize=9)
        right.set_xlabel("threshold", fontsize=8)
        right.set(ylim=(-2, 102))
        right.legend(fontsize=8, frameon=False)
        for axes in (left, right):
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
