"""The kept records as rows of the page: rates with intervals, differences, and the four leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from errata.editors import editors
from errata.evaluation.bootstrap import Table
from errata.evaluation.metrics import mean
from errata.evaluation.named_tests import SUCCESS
from errata.evaluation.summary import scores_of
from studies.real import plan
from studies.real.run import read

DRAWS = 2000
Record = Mapping[str, Any]
Scores = dict[tuple[str, str], list[float]]


@dataclass(frozen=True)
class Rate:
    """A rate with its 95 % interval (bootstrap over records); percent in text.

    Attributes:
        value: Mean.
        low: Lower end; None where only one record has it.
        high: Upper end.
    """

    value: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{100 * self.value:.0f}"
        return f"{100 * self.value:.0f} [{100 * self.low:.0f}, {100 * self.high:.0f}]"

    @property
    def signed(self) -> str:
        """A difference, with its signs."""
        if self.low is None or self.high is None:
            return _plus(self.value)
        return f"{_plus(self.value)} [{_plus(self.low)}, {_plus(self.high)}]"


def _plus(value: float) -> str:
    return f"{100 * value:+.0f}".replace("-0", "0") if round(100 * value) == 0 else (
        f"{100 * value:+.0f}"
    )  # fmt: skip


@dataclass(frozen=True)
class Row:
    """The records of one row: those of all its cells.

    Attributes:
        cells: Its cells, in the order of their records.
        results: What is kept of them.
    """

    cells: tuple[plan.Cell, ...]
    results: tuple[dict[str, Any], ...]

    @property
    def cell(self) -> plan.Cell:
        """The first of its cells."""
        return self.cells[0]

    @property
    def planned(self) -> int:
        """Number of records that the plan has for it."""
        return sum(cell.limit for cell in self.cells)

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """All its records."""
        return [record for result in self.results for record in result["records"]]

    @cached_property
    def good(self) -> list[dict[str, Any]]:
        """Its records without those that could not be edited."""
        return [record for record in self.records if record["error"] is None]

    @property
    def title(self) -> str:
        """What the page calls it."""
        own = editors.entry(self.cell.editor).facts["title"]
        return f"{own} ({self.cell.label})" if self.cell.label else own

    @property
    def counted(self) -> str:
        """How many of its records there are."""
        n = len(self.records)
        failed = n - len(self.good)
        text = str(n) if n >= self.planned else f"{n} of {self.planned}"
        return text + (f", {failed} failed" if failed else "")

    def seconds(self) -> str:
        """Return the CPU seconds of a record in its first cell, questions included."""
        spent = self.results[0].get("cpu_each")
        return "–" if spent is None else f"{spent:.1f}"

    def bytes_each(self) -> str:
        """Kilobytes of a patch, per edit."""
        units = {
            (place, record["unit"]): record["patch_bytes"]
            for place, result in enumerate(self.results)
            for record in result["records"]
        }
        edits = sum(record["edits"] for record in self.records)
        return f"{sum(units.values()) / 1000 / edits:,.1f}" if edits else "–"


class Rates:
    """Rates of records, by metric, with intervals.

    Args:
        records: Records without errors.
        scores: The scores of a record, by metric and sub-metric.
    """

    def __init__(
        self, records: Sequence[Record], scores: Callable[[Record], Scores] = scores_of
    ) -> None:
        rows = [scores(record) for record in records]
        self.there = Counter(metric for row in rows for metric in {name for name, _ in row})
        self.table = Table.of(rows)
        self.rates = self.table.rates() if rows else {}

    @cached_property
    def drawn(self) -> dict[str, Any]:
        """Every metric of DRAWS resamples of the records."""
        return self.table.resampled(DRAWS, 0)

    def get(self, metric: str) -> Rate | None:
        """Return a rate; None if nothing has it."""
        value = self.rates.get(metric)
        if value is None or np.isnan(value):
            return None
        if self.there.get(metric, 2) < 2:
            return Rate(value)
        return Rate(value, *bounds(self.drawn[metric]))

    def text(self, metric: str) -> str:
        """Return a rate as it stands in a table."""
        found = self.get(metric)
        return "–" if found is None else str(found)


def bounds(values: Any) -> tuple[float, float]:
    """Return the ends of the 95 % interval of resampled values."""
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def paired(
    one: Sequence[Record],
    two: Sequence[Record],
    scores: Callable[[Record], Scores] = scores_of,
) -> tuple[Rates, Rates, int]:
    """Return the rates of both on the records that both could edit, and how many these are.

    Args:
        one: Records.
        two: The same of the other row.
        scores: The scores of a record.
    """
    theirs = {record["id"]: record for record in two if record["error"] is None}
    own = [r for r in one if r["error"] is None and r["id"] in theirs]
    return Rates(own, scores), Rates([theirs[r["id"]] for r in own], scores), len(own)


def gap_of(one: Rates, two: Rates, metric: str) -> Rate | None:
    """Return one minus two of the same records, resampled together; None: one has no such rate."""
    if metric not in one.rates or metric not in two.rates:
        return None
    gap = one.drawn[metric] - two.drawn[metric]  # equal seeds draw equal records
    return Rate(one.rates[metric] - two.rates[metric], *bounds(gap))


def difference(
    left: Row, right: Row, metric: str, scores: Callable[[Record], Scores] = scores_of
) -> Rate | None:
    """Return left minus right on the records that both have; None where these are too few."""
    one, two, both = paired(left.good, right.good, scores)
    return gap_of(one, two, metric) if both >= 2 else None


# ---------------------------------------------------------------------- rows


def rows_of(part: str, model: str = "", data: str = "") -> list[Row]:
    """Return the rows of a part of which something is kept, in the order of the plan."""
    groups: dict[tuple[str, str, str, str], list[plan.Cell]] = {}
    for cell in plan.everything():
        if cell.part == part and model in ("", cell.model) and data in ("", cell.data):
            key = (cell.model, cell.data, cell.editor, cell.label)
            groups.setdefault(key, []).append(cell)
    found = []
    for cells in groups.values():
        cells = sorted(cells, key=lambda cell: cell.first)
        results = tuple(result for cell in cells if (result := read(cell.name)) is not None)
        if results:
            check_settings(results)
            found.append(Row(tuple(cells), results))
    return found


def check_settings(results: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to join cells that defaults of different versions have made.

    Raises:
        ValueError: Names the cells and the setting.
    """
    for one, other in pairwise(results):
        both = one["config"].keys() & other["config"].keys()
        differ = sorted(key for key in both if one["config"][key] != other["config"][key])
        if differ or one["blocks"] != other["blocks"]:
            names = " and ".join(result["cell"]["name"] for result in (one, other))
            raise ValueError(
                f"{names} are one row of the page and differ in {differ or 'their blocks'}: give "
                "the settings in studies/real/plan.py, remove one result and run it again"
            )


