"""Evaluations on the GPU against the same on the CPU: rates, and every single answer."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu import pocket
from benchmarks.gpu.run import Bench

EDITORS = ("none", "rome", "ft", "ibke", "mend", "serac")

RATES = ("reliability", "generality", "locality")

ANSWERS = 0.02
"""Share of questions that may be answered otherwise: only ties within rounding can tip over."""


def run(bench: Bench) -> None:
    """Evaluate six editors on records of the pocket world on both devices."""
    import errata

    cases = pocket.records(4 if bench.small else 40)
    home, away = pocket.load("cpu"), pocket.load(bench.device)
    for name in EDITORS:
        with bench.guarded(name):
            found = {}
            for where, lm in (("cpu", home), ("here", away)):
                seconds, result = bench.timed(
                    lambda lm=lm, name=name: errata.evaluate(
                        lm, pocket.build(bench, name), cases, bootstrap=0
                    )
                )
                found[where] = (seconds, result)
            (slow, mine), (fast, other) = found["cpu"], found["here"]
            pairs = list(zip(_answers(mine), _answers(other), strict=True))
            share = sum(a != b for a, b in pairs) / len(pairs)
            bench.check(
                name, share <= ANSWERS, questions=len(pairs), answered_otherwise=share,
                cpu={rate: mine.summary[rate] for rate in RATES},
                here={rate: other.summary[rate] for rate in RATES},
                cpu_s=round(slow, 2), here_s=round(fast, 2),
            )  # fmt: skip


def _answers(result: Any) -> list[Any]:
    return [q["argmax"] for record in result.records for q in record["questions"]]
