"""How cases are grouped: one at a time, jointly in batches, or one after another in sequences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from errata.case import Case
from errata.config import did_you_mean
from errata.errors import ConfigError

T = TypeVar("T")
KINDS = ("single", "batch", "sequential")
_EXAMPLES = "Examples: single, batch:10, sequential:100"


@dataclass(frozen=True, slots=True)
class Regime:
    """How edits meet each other before they are scored.

    Attributes:
        kind: `single` (each case alone), `batch` (a unit is edited jointly) or `sequential` (a
            unit is edited one step after the other, each on top of the last).
        size: Number of edits after which a unit is complete.
    """

    kind: Literal["single", "batch", "sequential"]
    size: int = 1

    def __str__(self) -> str:
        return self.kind if self.kind == "single" else f"{self.kind}:{self.size}"


def parse_regime(text: str) -> Regime:
    """Read `single`, `batch:N` or `sequential:N`.

    Raises:
        ConfigError: If it is none of these or N is not a positive whole number.
    """
    kind, colon, number = text.strip().partition(":")
    if kind == "single" and not colon:
        return Regime("single")
    if kind not in {"batch", "sequential"}:
        raise ConfigError(f"unknown regime {text!r}", f"{did_you_mean(kind, KINDS)} {_EXAMPLES}")
    if not number.isdecimal() or int(number) < 1:
        raise ConfigError(f"regime {text!r}: expected {kind}:N with N at least 1", _EXAMPLES)
    return Regime("batch" if kind == "batch" else "sequential", int(number))


def units_of(
    cases: Sequence[Case], regime: Regime, drop_partial: bool = False
) -> list[tuple[Case, ...]]:
    """Split cases into consecutive units of at least `size` edits.

    A case with several edits is never split, so that a unit may hold more edits than asked for. In
    the `single` regime every case is a unit.

    Args:
        cases: In order.
        regime: The regime.
        drop_partial: Leave out a last unit with fewer edits than asked for, as the published
            protocol does.
    """
    units: list[tuple[Case, ...]] = []
    unit: list[Case] = []
    for case in cases:
        unit.append(case)
        if regime.kind == "single" or sum(len(c.edits) for c in unit) >= regime.size:
            units.append(tuple(unit))
            unit = []
    if unit and not drop_partial:
        units.append(tuple(unit))
    return units


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield consecutive slices of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]
