"""Means, intervals and frontiers of studies against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from studies.common.statistics import at_locality, difference, estimate


def test_mean_over_seeds_and_cases() -> None:
    found = estimate([[100, 0, None], [50, 50, 10]], ["a", "b", "c"])
    assert found.mean == 50  # the third case is missing for one seed, so for all
    assert found.seeds == (50, 50)


def test_only_chosen_cases_count() -> None:
    assert estimate([[100, 0, 40]], ["a", "b", "c"], [True, False, True]).mean == 70


def test_nothing_to_count_is_not_a_number() -> None:
    assert math.isnan(estimate([[None]], ["a"]).mean)


def test_facts_are_drawn_whole() -> None:
    """Cases of one fact that always agree are worth one case, not many."""
    rng = np.random.default_rng(1)
    facts = 200
    values = (rng.random(facts) < 0.5) * 100.0
    once = estimate([values.tolist()], [str(i) for i in range(facts)])
    fivefold = estimate([np.repeat(values, 5).tolist()], [str(i // 5) for i in range(5 * facts)])
    assert fivefold.high - fivefold.low == pytest.approx(once.high - once.low, rel=0.05)


def test_interval_is_that_of_the_normal_distribution() -> None:
    rng = np.random.default_rng(2)
    values = rng.normal(50, 10, 2000)
    found = estimate([values.tolist()], [str(i) for i in range(2000)])
    half = 1.96 * values.std() / 2000**0.5
    assert found.high - found.mean == pytest.approx(half, rel=0.08)
    assert found.mean - found.low == pytest.approx(half, rel=0.08)


def test_differences_are_paired() -> None:
    left, right = [[80, 20, 60]], [[70, 10, 50]]
    found = difference(left, right, ["a", "b", "c"])
    assert (found.mean, found.low, found.high) == (10, 10, 10)


def test_generality_is_read_between_two_strengths() -> None:
    points = {
        "0.5": {"loc1": 99.0, "gen1": 40.0},
        "1": {"loc1": 95.0, "gen1": 60.0},
        "2": {"loc1": 85.0, "gen1": 64.0},
    }
    assert at_locality(points, 97.0, "gen1") == pytest.approx(50.0)
    assert at_locality(points, 90.0, "gen1") == pytest.approx(62.0)
    assert math.isnan(at_locality(points, 99.5, "gen1"))
    assert math.isnan(at_locality(points, 80.0, "gen1"))
