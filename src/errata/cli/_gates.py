"""Thresholds that turn what was measured into an exit code.

`--fail-under METRIC=RATE` is about rates that should be high, `--fail-over METRIC=VALUE` about what
an edit moves beside itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from errata.cli import _output
from errata.cli._options import key_values
from errata.config import did_you_mean
from errata.errors import ConfigError, GateError
from errata.evaluation.long import NAMES as LONG

if TYPE_CHECKING:
    from errata.case import Case

RATES = ("reliability", "generality", "locality", "average", "f1")
"""Rates of every evaluation."""
ALSO = ("generality_top1", "locality_top1", "locality_gold")
COMPARED = ("ES", "PS", "NS", "S", "EA", "PA", "NA")
"""Rates of data sets that compare two answers, as CounterFact does."""
WILD = ("wild.reliability", "wild.generality", "wild.locality")
JUDGED = ("judge.reliability", "judge.generality")
SAMPLED = ("fluency", "consistency")
RETENTION = "retention"
BEYOND = ("choice", "negation")
"""Rates of questions that compare answers; of leakage less is better."""
BITS = ("fluency",)
"""Metrics that are no rates: any threshold of at least 0."""


@dataclass(frozen=True)
class Gate:
    """One threshold.

    Attributes:
        metric: Name of a metric; see `metrics_of`.
        least: Smallest value that passes.
    """

    metric: str
    least: float


def parse_gates(pairs: list[str] | None) -> list[Gate]:
    """Read `METRIC=RATE` strings before any work is done; `check_names` follows with the data.

    Raises:
        ConfigError: If a rate is no number in [0, 1].
    """
    gates = []
    example = "reliability=0.95"
    for metric, text in key_values(pairs, "--fail-under", example).items():
        try:
            least = float(text)
        except ValueError:
            least = math.nan
        if not 0.0 <= least <= (math.inf if metric in BITS else 1.0):
            raise ConfigError(
                f"--fail-under {metric}={text}: expected a rate between 0 and 1",
                f"Example: --fail-under {example}",
            )
        gates.append(Gate(metric, least))
    return gates


def check_names(gates: Iterable[Gate], cases: Iterable[Case]) -> None:
    """Refuse a gate on what these cases do not measure.

    Raises:
        ConfigError: Names the metrics that come close.
    """
    gates = list(gates)
    if not gates:
        return
    known = known_metrics(cases)
    for gate in gates:
        if gate.metric not in known:
            raise ConfigError(
                f"--fail-under: unknown metric {gate.metric!r}", did_you_mean(gate.metric, known)
            )


def known_metrics(cases: Iterable[Case]) -> set[str]:
    """Return the names that a gate on these cases may have."""
    known = {*RATES, *ALSO, *WILD, *JUDGED, *LONG, *SAMPLED, RETENTION}
    for case in cases:
        if case.exact:
            known.add("success")
        for probe in case.probes:
            known |= {probe.name, f"{probe.kind}.{probe.name}"}
            known |= {probe.kind} & set(BEYOND)
            known |= {f"{probe.kind}.{flag}" for flag in probe.criteria}
            if probe.foil:
                known |= set(COMPARED)
    return known


def metrics_of(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """Return every metric of a summary by the name that gates use.

    `generality.rephrase` is the rate of the probes of one name or criterion, `rephrase` the same
    where only one kind has probes of that name; tests of a suite go by their own name.
    """
    found: dict[str, float | None] = {}
    by = summary.get("by") or {}
    for group in ("criteria", "name"):
        for kind, members in (by.get(group) or {}).items():
            for name, entry in members.items():
                found[f"{kind}.{name}"] = entry["mean"]
    names = [(kind, name) for kind, own in (by.get("name") or {}).items() for name in own]
    for kind, name in names:
        if sum(name == other for _, other in names) == 1:
            found[name] = found[f"{kind}.{name}"]
    found |= {name: entry["mean"] for name, entry in (by.get("test") or {}).items()}
    found |= {name: (summary.get("counterfact") or {}).get(name) for name in COMPARED}
    found |= {name: (summary.get("beyond") or {}).get(name) for name in BEYOND}
    wild = summary.get("wild") or {}
    found |= {name: wild.get(name.removeprefix("wild.")) for name in WILD}
    found |= {n: (wild.get("judge") or {}).get(n.removeprefix("judge.")) for n in JUDGED}
    for name in LONG:
        _, metric, kind = name.split(".")
        found[name] = ((summary.get("long") or {}).get(kind) or {}).get(metric)
    found[RETENTION] = (summary.get("retention") or {}).get("final")
    found |= {name: (summary.get("also") or {}).get(name) for name in ALSO}
    found |= {name: summary.get(name) for name in (*SAMPLED, *RATES)}
    return found


def check_gates(
    gates: list[Gate], summary: Mapping[str, Any], failed: int = 0, required: int | None = None
) -> None:
    """Compare a summary with the thresholds.

    Args:
        gates: The thresholds.
        summary: Summary of an evaluation.
        failed: Cases that could not be asked and so are in no rate: with a gate, one is too many.
        required: Questions that were not passed, where all of them have to be.

    Raises:
        GateError: If one is missed, or the rate could not be measured; names all of them.
    """
    missed = []
    metrics = metrics_of(summary) if gates else {}
    for gate in gates:
        value = metrics.get(gate.metric)
        if value is None or not value >= gate.least:
            name = _counted(gate.metric, summary)
            beside = _beside(gate.metric, metrics)
            missed.append(f"{name} is {_output.rate(value)}, required {gate.least:g}{beside}")
    if failed and (gates or required is not None):
        missed.append(f"{_output.counted(failed, 'case')} could not be asked")
    if required:
        missed.append(f"{_output.counted(required, 'question')} failed, required none")
    if missed:
        raise GateError("gate missed: " + "; ".join(missed))


def _beside(metric: str, metrics: Mapping[str, float | None]) -> str:
    """Name the stricter rates beside one that forgives a neighbour's answer for being second."""
    names = {"generality": ("generality_top1", "PS"), "locality": ("locality_top1", "NS")}
    told = [
        f"{'top 1' if name.endswith('_top1') else name} {_output.rate(value)}"
        for name in names.get(metric, ())
        if (value := metrics.get(name)) is not None
    ]
    return f" ({', '.join(told)})" if told else ""


