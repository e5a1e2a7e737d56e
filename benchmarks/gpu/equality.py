"""The same on the GPU as on the CPU: patches of every editor, scores, undo, files.

How much rounding alone moves a patch differs between editors (Adam's first steps amplify it), so
the CPU says it itself: its float32 patch is held against its float64 one. The GPU may differ by
`FACTOR` times that from the CPU's float32 patch, or by `FLOOR` if that is more. TF32 is off.
"""

from __future__ import annotations

from typing import Any

from benchmarks.gpu import pocket
from benchmarks.gpu.run import Bench

FACTOR = 10.0
"""Times the CPU's own float32 rounding that the GPU's patch may differ by."""

FLOOR = 1e-4
"""Relative difference of patches, and absolute one of log-probabilities, that is allowed anyway:
sums of a few hundred float32 products in another order, through seven blocks."""

CASES = 2
"""Records that are edited; one in a rehearsal."""

WITH_STRATEGIES = ("memit+blue", "rome+rep")
"""Editors joined with a strategy that stand for the others, which take long."""


def float32(bench: Bench) -> None:
    """Compare every editor's patches and scores with the CPU's."""
    home, away = pocket.load("cpu"), pocket.load(bench.device)
    cases = pocket.records(1 if bench.small else CASES)
    base, base_away = pocket.logprobs(home, cases), pocket.logprobs(away, cases)
    gap = float((base - base_away).abs().max())
    bench.check("unedited scores", gap <= FLOOR, largest_gap=gap, allowed=FLOOR)
    for name in _names():
        with bench.guarded(name):
            _compare(bench, name, home, away, cases)


def _names() -> list[str]:
    plain = [name for name in pocket.editor_names() if "+" not in name]
    return [*plain, *WITH_STRATEGIES]


def _compare(bench: Bench, name: str, home: Any, away: Any, cases: list[Any]) -> None:
    groups = [list(case.edits) for case in cases]
    exact = pocket.load("cpu", "float64")
    before = pocket.weights(away)
    editors = [pocket.build(bench, name) for _ in range(3)]  # networks stay with their first model
    seconds_home, mine = bench.timed(lambda: editors[0].edit(home, groups))
    seconds_away, others = bench.timed(lambda: editors[1].edit(away, groups))
    good = pocket.unchanged(away, before)
    best = editors[2].edit(exact, groups)
    figures = {"patch": 0.0, "rounding": 0.0, "scores": 0.0, "score_rounding": 0.0, "moved": 0.0}
    for at, (own, other, ideal) in enumerate(zip(mine, others, best, strict=True)):
        asked = [cases[at]]
        home_scores = pocket.logprobs(home, asked, own)
        away_scores = pocket.logprobs(away, asked, other)
        loaded = pocket.logprobs(home, asked, pocket.saved(other, bench.out / "patch"))
        ideal_scores = pocket.logprobs(exact, asked, ideal)
        found = {
            "patch": pocket.difference(other, own),
            "rounding": pocket.difference(own, ideal),
            "scores": float((home_scores - away_scores).abs().max()),
            "score_rounding": float((home_scores - ideal_scores).abs().max()),
            "moved": float((loaded - away_scores).abs().max()),
        }
        figures = {key: max(value, found[key]) for key, value in figures.items()}
        good = good and pocket.unchanged(away, before)
    within = (
        figures["patch"] <= max(FLOOR, FACTOR * figures["rounding"])
        and figures["scores"] <= max(FLOOR, FACTOR * figures["score_rounding"])
        and figures["moved"] <= FLOOR
    )
    bench.check(
        name, good and within, undo_exact=good, **figures, cpu_s=round(seconds_home, 3),
        here_s=round(seconds_away, 3),
    )  # fmt: skip


def bfloat16(bench: Bench) -> None:
    """In bfloat16: every editor's edits take, and undo is exact to the bit."""
    lm = pocket.load(bench.device, "bfloat16")
    cases = pocket.records(1 if bench.small else CASES)
    groups = [list(case.edits) for case in cases]
    for name in _names():
        with bench.guarded(name):
            before, start = pocket.weights(lm), pocket.logprobs(lm, cases)
            editor = pocket.build(bench, name)
            seconds, patches = bench.timed(lambda editor=editor: editor.edit(lm, groups))
            was = now = 0.0
            for case, patch in zip(cases, patches, strict=True):
                edits = [type(case)(case.id, case.edits)]
                was += float(pocket.logprobs(lm, edits).mean())
                now += float(pocket.logprobs(lm, edits, patch).mean())
            exact = pocket.unchanged(lm, before)
            same = bool((pocket.logprobs(lm, cases) == start).all())
            takes = now > was or name in ("none", *pocket.UNTRAINED)
            bench.check(
                name, exact and same and takes, undo_exact=exact, scores_exact=same,
                logprob_before=was / len(cases), logprob_after=now / len(cases),
                seconds=round(seconds, 3),
            )  # fmt: skip
