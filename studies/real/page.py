"""The tables of docs/results-real.md."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from pathlib import Path
from typing import Any

from errata.evaluation.named_tests import ROBUSTNESS
from studies.common.device import told
from studies.common.tables import table
from studies.real import plan
from studies.real.found import (
    LEAKS,
    Rate,
    Rates,
    Row,
    by_test,
    difference,
    rows_of,
    steps,
    words_said,
)
from studies.real.run import read

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "results-real.md"

SCORES = {
    "reliability": "Rel", "generality": "Gen, top 5", "generality_top1": "top 1",
    "locality": "Loc, top 5", "locality_top1": "top 1", "ES": "ES", "PS": "PS", "NS": "NS",
    "S": "S",
}  # fmt: skip
DATA_TITLES = {
    "counterfact": "CounterFact", "qaedit": "QAEdit", "zsre": "zsRE", "mquake": "MQuAKE",
}  # fmt: skip
Z95 = 1.96
UNITS = {
    "single": "records", "sequence": "records", "robustness": "records", "ability": "tasks",
    "trace": "facts", "blocks": "records", "search": "records", "compute": "records",
}  # fmt: skip
"""Parts of the plan, and what their cells consist of."""


def single_tables() -> str:
    """Return the tables of edits that are made one at a time, by model and data."""
    parts = []
    for model, title in plan.MODELS.items():
        for data, name in DATA_TITLES.items():
            rows = rows_of("single", model, data)
            if not rows:
                continue
            parts.append(f"### {name} on {title}\n\n{_single(rows)}")
            if any("wild" in q for row in rows for r in row.good for q in r["questions"]):
                parts.append(f"Answered freely (WILD), the same edits:\n\n{_wild(rows)}")
    return "\n\n".join(parts)


def _single(rows: Sequence[Row]) -> str:
    body = []
    every = [Rates(row.good) for row in rows]
    shown = [key for key in SCORES if any(key in rates.rates for rates in every)]
    for row, rates in zip(rows, every, strict=True):
        cells = [rates.text(key) for key in shown]
        body.append([row.title, row.counted, *cells, row.seconds(), row.bytes_each()])
    head = ["editor", "n", *(SCORES[key] for key in shown), "CPU-s / record", "kB / edit"]
    return table(head, body)


def _wild(rows: Sequence[Row]) -> str:
    body = []
    for row in rows:
        spoken = [r for r in row.good if any("wild" in q for q in r["questions"])]
        if not spoken:
            continue
        rates = Rates(spoken)
        pairs = [
            f"{rates.text(kind)} → {rates.text(f'wild.{kind}')}"
            for kind in ("reliability", "generality", "locality")
        ]
        body.append([row.title, len(spoken), *pairs])
    head = ["editor", "n", "Rel: forced → WILD", "Gen: forced, top 5 → WILD",
            "Loc: forced, top 5 → WILD"]  # fmt: skip
    return table(head, body)


def leak_table() -> str:
    """Return what is left of a score as the leaks of teacher forcing are closed one by one."""
    body = []
    for data, name in DATA_TITLES.items():
        for row in rows_of("single", "smollm2", data):
            spoken = [r for r in row.good if any("wild" in q for q in r["questions"])]
            if not spoken or row.cell.editor == "none":
                continue
            rates = Rates(spoken, steps)
            for kind in ("reliability", "generality"):
                cells = [rates.text(f"{kind}.{step}") for step in LEAKS]
                words = f"{words_said(spoken):.0f}" if kind == "reliability" else ""
                body.append([name, row.title, kind, *cells, words])
    if not body:
        return ""
    head = ["data", "editor", "", "as published", "top 1", "the same tokens, spoken freely",
            "begins with the answer", "is the answer (WILD)", "words said"]  # fmt: skip
    return table(head, body)


def sequence_table() -> str:
    """Return the sequences: hosts with and without BLUE, and what BLUE changes."""
    body, shown = [], ("reliability", "generality", "locality", "locality_top1", "ES", "PS", "NS")
    for row in rows_of("sequence"):
        rates = Rates(row.good)
        first, last = _ends(row)
        body.append(
            [row.title, row.counted, *map(rates.text, shown), f"{first} → {last}", row.seconds()]
        )
    if not body:
        return ""
    head = ["editor", "n", "Rel", "Gen, top 5", "Loc, top 5", "top 1", "ES", "PS", "NS",
            "perplexity", "CPU-s / record"]  # fmt: skip
    return table(head, body)


def _ends(row: Row) -> tuple[str, str]:
    points = [r["trajectory"] for r in row.records if r.get("trajectory")]
    if not points:
        return "–", "–"
    first, last = points[-1][0].get("perplexity"), points[-1][-1].get("perplexity")
    return tuple("–" if x is None else f"{x:.1f}" for x in (first, last))  # type: ignore[return-value]


def blue_table() -> str:
    """Return the paired differences that BLUE makes."""
    return _pairs("sequence", "blue", ("reliability", "generality", "generality_top1",
                  "locality_top1", "PS", "NS", "S"), SCORES | {"generality": "Gen, top 5",
                  "generality_top1": "Gen, top 1", "locality_top1": "Loc, top 1"})  # fmt: skip


def _pairs(
    part: str, strategy: str, metrics: Sequence[str], titles: dict[str, str], **how: Any
) -> str:
    rows = {row.cell.editor: row for row in rows_of(part)}
    body = []
    for name, row in rows.items():
        host = rows.get(name.removesuffix(f"+{strategy}"))
        if name.endswith(f"+{strategy}") and host is not None:
            gaps = [difference(row, host, metric, **how) for metric in metrics]
            body.append([f"{row.title} − {host.title}",
                         *("–" if gap is None else gap.signed for gap in gaps)])  # fmt: skip
    return table(["", *(titles[metric] for metric in metrics)], body) if body else ""


def robust_table() -> str:
    """Return the rates of every test of the robustness suite."""
    rows = rows_of("robustness")
    if not rows:
        return ""
    every = [Rates(row.good, by_test) for row in rows]
    names = _tests(every)
    body = [
        [row.title, row.counted, *map(rates.text, names)]
        for row, rates in zip(rows, every, strict=True)
    ]
    return table(["editor", "n", *names], body)


def rep_table() -> str:
    """Return the paired differences that REP makes, by test."""
    names = _tests([Rates(row.good, by_test) for row in rows_of("robustness")])
    return _pairs("robustness", "rep", names, {n: n for n in names}, scores=by_test)


def _tests(every: Sequence[Rates]) -> list[str]:
    found = dict.fromkeys(name for rates in every for name in rates.rates)
    known = [name for name in ROBUSTNESS if name in found]
    derived = {"average", "f1", "S", "before.S"}
    return known + [name for name in found if name not in known and name not in derived]


def ability_table() -> str:
    """Return general ability before any edit and after each sequence."""
    cells = [cell for cell in plan.everything() if cell.part == "ability"]
    kept = [(cell, found) for cell in cells if (found := read(cell.name)) is not None]
    if not kept:
        return ""
    names = list(kept[0][1]["rates"])
    body = []
    for cell, found in kept:
        title = "before any edit" if cell.editor == "none" else f"200 edits by {cell.editor}"
        body.append([title, *(_ability(name, found) for name in names)])
    return table(["", *names], body)


def _ability(name: str, found: dict[str, Any]) -> str:
    """Return a metric; an accuracy with its interval."""
    if not name.endswith(("/acc", "/acc_norm")):
        return f"{100 * found['rates'][name]:.0f}"
    return str(accuracy(name, found))


def accuracy(name: str, found: dict[str, Any]) -> Rate:
    """Return an accuracy with its Wilson interval."""
    value, n = found["rates"][name], found["items"]
    centre = (value + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
    half = Z95 / (1 + Z95**2 / n) * sqrt(value * (1 - value) / n + Z95**2 / (4 * n**2))
    return Rate(value, centre - half, centre + half)


def traced() -> list[dict[str, Any]]:
    """Return the traces that are kept, in the order of the models."""
    cells = [cell for cell in plan.everything() if cell.part == "trace"]
    return [found["trace"] for cell in cells if (found := read(cell.name)) is not None]


def trace_table() -> str:
    """Return where tracing points in each model."""
    body = []
    for found in traced():
        chosen = found["choice"]
        body.append(
            [plan.MODELS[found["model"]], found["facts"], f"{found['clean']:.2f}",
             f"{found['corrupted']:.2f}", f"{chosen['layer']} of {found['blocks']}",
             f"{chosen['effect']:.3f}", f"{100 * chosen['agreement']:.0f}"]
        )  # fmt: skip
    if not body:
        return ""
    head = ["model", "facts", "P(answer)", "subject corrupted", "block of the peak", "regained",
            "resamples with this peak, %"]  # fmt: skip
    return table(head, body)


def block_table() -> str:
    """Return ROME at one block after another."""
    body = []
    for row in rows_of("blocks"):
        rates = Rates(row.good)
        shown = ("reliability", "generality", "generality_top1", "locality_top1", "PS", "NS", "S")
        title = plan.MODELS[row.cell.model]
        body.append([title, row.cell.settings["layer"], row.counted, *map(rates.text, shown)])
    if not body:
        return ""
    head = ["model", "block", "n", "Rel", "Gen, top 5", "top 1", "Loc, top 1", "PS", "NS", "S"]
    return table(head, body)


def search_table() -> str:
    """Return the settings tried for editors that take neighbours along."""
    body = []
    for row in rows_of("search"):
        rates = Rates(row.good)
        shown = ("reliability", "generality_top1", "locality_top1", "NS", "S")
        before = rates.text("before.NS")
        body.append([row.title, row.counted, *map(rates.text, shown), before, row.seconds()])
    head = [
        "editor",
        "n",
        "Rel",
        "Gen, top 1",
        "Loc, top 1",
        "NS",
        "S",
        "NS unedited",
        "CPU-s / record",
    ]
    return table(head, body) if body else ""


def compute_table() -> str:
    """Return what rounded products of edits change, on the same records."""
    rows = {(row.cell.editor, row.cell.compute): row for row in rows_of("compute")}
    shown = ("reliability", "generality_top1", "locality_top1", "ES", "PS", "NS")
    body = []
    for (editor, compute), row in rows.items():
        exact = rows.get((editor, "float32"))
        if compute == "float32" or exact is None:
            continue
        rates = [Rates(one.good) for one in (exact, row)]
        pairs = [" → ".join(_percent(one.get(metric)) for one in rates) for metric in shown]
        gaps = [gap.signed if (gap := difference(row, exact, m)) else "–" for m in shown]
        both, margin = _margins(exact, row)
        cells = [f"{pair}, {gap}" for pair, gap in zip(pairs, gaps, strict=True)]
        spent = f"{exact.seconds()} → {row.seconds()}"
        title = row.title.removesuffix(f" ({compute})")
        body.append([title, both, *cells, margin, spent])
    head = ["editor", "n", "Rel", "Gen, top 1", "Loc, top 1", "ES", "PS", "NS",
            "margin of the edit", "CPU-s / record"]  # fmt: skip
    return table(head, body) if body else ""


def _percent(rate: Rate | None) -> str:
    return "–" if rate is None else f"{100 * rate.value:.1f}"


def _margins(one: Row, other: Row) -> tuple[int, str]:
    """Return the records of both rows, and their mean margins: new against old answer, nats."""
    margins = [
        {r["id"]: q["margin"] for r in row.good for q in r["questions"]
         if q["kind"] == "reliability" and "margin" in q}
        for row in (one, other)
    ]  # fmt: skip
    both = [key for key in margins[0] if key in margins[1]]
    if not both:
        return 0, "–"
    means = [sum(own[key] for key in both) / len(both) for own in margins]
    return len(both), f"{means[0]:.2f} → {means[1]:.2f}"


def progress_table() -> str:
    """Return how far every part is."""
    body = []
    for part, unit in UNITS.items():
        cells = [cell for cell in plan.everything() if cell.part == part]
        kept = [found for cell in cells if (found := read(cell.name)) is not None]
        done = sum(found["finished"] for found in kept)
        have = sum(len(found["records"]) for found in kept)
        planned = sum(cell.limit for cell in cells)
        body.append([part, f"{done} of {len(cells)}", f"{have:,} of {planned:,} {unit}"])
    cards = told((f"`{cell.name}`", read(cell.name)) for cell in plan.everything())
    return "\n\n".join(filter(None, (table(["part", "cells finished", "kept"], body), cards)))