def _counted(metric: str, summary: Mapping[str, Any]) -> str:
    """Name a rate with the rank that counts as a hit in it: reliability is always of the first."""
    k = 1 if metric == "reliability" else summary.get("top_k")
    counted = metric.partition(".")[0] in {"reliability", "generality", "locality"}
    return f"{metric} (top {k})" if counted and k is not None else metric


# ---------------------------------------------------------------------- what else moved

MOVED = ("neighbours", "bare", "sentences", "sentences_max")
"""What `--fail-over` takes: shares of neighbours and bare subjects that moved, and KL in nats."""


def parse_limits(pairs: list[str] | None, asked: bool = True) -> list[Gate]:
    """Read `METRIC=VALUE` strings of `--fail-over`; `least` is then the largest value that passes.

    Args:
        pairs: What was typed.
        asked: Whether what else moved is asked at all.

    Raises:
        ConfigError: If a metric is unknown, a value no number from 0 on, or nothing is asked.
    """
    limits = []
    example = "neighbours=0.1"
    for metric, text in key_values(pairs, "--fail-over", example).items():
        if metric not in MOVED:
            raise ConfigError(
                f"--fail-over: unknown metric {metric!r}", did_you_mean(metric, MOVED)
            )
        try:
            most = float(text)
        except ValueError:
            most = math.nan
        if not 0.0 <= most < math.inf or (most > 1 and not metric.startswith("sentences")):
            raise ConfigError(
                f"--fail-over {metric}={text}: expected "
                + (
                    "a number from 0 on"
                    if metric.startswith("sentences")
                    else "a share from 0 to 1"
                ),
                f"Example: --fail-over {example}",
            )
        limits.append(Gate(metric, most))
    if limits and not asked:
        raise ConfigError(
            "--fail-over is about what --no-neighbours leaves out", "Leave out one of the two."
        )
    return limits


def check_limits(
    limits: list[Gate], metrics: Mapping[str, float | None], missed: Iterable[str] = ()
) -> None:
    """Compare what else moved with the largest values allowed.

    Args:
        limits: The largest values.
        metrics: What was measured, by name.
        missed: What else is to be failed for, as said to the user.

    Raises:
        GateError: If one is exceeded, or could not be measured; names all of them.
    """
    found = list(missed)
    for limit in limits:
        value = metrics.get(limit.metric)
        if value is None:
            found.append(f"{limit.metric} could not be measured, allowed {limit.least:g}")
        elif not value <= limit.least:
            found.append(f"{limit.metric} is {value:.3g}, allowed {limit.least:g}")
    if found:
        raise GateError("; ".join(found) if not limits else "gate missed: " + "; ".join(found))
