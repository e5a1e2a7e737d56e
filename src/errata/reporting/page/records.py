"""What the page's browser of records holds: every case once, beside it the answers of all rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from errata.evaluation.long import TITLES
from errata.printable import one_line
from errata.reporting.collect import Cell
from errata.reporting.tables import Comparison

MOST = 2000
"""Cases of a data set that a page holds; the report says how many were left out."""

LONGEST = 300
"""Signs of a question or answer that are kept."""


def browsed(table: Comparison, cells: Sequence[Cell]) -> dict[str, Any]:
    """Return the records of a comparison, compact: `page.js` says what stands where.

    Args:
        table: The comparison.
        cells: All cells of the report.
    """
    rows = [row.label for row in table.rows]
    protocol = (table.regime, table.batch, table.top_k, table.suite)
    own = [cell for cell in cells if cell.model == table.model and cell.protocol == protocol]
    sets = []
    for data in table.data:
        cases: dict[tuple[str, int], dict[str, Any]] = {}
        left = 0
        for cell in own:
            if cell.data != data:
                continue
            for record in cell.run.records:
                key = (str(record.get("id")), cell.seed)
                if key not in cases and len(cases) >= MOST:
                    left += 1
                    continue
                case = cases.setdefault(key, {"id": _short(key[0]), "seed": cell.seed, "q": {}})
                _add(case, rows.index(cell.label), len(rows), record)
        made = [{**case, "q": list(case["q"].values())} for case in cases.values()]
        sets.append({"data": one_line(data), "cases": made, "left": left})
    return {"rows": [one_line(row) for row in rows], "sets": sets}


def _add(case: dict[str, Any], row: int, rows: int, record: Mapping[str, Any]) -> None:
    """Write one row's answers beside those of the others to the same questions."""
    if record.get("error"):
        case.setdefault("errors", {})[row] = _short(str(record["error"]))
    for number, question in _questions(record):
        prompt, target = str(question.get("prompt", "")), str(question.get("target", ""))
        # locality is asked for the unedited answer, which is the same for all rows
        key = (question.get("kind"), number, prompt)
        entry = case["q"].setdefault(
            key,
            {
                "kind": str(question.get("kind", "")),
                "name": _short(str(question.get("name", ""))),
                "prompt": _short(prompt), "target": _short(target), "k": question.get("k"),
                "tags": [_short(str(tag)) for tag in question.get("criteria") or ()],
                "a": [None] * rows,
            },
        )  # fmt: skip
        entry["a"][row] = _answer(question)


def _questions(record: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    counts: dict[Any, int] = {}
    for question in record.get("questions") or ():
        key = (question.get("kind"), question.get("prompt"))
        counts[key] = counts.get(key, -1) + 1
        yield counts[key], question


def _answer(question: Mapping[str, Any]) -> list[Any]:
    """Return what one row answered: text, score, what it says freely, hops."""
    hops = question.get("hops") or {}
    return [
        _short(str(question.get("predicted", ""))),
        _number(question.get("score")),
        _freely(question),
        [hops.get("asked"), hops.get("known"), hops.get("edited")] if hops else None,
    ]


def _freely(question: Mapping[str, Any]) -> list[Any] | None:
    """Return what a row says freely: text, score, what was said before; and the score's name.

    Of a long answer the score is the recall of its longest common subsequence.
    """
    long, free = question.get("long") or {}, question.get("wild") or {}
    if "text" in long:
        return [_short(str(long["text"])), _number(long.get("rougeL")), None, TITLES["rougeL"]]
    if "text" not in free:
        return None
    before = _short(str(free["before"])) if "before" in free else None
    return [_short(str(free["text"])), _number(free.get("score")), before, ""]


def _number(value: Any) -> float | None:
    return round(float(value), 3) if isinstance(value, int | float) else None


def _short(text: str) -> str:
    text = one_line(text)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
