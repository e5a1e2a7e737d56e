"""What stands in each place of a table, and how it is marked; without any format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from errata.evaluation.summary import TOP1
from errata.reporting.collect import Cell, Collection
from errata.reporting.columns import column_of, ordered
from errata.reporting.scores import Balance, Cost, Score, balance, cost, score
from errata.store.records import counting

Mark = Literal["best", "near", ""]
UNEDITED = "none"
"""The editor whose row is never marked: it cannot lose locality."""
LEFT_OUT = ("zsre",)
"""Data sets that do not count for F1 unless asked for, as in the paper's figure."""
DIGITS = 2


@dataclass(frozen=True)
class Row:
    """An editor in a comparison.

    Attributes:
        label: Name in tables.
        editor: Name of the editor.
        scores: By data set and metric.
        costs: By data set.
        seeds: By data set, the seeds of its runs.
        balance: Generality against locality over the data sets that count; None without both.
    """

    label: str
    editor: str
    scores: Mapping[str, Mapping[str, Score]]
    costs: Mapping[str, Cost]
    seeds: Mapping[str, tuple[int, ...]]
    balance: Balance | None

    @property
    def compared(self) -> bool:
        """Whether the row can be the best of a column."""
        return self.editor != UNEDITED

    def cases(self, data: str) -> int | None:
        """Return the cases that its rates on a data set rest on, over all seeds."""
        return max((own.cases for own in self.scores.get(data, {}).values()), default=None)

    @property
    def cost(self) -> Cost:
        """What an edit takes, over all data sets."""
        sizes = [own.bytes for own in self.costs.values()]
        return Cost(
            sum(own.edits for own in self.costs.values()),
            sum(own.seconds for own in self.costs.values()),
            None if None in sizes else sum(size for size in sizes if size is not None),
        )


@dataclass(frozen=True)
class Comparison:
    """Editors on one model under one protocol.

    Attributes:
        model: The model.
        regime: The regime.
        batch: Edits of a step of a sequence.
        top_k: Rank that counts as a hit.
        data: Names of the data sets, in order.
        counted: Those that count for F1.
        rows: The editors.
        notes: What a reader has to know of these numbers.
        suite: The suite whose questions were asked; empty for the data sets' own.
        chosen: Metrics that are shown; None for all that there are.
    """

    model: str
    regime: str
    batch: int
    top_k: int
    data: tuple[str, ...]
    counted: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    suite: str = ""
    chosen: tuple[str, ...] | None = None

    @property
    def title(self) -> str:
        """What was measured."""
        steps = f", {self.batch} edits per step" if self.batch > 1 else ""
        suite = f", suite {self.suite}" if self.suite else ""
        return f"{self.model}, {self.regime}{steps}, top {self.top_k}{suite}"

    def metrics(self, data: str) -> list[str]:
        """Return the metrics that are shown of those that any row has on a data set."""
        there = {metric for row in self.rows for metric in row.scores.get(data, {})}
        return [m for m in ordered(there) if self.shows(m)]

    def shows(self, metric: str) -> bool:
        """Whether a metric is shown; what only repeats another if it is asked for by name."""
        if self.chosen is None:
            return metric not in TOP1 or (self.top_k > 1 and not self.suite)
        return metric in self.chosen

    def columns(self) -> Iterator[tuple[str, str]]:
        """Yield data set and metric of every column of rates."""
        for data in self.data:
            for metric in self.metrics(data):
                yield data, metric

    def column(self, data: str, metric: str) -> list[Score | None]:
        """Return the rates of all rows in one column."""
        return [row.scores.get(data, {}).get(metric) for row in self.rows]

    def marks(
        self, scores: Sequence[Score | None], within: float, metric: str = "average"
    ) -> list[Mark]:
        """Return how the rates of a column are marked."""
        if not column_of(metric).marked:
            return [""] * len(scores)
        values = [None if own is None else own.value for own in scores]
        return mark(values, [row.compared for row in self.rows], within)


def mark(values: Sequence[float | None], compared: Sequence[bool], within: float) -> list[Mark]:
    """Say of each rate whether it is the best of those compared, or near it.

    What reads the same is the same: rates are compared as they are printed.

    Args:
        values: Rates in [0, 1]; None where there is none.
        compared: Whether the row takes part.
        within: Percent of the best value that still counts as near it.
    """
    shown = [
        round(100 * value, DIGITS) if value is not None and own else None
        for value, own in zip(values, compared, strict=True)
    ]
    known = [value for value in shown if value is not None]
    best = max(known, default=0.0)
    if best <= 0:  # nothing there is good
        return [""] * len(values)
    least = best * (1 - within / 100)
    return [
        "" if value is None or value < least else "best" if value == best else "near"
        for value in shown
    ]


