"""`--fail-under METRIC=RATE`: thresholds that turn a measured summary into an exit code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from errata.cli import _output
from errata.cli._options import key_values
from errata.config import did_you_mean
from errata.errors import ConfigError, GateError

RATES = ("reliability", "generality", "locality", "average")


@dataclass(frozen=True)
class Gate:
    """One threshold.

    Attributes:
        metric: Name of a rate in the summary.
        least: Smallest value that passes.
    """

    metric: str
    least: float


def parse_gates(pairs: list[str] | None) -> list[Gate]:
    """Read `METRIC=RATE` strings before any work is done.

    Raises:
        ConfigError: If a metric is unknown or a rate is no number in [0, 1].
    """
    gates = []
    example = "reliability=0.95"
    for metric, text in key_values(pairs, "--fail-under", example).items():
        if metric not in RATES:
            raise ConfigError(
                f"--fail-under: unknown metric {metric!r}", did_you_mean(metric, RATES)
            )
        try:
            least = float(text)
        except ValueError:
            least = -1.0
        if not 0.0 <= least <= 1.0:
            raise ConfigError(
                f"--fail-under {metric}={text}: expected a rate between 0 and 1",
                f"Example: --fail-under {example}",
            )
        gates.append(Gate(metric, least))
    return gates


def check_gates(gates: list[Gate], summary: Mapping[str, Any]) -> None:
    """Compare a summary with the thresholds.

    Raises:
        GateError: If one is missed, or the rate could not be measured; names all of them.
    """
    missed = []
    for gate in gates:
        value = summary.get(gate.metric)
        if value is None or not value >= gate.least:
            missed.append(
                f"{_counted(gate.metric, summary)} is {_output.rate(value)}, "
                f"required {gate.least:g}"
            )
    if missed:
        raise GateError("gate missed: " + "; ".join(missed))


def _counted(metric: str, summary: Mapping[str, Any]) -> str:
    """Name a rate with the rank that counts as a hit in it: reliability is always of the first."""
    k = 1 if metric == "reliability" else summary.get("top_k")
    return metric if k is None or metric == "average" else f"{metric} (top {k})"
