"""Rates and their confidence intervals from one table of sums and counts per record."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

LEVEL = 95.0
"""Percent covered by an interval."""

_BLOCK = 64  # resamples computed together: bounds memory at 64 x records
_KEPT = 2_000_000  # numbers of draws that are remembered: 16 MB


@dataclass(frozen=True)
class Table:
    """Per record and column, the sum of the scores and their number.

    Attributes:
        columns: (metric, sub-metric) of each column.
        sums: `[records, columns]`.
        counts: `[records, columns]`.
    """

    columns: tuple[tuple[str, str], ...]
    sums: Float[np.ndarray, "R C"]
    counts: Float[np.ndarray, "R C"]

    @classmethod
    def of(cls, rows: Sequence[Mapping[tuple[str, str], Sequence[float]]]) -> Table:
        """Build the table from the scores of each record."""
        columns = tuple(sorted({column for row in rows for column in row}))
        sums = np.zeros((len(rows), len(columns)))
        counts = np.zeros((len(rows), len(columns)))
        for r, row in enumerate(rows):
            for c, column in enumerate(columns):
                scores = row.get(column, ())
                sums[r, c] = math.fsum(scores)
                counts[r, c] = len(scores)
        return cls(columns, sums, counts)

    def rates(self) -> dict[str, float]:
        """Return every metric: mean over the items of each sub-metric, then over sub-metrics."""
        with np.errstate(invalid="ignore", divide="ignore"):
            means = self.sums.sum(0) / self.counts.sum(0)
        return {metric: float(value[0]) for metric, value in self._metrics(means[None, :])}

    def resampled(self, times: int, seed: int) -> dict[str, Float[np.ndarray, " times"]]:
        """Return every metric of `times` resamples of the records, drawn with replacement."""
        means = []
        for weights in _draws(len(self.sums), times, seed):
            with np.errstate(invalid="ignore", divide="ignore"):
                means.append((weights @ self.sums) / (weights @ self.counts))
        return dict(self._metrics(np.concatenate(means))) if means else {}

    def _metrics(
        self, means: Float[np.ndarray, "B C"]
    ) -> Iterator[tuple[str, Float[np.ndarray, " B"]]]:
        found: dict[str, np.ndarray] = {}
        for metric in dict.fromkeys(metric for metric, _ in self.columns):
            own = means[:, [c for c, (m, _) in enumerate(self.columns) if m == metric]]
            found[metric] = _row_means(own)
        yield from found.items()
        main = [found[m] for m in ("reliability", "generality", "locality") if m in found]
        if main:
            yield "average", _row_means(np.stack(main, 1))
        if "generality" in found and "locality" in found:
            yield "f1", _harmonic(np.stack([found["generality"], found["locality"]], 1))
        for prefix in ("", "before."):
            names = [prefix + name for name in ("ES", "PS", "NS")]
            if all(name in found for name in names):
                yield f"{prefix}S", _harmonic(np.stack([found[name] for name in names], 1))


def intervals(table: Table, times: int, seed: int) -> dict[str, list[float]]:
    """Return the 95 % percentile interval of every metric, over resamples that have items.

    A metric that only one record has gets none: that its resamples are equal is not certainty.
    """
    if not times or len(table.sums) < 2:
        return {}
    alone = _of_one_record(table)
    tail = (100.0 - LEVEL) / 2
    found = {}
    for metric, values in table.resampled(times, seed).items():
        values = values[~np.isnan(values)]
        if len(values) and metric not in alone:
            low, high = np.percentile(values, [tail, 100.0 - tail])
            found[metric] = [float(low), float(high)]
    return found


def _of_one_record(table: Table) -> set[str]:
    """Return the metrics that are made of the scores of a single record."""
    records: dict[str, np.ndarray] = {}
    for column, (metric, _) in enumerate(table.columns):
        there = table.counts[:, column] > 0
        records[metric] = records.get(metric, np.zeros(len(there), bool)) | there
    return {metric for metric, there in records.items() if there.sum() < 2}


def _draws(n: int, times: int, seed: int) -> Iterable[Int[np.ndarray, "b n"]]:
    """Return how often each record is in each resample, some resamples at a time.

    Tables of one length and seed have the same: a page asks for dozens.
    """
    return _kept_draws(n, times, seed) if n * times <= _KEPT else _drawn(n, times, seed)


@lru_cache(maxsize=8)
def _kept_draws(n: int, times: int, seed: int) -> tuple[Int[np.ndarray, "b n"], ...]:
    return tuple(_drawn(n, times, seed))


def _drawn(n: int, times: int, seed: int) -> Iterator[Int[np.ndarray, "b n"]]:
    rng = np.random.default_rng(seed)
    for start in range(0, times, _BLOCK):
        several = range(min(_BLOCK, times - start))
        yield np.stack([np.bincount(rng.integers(0, n, n), minlength=n) for _ in several])


def _row_means(values: Float[np.ndarray, "B C"]) -> Float[np.ndarray, " B"]:
    """Mean over the columns that are there; NaN where none is."""
    there = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(there, values, 0.0).sum(1) / there.sum(1)


def _harmonic(values: Float[np.ndarray, "B C"]) -> Float[np.ndarray, " B"]:
    """Harmonic mean over columns; 0 where one of them is 0."""
    with np.errstate(divide="ignore"):
        return values.shape[1] / (1.0 / values).sum(1)
