"""Rates of named tests, pooled over their questions, with intervals clustered by case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from errata.evaluation.bootstrap import Table, intervals

SUCCESS = "success"
"""Name under which the edits' own prompts are counted."""

ROBUSTNESS = (
    SUCCESS,
    "prefix",
    "long",
    "long_held",
    "prompt",
    "subject_id",
    "subject_od",
    "shuffle_id",
    "shuffle_od",
    "possessive",
)
"""Names of the robustness tests in tables; those of locality follow."""


def named_tests(
    records: Sequence[Mapping[str, Any]], bootstrap: int, seed: int, order: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return rate, number of questions and interval of every test, by its name.

    The rate is the micro-average: the sum of scores over the number of questions. Questions of one
    case are not independent, so cases are resampled, not questions.

    Args:
        records: Records of edited cases.
        bootstrap: Resamples for the intervals; 0 for none.
        seed: Seed of the resampling.
        order: Names that come first, in this order.
    """
    rows = []
    for record in records:
        row: dict[tuple[str, str], list[float]] = {}
        for entry in record["questions"]:
            name = SUCCESS if entry["kind"] == "reliability" else entry["name"]
            row.setdefault((name, ""), []).append(entry["score"])
        rows.append(row)
    if not any(rows):
        return {}
    table = Table.of(rows)
    rates, bounds = table.rates(), intervals(table, bootstrap, seed)
    names = [name for name, _ in table.columns]
    ranks = {name: place for place, name in enumerate(order)}
    found: dict[str, dict[str, Any]] = {}
    for name in sorted(names, key=lambda name: (ranks.get(name, len(ranks)), name)):
        items = int(table.counts[:, names.index(name)].sum())
        found[name] = {"mean": rates[name], "items": items}
        if name in bounds:
            found[name]["ci95"] = bounds[name]
    return found
