"""Fig. 1: the most probable answers to a few questions after their edits, by several editors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import shorten, wrap
from typing import TYPE_CHECKING, Any

from errata.case import Case, Probe
from errata.errors import RunError
from errata.reporting.collect import Cell
from errata.reporting.figures.base import COLOURS, Drawing
from errata.reporting.reopened import reopened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from errata.model.lm import LM

ANSWERS = 3
"""Most probable next tokens that are shown."""

EDITS = 3
"""Edits, each with one generality question; the first brings a locality question too."""

BEFORE = "unedited"

WORDS = 18
"""Letters of an answer that are drawn."""


@dataclass(frozen=True)
class _Asked:
    """A question of the figure.

    Attributes:
        name: `G1`, `G2` … or `L1`.
        case: Number of its case.
        probe: The question.
        likely: The unedited model's answers.
    """

    name: str
    case: int
    probe: Probe
    likely: list[tuple[str, float]]


def drawing(cells: Sequence[Cell], limit: int = EDITS) -> Drawing:
    """Return the bars: a row per question, a column per editor, the unedited model first.

    Edits are the first of the runs' common cases whose questions serve different criteria and need
    no other fact; all runs have to be of one data set.

    Args:
        cells: Runs.
        limit: Edits.

    Raises:
        RunError: If runs are of several data sets, models or seeds, or have no such case in common.
    """
    if len({(cell.model, cell.data, cell.seed) for cell in cells}) > 1:
        raise RunError(
            "the runs are of several models, data sets or seeds",
            "Name runs of one: errata figure answers runs/SWEEP/cells/MODEL/*/DATA/seed0",
        )
    asked: list[_Asked] = []
    chosen: list[Case] = []
    rows: list[tuple[Any, ...]] = []
    for run in reopened(cells):
        if not chosen:
            chosen = _chosen(run.cases, _common(cells), limit)
            asked = _asked(run.lm, chosen)
            rows += [row for one in asked for row in _rows(run.lm, one, chosen, BEFORE, one.likely)]
        patches = run.editor.edit(run.lm, [case.edits for case in chosen])
        for number, patch in enumerate(patches):
            own = [one for one in asked if one.case == number]
            with patch.applied(run.lm):
                found = run.lm.top([one.probe for one in own], ANSWERS)
            for one, likely in zip(own, found, strict=True):
                rows += _rows(run.lm, one, chosen, run.cell.label, likely)
    head = ("question", "case", "edit", "asked", "wanted", "editor", "place", "answer",
            "probability", "is_wanted")  # fmt: skip
    editors = len({row[5] for row in rows})
    return Drawing(
        "answers", head, tuple(rows), lambda figure: _paint(figure, rows),
        (2.0 * editors + 2.6, 1.15 * len(asked) + 0.4),
    )  # fmt: skip


def _common(cells: Sequence[Cell]) -> set[str]:
    each = [{r["id"] for r in cell.run.records if r.get("error") is None} for cell in cells]
    return set.intersection(*each)


def _question(case: Case) -> Probe | None:
    """Return a case's first generality question that builds on its edits alone."""
    return next((probe for probe in case.of("generality") if not probe.hops), None)


def _chosen(cases: Sequence[Case], common: set[str], limit: int) -> list[Case]:
    """Return cases of different criteria first, one with a locality question in front."""
    able = [case for case in cases if case.id in common and _question(case) is not None]
    if not able:
        raise RunError(
            "the runs have no case in common with a generality question that needs no other fact",
            "errata sweep recipes/ibke-inside-pocket.toml asks the same cases of every editor.",
        )
    seen: set[tuple[str, ...]] = set()
    different, others = [], []
    for case in able:
        probe = _question(case)
        assert probe is not None
        (others if probe.criteria in seen else different).append(case)
        seen.add(probe.criteria)
    found = [*different, *others][:limit]
    return sorted(found, key=lambda case: not case.of("locality"))


def _asked(lm: LM, cases: Sequence[Case]) -> list[_Asked]:
    """Return the questions of the figure, with the unedited model's answers."""
    named: list[tuple[str, int, Probe]] = []
    for number, case in enumerate(cases):
        probe = _question(case)
        assert probe is not None
        named.append((f"G{number + 1}", number, probe))
    named += [("L1", 0, probe) for probe in cases[0].of("locality")[:1]]
    likely = lm.top([probe for *_, probe in named], ANSWERS)
    return [_Asked(*one, own) for one, own in zip(named, likely, strict=True)]


def _rows(
    lm: LM, one: _Asked, cases: Sequence[Case], editor: str, likely: Sequence[tuple[str, float]]
) -> list[tuple[Any, ...]]:
    edit, probe = cases[one.case].edits[0], one.probe
    # of a locality question, what the unedited model says is wanted
    if probe.kind == "locality":
        wanted = one.likely[0][0]
    else:
        wanted = str(lm.tokenizer.decode([lm.row_of(probe).labels[0]]))
    return [
        (one.name, cases[one.case].id, f"{edit.prompt} → {edit.target}", probe.prompt, probe.target,
         editor, place, text.strip(), chance, int(text.strip() == wanted.strip()))
        for place, (text, chance) in enumerate(likely, 1)
    ]  # fmt: skip


# ---------------------------------------------------------------------- picture


def _paint(figure: Figure, rows: Sequence[tuple[Any, ...]]) -> None:
    editors = list(dict.fromkeys(row[5] for row in rows))
    names = list(dict.fromkeys(row[0] for row in rows))
    panels = figure.subplots(len(names), len(editors), squeeze=False, sharex=True)
    for line, name in enumerate(names):
        for column, editor in enumerate(editors):
            axes = panels[line, column]
            own = [row for row in rows if row[0] == name and row[5] == editor]
            _bars(axes, own)
            if not line:
                axes.set_title(editor, fontsize=9)
            if not column:
                axes.set_ylabel(
                    _told(own[0]), fontsize=7, rotation=0, ha="right", va="center", labelpad=8
                )
    for axes in panels[-1]:
        axes.set_xlabel("probability (%)", fontsize=8)
        axes.tick_params(axis="x", labelsize=7)


def _told(row: tuple[Any, ...]) -> str:
    """Return what stands beside a row: the edit, the question, and what is wanted."""
    name, _, edit, asked, wanted = row[:5]
    mark = "kept" if name.startswith("L") else shorten(wanted, 30)
    lines = [f"E{name[1:]}: {edit}", f"{name}: {asked} … ({mark})"]
    return "\n".join(part for text in lines for part in wrap(text, 44))


def _bars(axes: Any, rows: Sequence[tuple[Any, ...]]) -> None:
    for place, answer, chance, wanted in (row[6:] for row in rows):
        axes.barh(
            -place, 100 * chance, height=0.75, edgecolor="white", hatch="//" if wanted else "",
            color=COLOURS[0] if wanted else "#BBBBBB",
        )  # fmt: skip
        inside = chance > 0.55
        axes.text(
            100 * chance - 2 if inside else 100 * chance + 2, -place, answer[:WORDS] or "␣",
            ha="right" if inside else "left", va="center", fontsize=7.5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6} if inside else None,
        )  # fmt: skip
    axes.set(xlim=(0, 100), ylim=(-len(rows) - 0.6, -0.4), yticks=[])
    axes.spines[["top", "right", "left"]].set_visible(False)
