"""Fig. 7a: gates σ(f_Ws) of a few edits as shaded text, and how sparse they are over many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from errata.editors.base_inside import Gates
from errata.reporting.collect import Cell
from errata.reporting.figures.base import Drawing, Numbers, mean
from errata.reporting.figures.relations import blocks_of, looked_into
from errata.reporting.reopened import Reopened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from errata.editors.base_inside import InsideEditor

SHOWN = 3
"""Edits that are drawn: one per data set while there are such, then more of the first."""

SMALL = 0.1
"""A gate below this counts as shut."""

DARKEST = 0.75
"""Share of black in the shade of an open gate, so that text on it can be read in print."""

LONGEST = 12
"""Letters of a token that are drawn."""

WHERE = ("all", "first token", "subject", "subject's last", "rest of the prompt", "answer")


def drawing(cells: Sequence[Cell], limit: int | None = None) -> Drawing:
    """Return the shaded texts; the numbers of all edits of the runs stand beside them.

    Args:
        cells: Runs of editors with gates; others are passed over.
        limit: Cases of each run at most.

    Raises:
        RunError: If no run has gates.
        ConfigError: If networks were trained without them.
    """
    drawn: dict[tuple[str, str], list[tuple[Any, ...]]] = {}
    sparse: list[tuple[Any, ...]] = []
    for run in looked_into(cells, limit):
        edits = [case.edits[0] for case in run.cases]
        found = cast("InsideEditor", run.editor).gates(run.lm, edits)
        for name, path in blocks_of(run):
            sparse.append((run.cell.label, run.cell.data, name, *_sparsity(run, found, path)))
            for case, own in zip(run.cases, found, strict=True):
                rows = drawn.setdefault((run.cell.data, case.id), [])
                gates = own.by_matrix[path].tolist()
                rows += [
                    (run.cell.data, case.id, run.cell.label, name, at, _shown(run, token), gate)
                    for at, (token, gate) in enumerate(zip(own.ids, gates, strict=True))
                    if not math.isnan(gate)
                ]
    chosen = _chosen(list(drawn))
    rows = tuple(row for key in chosen for row in drawn[key])
    lines = sum(len({row[2:4] for row in drawn[key]}) for key in chosen)
    widest = max(row[4] for row in rows) + 1
    head = ("editor", "data", "matrix", "edits", "gini", "gini_sd", "shut",
            *(f"mean, {where}" for where in WHERE))  # fmt: skip
    return Drawing(
        "gates", ("data", "case", "editor", "matrix", "at", "token", "gate"), rows,
        lambda figure: _paint(figure, [drawn[key] for key in chosen]),
        (min(16.0, 2.6 + 0.62 * widest), 0.7 * len(chosen) + 0.24 * lines + 0.3),
        (Numbers("gini", head, tuple(sparse)),),
    )  # fmt: skip


def _chosen(keys: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the edits to draw: the first of each data set, then the next of the first."""
    firsts = list({data: (data, case) for data, case in reversed(keys)}.values())[::-1]
    others = [key for key in keys if key not in firsts]
    return [*firsts, *others][:SHOWN]


def _shown(run: Reopened, token: int) -> str:
    """Return a token as it is drawn and written into the CSV."""
    return str(run.lm.tokenizer.decode([token])).strip() or "␣"


# ---------------------------------------------------------------------- numbers


def gini(values: Sequence[float]) -> float:
    """Return the Gini coefficient of values that are not negative: 0 all equal, towards 1 sparse.

    Mean absolute difference of all pairs over twice the mean.
    """
    ordered, count = sorted(values), len(values)
    total = sum(ordered)
    if not total:
        return 0.0
    weighted = sum((2 * at - count - 1) * value for at, value in enumerate(ordered, 1))
    return weighted / (count * total)


def _sparsity(run: Reopened, found: Sequence[Gates], path: str) -> tuple[Any, ...]:
    """Return what is said of one matrix over all edits."""
    ginis, shut = [], []
    parts: dict[str, list[float]] = {where: [] for where in WHERE}
    for case, own in zip(run.cases, found, strict=True):
        gates = {at: g for at, g in enumerate(own.by_matrix[path].tolist()) if not math.isnan(g)}
        ginis.append(gini(list(gates.values())))
        shut.append(mean([float(g < SMALL) for g in gates.values()]))
        where = _where(run, case.edits[0], own)
        for at, gate in gates.items():
            for name in ("all", *where.get(at, ())):
                parts[name].append(gate)
    centre = mean(ginis)
    spread = math.sqrt(sum((g - centre) ** 2 for g in ginis) / max(1, len(ginis) - 1))
    means = [mean(values) if values else "" for values in parts.values()]
    return (len(ginis), centre, spread, mean(shut), *means)


def _where(run: Reopened, edit: Any, own: Gates) -> dict[int, tuple[str, ...]]:
    """Return which parts of the request each token belongs to."""
    row = run.lm.prompt_of(edit, subject=edit.subject is not None)
    first, last = row.subject or (-1, -2)
    found: dict[int, tuple[str, ...]] = {}
    for at in range(len(own.ids)):
        names = ["first token"] if at == 0 else []
        if at >= own.prompt_length:
            names.append("answer")
        elif first <= at <= last:
            names += ["subject", *(["subject's last"] if at == last else [])]
        elif at:
            names.append("rest of the prompt")
        found[at] = tuple(names)
    return found


# ---------------------------------------------------------------------- picture


def _paint(figure: Figure, examples: Sequence[Sequence[tuple[Any, ...]]]) -> None:
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    shades = ListedColormap(colormaps["Greys"](np.linspace(0, DARKEST, 256)))
    lines = [len({row[2:4] for row in rows}) for rows in examples]
    widest = max(row[4] for rows in examples for row in rows) + 1
    panels = figure.subplots(len(examples), 1, squeeze=False, height_ratios=lines)
    for axes, rows in zip(panels[:, 0], examples, strict=True):
        names = list(dict.fromkeys(row[2:4] for row in rows))
        grid = np.full((len(names), widest), np.nan)
        for _, _, label, matrix, at, token, gate in rows:
            line = names.index((label, matrix))
            grid[line, at] = gate
            axes.text(
                at, line, token[:LONGEST], ha="center", va="center", fontsize=6.5,
                color="white" if gate > 0.75 else "black",
            )  # fmt: skip
        axes.imshow(grid, cmap=shades, vmin=0, vmax=1, aspect="auto")
        axes.set_yticks(
            range(len(names)), [f"{label} · block {m}" for label, m in names], fontsize=7
        )
        axes.set_xticks([])
        axes.tick_params(length=0)
        axes.set_title(f"{rows[0][0]}: {rows[0][1]}", fontsize=8, loc="left")
        for side in axes.spines.values():
            side.set_visible(False)
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), shades), ax=list(panels[:, 0]), fraction=0.02, pad=0.01
    )
    bar.set_label("gate", fontsize=8)
    bar.ax.tick_params(labelsize=7)