def row_named(name: str) -> Row | None:
    """Return the row whose cells' names begin so (`smollm2_counterfact_rome`)."""
    for part in ("single", "sequence", "robustness", "blocks"):
        for row in rows_of(part):
            if name in (row.cell.name, row.cell.name.removesuffix(f"_{row.cell.first}")):
                return row
    return None


def by_test(record: Record) -> Scores:
    """Return the scores of a record by test of the robustness suite."""
    found: Scores = {}
    for entry in record["questions"]:
        name = SUCCESS if entry["kind"] == "reliability" else entry["name"]
        found.setdefault((name, ""), []).append(entry["score"])
    return found


# ---------------------------------------------------------------------- leaks

LEAKS = ("published", "top1", "free_tokens", "starts", "wild")
"""Steps from the published score to the free one, see [`steps`][studies.real.found.steps]."""


def steps(record: Record) -> Scores:
    """Return what remains of an answer's score as one leak after another is closed.

    `published`: tokens right behind the true ones, as the tables count them; `top1`: the most
    probable ones only; `free_tokens`:
    the same places of the free answer (content closed); `starts`: whether the free answer begins
    with the whole answer (averages closed); `wild`: whether it is the answer (length closed).
    """
    found: Scores = {}
    for entry in record["questions"]:
        if entry["kind"] == "locality" or "wild" not in entry:
            continue
        own = entry["wild"]
        values = (entry["score"], entry["top1"], own["share"], own["starts"], own["score"])
        for name, value in zip(LEAKS, values, strict=True):
            found.setdefault((f"{entry['kind']}.{name}", ""), []).append(value)
    return found


def words_said(records: Sequence[Record]) -> float | None:
    """Return the mean number of words of the free answers to the edits' own prompts."""
    return mean(
        entry["wild"]["words"]
        for record in records
        for entry in record["questions"]
        if entry["kind"] == "reliability" and "wild" in entry
    )
