"""Means and intervals of results: several seeds, cases clustered by fact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Float

DRAWS = 4000
Values = Sequence[float | None]


def mean(values: Iterable[float | None]) -> float:
    """Return the mean of those that are there."""
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else float("nan")


def joined(columns: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Return the mean of each case over several runs."""
    return [
        None if any(v is None for v in case) else sum(v for v in case if v is not None) / len(case)
        for case in zip(*columns, strict=True)
    ]


@dataclass(frozen=True)
class Estimate:
    """A rate in percent with its 95 % interval, and what seeds add.

    Attributes:
        mean: Mean over cases and seeds.
        low: Lower end of the interval (bootstrap over facts).
        high: Upper end.
        seeds: Mean of every seed.
    """

    mean: float
    low: float
    high: float
    seeds: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"

    @property
    def signed(self) -> str:
        """The estimate of a difference, with its sign."""
        return f"{self.mean:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def estimate(
    runs: Sequence[Values], facts: Sequence[str], chosen: Sequence[bool] | None = None
) -> Estimate:
    """Return the mean over runs and cases; whole facts are drawn, as their cases hang together.

    Args:
        runs: Scores of every case, one sequence per seed.
        facts: Fact of every case.
        chosen: Cases that count; None: all.
    """
    keep = [True] * len(facts) if chosen is None else list(chosen)
    values = joined(runs)
    at = [i for i, v in enumerate(values) if keep[i] and v is not None]
    if not at:
        return Estimate(float("nan"), float("nan"), float("nan"), ())
    names, owner = np.unique([facts[i] for i in at], return_inverse=True)
    score = np.array([values[i] for i in at], dtype=float)
    total = np.bincount(owner, score, len(names))
    count = np.bincount(owner, minlength=len(names)).astype(float)
    drawn = _drawn(len(names))
    means = (drawn @ total) / (drawn @ count)
    low, high = np.percentile(means, [2.5, 97.5])
    seeds = tuple(float(np.mean([run[i] for i in at])) for run in runs)  # type: ignore[arg-type]
    return Estimate(float(score.mean()), float(low), float(high), seeds)


@lru_cache(maxsize=4)
def _drawn(facts: int) -> Float[np.ndarray, "draws facts"]:
    """Return how often each fact is drawn; a page asks for hundreds of estimates of as many."""
    draws = np.random.default_rng(0).integers(0, facts, (DRAWS, facts))
    cells = (draws + facts * np.arange(DRAWS)[:, None]).ravel()
    return np.bincount(cells, minlength=DRAWS * facts).reshape(DRAWS, facts).astype(float)


def pooled(runs: Sequence[Values], facts: Sequence[Sequence[str]]) -> Estimate:
    """Return the mean over the cases of runs that do not hold the same cases.

    Whole facts are drawn, with their cases of all runs.

    Args:
        runs: Scores of every case, one sequence per seed.
        facts: Fact of every case, likewise.
    """
    together = estimate([[v for run in runs for v in run]], [f for own in facts for f in own])
    return replace(together, seeds=tuple(mean(run) for run in runs))


def gaps(left: Sequence[Values], right: Sequence[Values]) -> list[list[float | None]]:
    """Return the differences of two editors over the same cases, seed by seed."""
    return [
        [None if a is None or b is None else a - b for a, b in zip(x, y, strict=True)]
        for x, y in zip(left, right, strict=False)
    ]


def difference(
    left: Sequence[Values],
    right: Sequence[Values],
    facts: Sequence[str],
    chosen: Sequence[bool] | None = None,
) -> Estimate:
    """Return the paired difference of two editors over the same cases, seed by seed."""
    return estimate(gaps(left, right), facts, chosen)


def at_locality(points: Mapping[str, Mapping[str, Any]], locality: float, rate: str) -> float:
    """Return a rate at a given top-1 locality, read off a frontier between its two neighbours.

    Args:
        points: Strength -> rates.
        locality: In percent.
        rate: Which rate.

    Returns:
        NaN where the frontier does not reach that locality.
    """
    line = sorted((p["loc1"], p[rate]) for p in points.values())
    for (x0, y0), (x1, y1) in pairwise(line):
        if x0 <= locality <= x1:
            share = (locality - x0) / (x1 - x0) if x1 > x0 else 0.0
            return y0 + share * (y1 - y0)
    return float("nan")
