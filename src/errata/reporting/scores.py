"""Rates of a row with intervals: over the cases of a run, and over seeds where there are several.

A value is the mean over seeds of what each run reached. Its interval is the 95 % percentile
interval of a bootstrap: seeds are drawn with replacement, then the cases of each.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from errata.evaluation.bootstrap import LEVEL, Table
from errata.reporting.collect import Cell
from errata.reporting.columns import at_the_end, is_column, scores_in


@dataclass(frozen=True)
class Score:
    """One number of a table.

    Attributes:
        value: The number; a rate in [0, 1] but for fluency and perplexity.
        samples: Its resamples; empty if none were drawn.
        cases: Cases it rests on, over all seeds.
        seeds: Number of runs.
    """

    value: float
    samples: Float[np.ndarray, " times"]
    cases: int
    seeds: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval; None if nothing was resampled, or there is a single case."""
        known = self.samples[~np.isnan(self.samples)]
        if not len(known) or self.cases < 2:
            return None
        tail = (100.0 - LEVEL) / 2
        low, high = np.percentile(known, [tail, 100.0 - tail])
        return float(low), float(high)

    @property
    def half_width(self) -> float | None:
        """Half the width of the interval: what stands behind `±`."""
        found = self.interval
        return None if found is None else (found[1] - found[0]) / 2


@dataclass(frozen=True)
class Cost:
    """What an edit takes.

    Attributes:
        edits: Number of edits.
        seconds: Wall seconds of editing, in all.
        bytes: Bytes of all patches; None if the records do not say.
    """

    edits: int
    seconds: float
    bytes: int | None

    @property
    def seconds_per_edit(self) -> float | None:
        """Wall seconds of an edit."""
        return self.seconds / self.edits if self.edits else None

    @property
    def bytes_per_edit(self) -> float | None:
        """Bytes of an edit."""
        return self.bytes / self.edits if self.edits and self.bytes is not None else None


def score(cells: Sequence[Cell], times: int, seed: int) -> dict[str, Score]:
    """Return the metrics of one row on one data set, by name.

    Args:
        cells: Its runs, one per seed.
        times: Resamples; 0 for none.
        seed: Seed of the resampling.
    """
    tables = [Table.of([scores_in(record) for record in _good(cell)]) for cell in cells]
    rates = [table.rates() if len(table.sums) else {} for table in tables]
    known = [m for m in rates[0] if is_column(m) and all(m in own for own in rates)]
    samples = _samples(cells, tables, known, times, seed)
    cases = sum(len(table.sums) for table in tables)
    ends = [at_the_end(cell.summary) for cell in cells]
    for metric in ends[0]:
        if all(metric in own for own in ends):
            rates = [{**rate, **end} for rate, end in zip(rates, ends, strict=True)]
            samples[metric] = np.zeros(0)
            known.append(metric)
    return {
        metric: Score(
            float(np.mean([own[metric] for own in rates])), samples[metric], cases, len(cells)
        )
        for metric in known
    }


def _good(cell: Cell) -> list[Mapping]:
    return [record for record in cell.run.records if record.get("error") is None]


def _samples(
    cells: Sequence[Cell], tables: Sequence[Table], metrics: Sequence[str], times: int, seed: int
) -> dict[str, Float[np.ndarray, " times"]]:
    """Return resamples of the mean over seeds: of seeds first, then of the cases of each."""
    if not times:
        return {metric: np.zeros(0) for metric in metrics}
    runs = len(tables)
    rng = np.random.default_rng(_seed_of(cells, seed, -1))
    chosen = rng.integers(0, runs, (times, runs))
    found = {metric: np.zeros(times) for metric in metrics}
    for slot in range(runs):
        for number, table in enumerate(tables):
            here = chosen[:, slot] == number
            if not here.any():
                continue
            drawn = table.resampled(int(here.sum()), _seed_of(cells, seed, slot * runs + number))
            for metric in metrics:
                found[metric][here] += drawn[metric] / runs
    return found


def _seed_of(cells: Sequence[Cell], seed: int, number: int) -> int:
    """Return a seed of its own for each row, data set and draw, the same in every process."""
    first = cells[0]
    text = f"{seed} {number} {first.model} {first.label} {first.data}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def cost(cells: Sequence[Cell]) -> Cost:
    """Return what the edits of these runs took together; those of hops are left out."""
    edits, seconds, size = 0, 0.0, 0
    complete = True
    for cell in cells:
        own = cell.summary
        edits += int(own["edits"])
        seconds += float(own["seconds"]["edit"])
        found = own.get("bytes")
        complete &= found is not None
        size += found["patches"] if found is not None else 0
    return Cost(edits, seconds, size if complete else None)


@dataclass(frozen=True)
class Balance:
    """F1 of a row: the harmonic mean of mean generality and mean locality.

    Attributes:
        generality: Mean over the data sets that count.
        locality: Mean over those of them that ask about locality.
        f1: 2 G L / (G + L).
    """

    generality: Score
    locality: Score
    f1: Score


def balance(scores: Sequence[Mapping[str, Score]]) -> Balance | None:
    """Return G, L and F1 over data sets; None if there is nothing of one kind."""
    means = {}
    for metric in ("generality", "locality"):
        own = [found[metric] for found in scores if metric in found]
        if not own:
            return None
        means[metric] = mean(own)
    g, l = means["generality"], means["locality"]  # noqa: E741 -- as in the formula
    both = Score(
        harmonic(g.value, l.value),
        np.array([harmonic(a, b) for a, b in zip(g.samples, l.samples, strict=True)]),
        g.cases,
        g.seeds,
    )
    return Balance(g, l, both)


def mean(scores: Sequence[Score]) -> Score:
    """Return the mean of scores that were measured on different cases."""
    return Score(
        float(np.mean([own.value for own in scores])),
        np.mean([own.samples for own in scores], axis=0),
        sum(own.cases for own in scores),
        max(own.seeds for own in scores),
    )


def harmonic(generality: float, locality: float) -> float:
    """Return 2 G L / (G + L); 0 where one of them is 0."""
    if math.isnan(generality) or math.isnan(locality):
        return math.nan
    if generality <= 0 or locality <= 0:
        return 0.0
    return 2 * generality * locality / (generality + locality)
