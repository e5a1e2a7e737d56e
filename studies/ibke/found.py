"""What the kept records say: rates, paired differences, and generality at equal locality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from studies.ibke.plan import NETWORKS, REFERENCE
from studies.ibke.run import key_of, read
from studies.real.found import Rate, Rates, Row, bounds, rows_of

BESIDE = ("none", "rome", "memit_clamped", "alphaedit", "ft")
"""Rows of `studies.real` (SmolLM2, CounterFact), by the key of their cells."""

Found = Mapping[str, Any]
Record = Mapping[str, Any]


def of_part(part: str) -> dict[str, dict[str, Any]]:
    """Return what is kept of a part's networks, by name, in the order of the plan."""
    names = [name for name, own in NETWORKS.items() if own.part == part]
    return {name: found for name in names if (found := read(name)) is not None}


def direct() -> dict[str, Row]:
    """Return the rows that stand beside, by key."""
    found = {}
    for row in rows_of("single", "smollm2", "counterfact"):
        key = row.cell.name.removeprefix("smollm2_counterfact_").removesuffix(f"_{row.cell.first}")
        found[key] = row
    return {key: found[key] for key in BESIDE if key in found}


def good(records: Sequence[Record]) -> list[Record]:
    """Return the records that could be edited."""
    return [record for record in records if record["error"] is None]


def at_strength(found: Found, strength: str) -> list[Record]:
    """Return the records at a strength of the update; `1`: as trained."""
    return found["records"] if strength == "1" else found["strengths"][strength]


def side(gap: Rate) -> str:
    """Say whether a difference is told apart from none."""
    assert gap.low is not None
    assert gap.high is not None
    return "lower" if gap.high < 0 else "higher" if gap.low > 0 else "not told apart"


GENERALITY, LOCALITY = "generality_top1", "locality_top1"


class Frontier:
    """Generality against locality of networks as their update grows, also of drawn records.

    Args:
        found: What is kept of them.
        rounds: Updates in rounds, from no update on; else one update.
    """

    def __init__(self, found: Found, rounds: bool = False) -> None:
        if rounds:
            points = {"0": at_strength(found, "0"), **found["rounds"]}
        else:
            strengths = sorted([*found.get("strengths", {}), "1"], key=float)
            points = {strength: at_strength(found, strength) for strength in strengths}
        self.strengths = list(points)
        self.rates = [Rates(good(records)) for records in points.values()]

    def range(self) -> tuple[float, float]:
        """Return the lowest and the highest locality that was measured."""
        values = [rates.rates[LOCALITY] for rates in self.rates]
        return min(values), max(values)

    def at(self, locality: float) -> tuple[float, np.ndarray]:
        """Return generality at a locality, between the two strengths beside it, and its draws."""
        x = np.array([[r.rates[LOCALITY], *r.drawn[LOCALITY]] for r in self.rates])
        y = np.array([[r.rates[GENERALITY], *r.drawn[GENERALITY]] for r in self.rates])
        values = np.array([_between(locality, a, b) for a, b in zip(x.T, y.T, strict=True)])
        return float(values[0]), values[1:]


def _between(level: float, x: np.ndarray, y: np.ndarray) -> float:
    order = np.argsort(x, kind="stable")
    return float(np.interp(level, x[order], y[order]))


def at_equal(
    one: Found, two: Found, rounds: bool = False
) -> tuple[float, Rate, Rate, Rate] | None:  # fmt: skip
    """Compare generality where locality is equal: at the higher of the two as they were trained.

    In rounds: at the higher of the two where both go as REFERENCE says.

    Returns:
        That locality, both generalities, and their paired difference; None where one of them
        was measured at no strength that reaches it.
    """
    left, right = Frontier(one, rounds), Frontier(two, rounds)
    usual = key_of(*REFERENCE) if rounds else "1"
    level = max(f.rates[f.strengths.index(usual)].rates[LOCALITY] for f in (left, right))
    if any(not low <= level <= high for low, high in (left.range(), right.range())):
        return None
    (a, drawn_a), (b, drawn_b) = left.at(level), right.at(level)
    return (
        level, Rate(a, *bounds(drawn_a)), Rate(b, *bounds(drawn_b)),
        Rate(a - b, *bounds(drawn_a - drawn_b)),
    )  # fmt: skip