def compare(found: Collection, f1: Sequence[str] | None, times: int, seed: int) -> list[Comparison]:
    """Group cells into comparisons: one per model and protocol.

    Args:
        found: The cells.
        f1: Data sets that count for F1; None: all but zsRE.
        times: Resamples for the intervals.
        seed: Seed of the resampling.
    """
    groups: dict[tuple[str, tuple[str, int, int, str]], list[Cell]] = {}
    for cell in found.cells:
        groups.setdefault((cell.model, cell.protocol), []).append(cell)
    return [
        _comparison(model, protocol, cells, f1, times, seed)
        for (model, protocol), cells in groups.items()
    ]


def _comparison(
    model: str, protocol: tuple[str, int, int, str], cells: Sequence[Cell],
    f1: Sequence[str] | None, times: int, seed: int,
) -> Comparison:  # fmt: skip
    names = {cell.data: cell.data_name for cell in cells}
    counted = tuple(data for data, name in names.items() if _counts(data, name, f1))
    labels = dict.fromkeys(cell.label for cell in cells)
    rows = tuple(
        _row([cell for cell in cells if cell.label == label], counted, times, seed)
        for label in labels
    )
    # F1 over other data sets than the other rows' would be no comparison
    most = max((sum(data in row.scores for data in counted) for row in rows), default=0)
    rows = tuple(
        row if sum(data in row.scores for data in counted) == most else _unbalanced(row)
        for row in rows
    )
    regime, batch, top_k, suite = protocol
    notes = (*_failed(cells), *_other_cases(cells), *_fewer_seeds(rows))
    return Comparison(model, regime, batch, top_k, tuple(names), counted, rows, notes, suite)


def _counts(label: str, name: str, f1: Sequence[str] | None) -> bool:
    if f1 is None:
        return name not in LEFT_OUT
    return label in f1 or name in f1


def _row(cells: Sequence[Cell], counted: Sequence[str], times: int, seed: int) -> Row:
    by_data: dict[str, list[Cell]] = {}
    for cell in cells:
        by_data.setdefault(cell.data, []).append(cell)
    with counting([cell.run.path for cell in cells]):
        scores = {data: score(own, times, seed) for data, own in by_data.items()}
        costs = {data: cost(own) for data, own in by_data.items()}
    return Row(
        cells[0].label,
        cells[0].editor,
        scores,
        costs,
        {data: tuple(sorted(cell.seed for cell in own)) for data, own in by_data.items()},
        balance([scores[data] for data in counted if data in scores]),
    )


def _unbalanced(row: Row) -> Row:
    return Row(row.label, row.editor, row.scores, row.costs, row.seeds, None)


def _failed(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield a note per row and data set on cases that could not be edited."""
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for cell in cells:
        failed, cases = counts.get((cell.label, cell.data), (0, 0))
        own = cell.summary
        counts[cell.label, cell.data] = (failed + own["failed"], cases + own["cases"])
    for (label, data), (failed, cases) in counts.items():
        if failed:
            yield f"{label} on {data}: {failed} of {cases} cases failed and are in no rate"


def _other_cases(cells: Sequence[Cell]) -> Iterator[str]:
    """Yield a note per data set on which rows were asked different cases."""
    asked: dict[tuple[str, int], dict[str, list[str]]] = {}
    for cell in cells:
        own = cell.run.config["data"]
        ids = f"{own.get('version')} {own.get('ids')}"
        asked.setdefault((cell.data, cell.seed), {}).setdefault(ids, []).append(cell.label)
    for (data, seed), sets in asked.items():
        if len(sets) > 1:
            parts = " | ".join(", ".join(labels) for labels in sets.values())
            yield f"{data}, seed {seed}: rows were asked different cases ({parts})"


def _fewer_seeds(rows: Sequence[Row]) -> Iterator[str]:
    """Yield a note per cell with fewer seeds than others of its data set."""
    most: dict[str, int] = {}
    for row in rows:
        for data, own in row.seeds.items():
            most[data] = max(most.get(data, 0), len(own))
    for row in rows:
        for data, own in row.seeds.items():
            if len(own) < most[data]:
                yield f"{row.label} on {data}: {len(own)} of {most[data]} seeds"
