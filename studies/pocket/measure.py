"""Evaluation of one editor as the study records it: rates, and every case's own scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from errata import evaluate
from errata.data import LoadedData
from errata.editors import Editor
from errata.model.lm import LM
from studies.common.statistics import mean

COLUMNS = ("rel1", "gen5", "gen1", "loc5", "loc1")
"""Scores of a case in percent: reliability, and generality and locality by top-5 and top-1."""

_SOURCE = {
    "rel1": ("reliability", "top1"),
    "gen5": ("generality", "score"),
    "gen1": ("generality", "top1"),
    "loc5": ("locality", "score"),
    "loc1": ("locality", "top1"),
}


def measure(lm: LM, editor: Editor, data: LoadedData, half: bool = False) -> dict[str, Any]:
    """Return mean scores, the scores of every case in the order of the data, and seconds.

    A case without a question of a kind has None there; with `half`, so have all but the first of
    each fact.
    """
    asked = [c for c in data.cases if not half or c.id.endswith("-0")]
    result = evaluate(lm, editor, replace(data, cases=tuple(asked)), stack_size=64)
    records = {record["id"]: record for record in result.records}
    cases: dict[str, list[int | None]] = {column: [] for column in COLUMNS}
    for case in data.cases:
        questions = records[case.id]["questions"] if case.id in records else []
        for column, (kind, key) in _SOURCE.items():
            found = [q[key] for q in questions if q["kind"] == kind]
            cases[column].append(round(100 * sum(found) / len(found)) if found else None)
    edit_seconds = sum(record["seconds"]["edit"] for record in result.records)
    return {
        "rates": {column: mean(values) for column, values in cases.items()},
        "cases": cases,
        "edit_seconds": round(edit_seconds / len(result.records), 5),
    }


def describe(data: LoadedData) -> list[dict[str, Any]]:
    """Return what a page needs to know of every case: fact, domain, criteria and hops."""
    found = []
    for case in data.cases:
        (gen,) = case.of("generality")
        loc = [c for probe in case.of("locality") for c in probe.criteria]
        found.append(
            {
                "id": case.id,
                "fact": case.id.rpartition("-")[0],
                "domain": case.meta["domain"],
                "criteria": list(gen.criteria),
                "hops": len(gen.hops),
                "locality": loc,
            }
        )
    return found
