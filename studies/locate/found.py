"""The results of the study, with means and intervals, and how they are written."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from studies.common import results
from studies.common.statistics import Estimate, Values, gaps, pooled
from studies.locate import plan
from studies.locate.data import SEEDS
from studies.locate.run import RESULTS, read

COLUMNS = (("rel", "Rel"), ("gen", "Gen"), ("loc", "Loc"))
TITLES = {
    "none": "no edit", "rome": "ROME", "r_rome": "R-ROME", "p_rome": "p-ROME", "memit": "MEMIT",
    "memit_seq": "MEMIT-seq", "emmet": "EMMET", "pmet": "PMET", "alphaedit": "AlphaEdit",
    "rect": "RECT", "prune": "PRUNE", "blue": "BLUE", "rep": "REP",
}  # fmt: skip
Case = Mapping[str, Any]
Test = Callable[[Case], bool]


def title(editor: str) -> str:
    """Return how an editor is called in tables."""
    if editor == plan.RELEASED:
        return f"{title('memit+rep')} as released"
    for name, settings in ((plan.stronger_label(e), s) for e, s in _stronger()):
        if editor == name:
            ((setting, value),) = settings.items()
            return f"{title(name.removesuffix('_restrained'))}, {setting} {value:,g}"
    return "+".join(TITLES[part] for part in editor.split("+"))


def _stronger() -> list[tuple[str, dict[str, Any]]]:
    return [
        (editor, settings)
        for host, settings in plan.STRONGER.items()
        for editor in plan.pair((host,), "blue")
    ]


class Results:
    """Everything the page is made of, read once."""

    def __init__(self) -> None:
        found = read("cases")
        if found is None:
            raise SystemExit(f"no results in {RESULTS}; make them: python -m studies.locate run")
        self.cases: dict[str, list[Case]] = found
        self.names = set(results.names(RESULTS))
        self._read: dict[str, dict[str, Any]] = {}

    def of(self, part: str, label: str) -> list[dict[str, Any]]:
        """Return the results of one cell, one per finished seed."""
        found = []
        for seed in SEEDS:
            name = plan.Run(part, label, "", seed, "", 0).name
            if name in self.names:
                self._read.setdefault(name, read(name) or {})
                found.append(self._read[name])
        return found

    def known(self, run: Mapping[str, Any]) -> list[Case]:
        """Return what is known of the cases of a run."""
        return self.cases[str(run["run"]["seed"])][: run["run"]["edits"]]

    def seeds(self, part: str, label: str) -> set[int]:
        """Return the seeds of a cell that are finished."""
        return {run["run"]["seed"] for run in self.of(part, label)}

    def rate(
        self,
        part: str,
        label: str,
        column: str,
        test: Test | None = None,
        seeds: Collection[int] = SEEDS,
    ) -> Estimate | None:
        """Return a rate with its interval; None if no seed is finished."""
        runs = [run for run in self.of(part, label) if run["run"]["seed"] in seeds]
        return self._pooled(runs, [run["cases"][column] for run in runs], test)

    def gap(
        self, left: tuple[str, str], right: tuple[str, str], column: str, test: Test | None = None
    ) -> Estimate | None:
        """Return the paired difference of two cells over the seeds that both have."""
        pairs = [
            (a, b)
            for a in self.of(*left)
            for b in self.of(*right)
            if a["run"]["seed"] == b["run"]["seed"]
        ]
        values = [_both(a, b, column) for a, b in pairs]
        return self._pooled([a for a, _ in pairs], values, test)

    def _pooled(
        self, runs: Sequence[Mapping[str, Any]], values: Sequence[Values], test: Test | None
    ) -> Estimate | None:
        if not runs:
            return None
        cases = [self.known(run) for run in runs]
        if test is not None:
            values = [
                [v if test(case) else None for v, case in zip(own, known, strict=True)]
                for own, known in zip(values, cases, strict=True)
            ]
        facts = [[case["fact"] for case in known] for known in cases]
        found = pooled(values, facts)
        return found if found.seeds and found.mean == found.mean else None


def _both(a: Mapping[str, Any], b: Mapping[str, Any], column: str) -> Values:
    count = min(len(a["cases"][column]), len(b["cases"][column]))
    x, y = ([run["cases"][column][:count]] for run in (a, b))
    return gaps(x, y)[0]


def plain(found: Estimate | None) -> str:
    """Return a rate for a table."""
    return "–" if found is None else str(found)


def signed(found: Estimate | None) -> str:
    """Return a difference for a table."""
    return "–" if found is None else found.signed


def seeds_of(values: Sequence[float], digits: int = 1) -> str:
    """Return the smallest and largest value over seeds."""
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low}–{high}"
