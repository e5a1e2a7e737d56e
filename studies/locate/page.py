"""The tables of docs/results-locate.md, from the results of the study."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.common import results
from studies.common.statistics import Estimate, Values, gaps, mean, pooled
from studies.common.tables import table
from studies.locate import plan
from studies.locate.data import SEEDS
from studies.locate.run import RESULTS, read

PAGE = Path(__file__).parents[2] / "docs" / "results-locate.md"
COLUMNS = (("rel", "Rel"), ("gen", "Gen"), ("loc", "Loc"))
TITLES = {
    "none": "no edit", "rome": "ROME", "r_rome": "R-ROME", "p_rome": "p-ROME", "memit": "MEMIT",
    "memit_seq": "MEMIT-seq", "emmet": "EMMET", "pmet": "PMET", "alphaedit": "AlphaEdit",
    "rect": "RECT", "prune": "PRUNE", "blue": "BLUE", "rep": "REP",
}  # fmt: skip
Case = Mapping[str, Any]
Test = Callable[[Case], bool]

GROUPS: tuple[tuple[str, Test], ...] = (
    ("rephrased (Rep, OA)", lambda c: set(c["gen"]) <= {"Rep", "OA"}),
    ("alias of the subject (SA)", lambda c: "SA" in c["gen"] and "MH" not in c["gen"]),
    ("reversed (RR)", lambda c: "RR" in c["gen"] and "MH" not in c["gen"]),
    ("two hops (MH)", lambda c: "MH" in c["gen"]),
)
LOCAL: tuple[tuple[str, Test], ...] = (
    ("same subject (SS)", lambda c: "SS" in c["loc"]),
    ("same relation (RS)", lambda c: "RS" in c["loc"] and "SS" not in c["loc"]),
    ("others", lambda c: not {"SS", "RS"} & set(c["loc"])),
)


def title(editor: str) -> str:
    """Return how an editor is called in tables."""
    return "+".join(TITLES[part] for part in editor.split("+"))


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

    def rate(self, part: str, label: str, column: str, test: Test | None = None) -> Estimate | None:
        """Return a rate with its interval; None if no seed is finished."""
        runs = self.of(part, label)
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


# ---------------------------------------------------------------------- sequences


def sequence_table(r: Results) -> str:
    """What the editors have after 1,000 edits."""
    rows = []
    for editor in plan.pair(plan.SEQUENCE_HOSTS, "blue"):
        runs = r.of("sequence", editor)
        if not runs:
            continue
        rates = [plain(r.rate("sequence", editor, c)) for c in ("rel0", "rel", "gen", "loc")]
        spread = r.rate("sequence", editor, "rel")
        assert spread is not None
        rows.append([
            title(editor), len(runs), *rates, seeds_of(spread.seeds),
            seeds_of([mean(run["general"]) for run in runs]),
            " → ".join((seeds_of(_ends(runs, 0), 2), _perplexities(runs))),
            seeds_of([_drift(run) for run in runs], 2),
        ])  # fmt: skip
    head = ["editor", "seeds", "Rel right after", "Rel at the end", "Gen", "Loc", "seeds' Rel",
            "untouched facts known", "perplexity", "drift"]  # fmt: skip
    return table(head, rows)


def _ends(runs: Sequence[Mapping[str, Any]], at: int) -> list[float]:
    values = [run["trajectory"][at]["perplexity"] for run in runs]
    return [float("inf") if value is None else value for value in values]


def _perplexities(runs: Sequence[Mapping[str, Any]]) -> str:
    ends = _ends(runs, -1)
    return seeds_of(ends, 2) if max(ends) < 1000 else f"{min(ends):.3g}–{max(ends):.3g}"


def _drift(run: Mapping[str, Any]) -> float:
    return max(part["relative"] for part in run["trajectory"][-1]["drift"].values())


def blue_sequences(r: Results) -> str:
    """BLUE minus its host after the sequence."""
    rows = []
    for host in plan.SEQUENCE_HOSTS:
        left, right = ("sequence", f"{host}+blue"), ("sequence", host)
        if not (r.of(*left) and r.of(*right)):
            continue
        cells = [signed(r.gap(left, right, c)) for c in ("rel", "gen", "loc")]
        known = _paired(r, left, right, lambda run: mean(run["general"]))
        rows.append([title(f"{host}+blue") + " − " + title(host), *cells, known])
    return table(["difference", "Rel", "Gen", "Loc", "untouched facts known, by seed"], rows)


def _paired(
    r: Results, left: tuple[str, str], right: tuple[str, str], of: Callable[[Any], float]
) -> str:
    other = {run["run"]["seed"]: run for run in r.of(*right)}
    both = [(run, other[run["run"]["seed"]]) for run in r.of(*left) if run["run"]["seed"] in other]
    return ", ".join(f"{of(a) - of(b):+.1f}" for a, b in both)


AGES = ((0, 49), (50, 199), (200, 399), (400, 599), (600, 799), (800, 999))


def retention_table(r: Results) -> str:
    """Reliability at the end by the number of later edits."""
    rows = []
    for editor in plan.pair(plan.SEQUENCE_HOSTS, "blue"):
        runs = r.of("sequence", editor)
        if not runs:
            continue
        cells = []
        for low, high in AGES:
            values = [
                value
                for run in runs
                for value, age in zip(run["cases"]["rel"], run["ages"], strict=True)
                if age is not None and low <= age <= high
            ]
            cells.append(f"{mean(values):.1f}")
        rows.append([title(editor), *cells])
    return table(["editor", *(f"{low}–{high}" for low, high in AGES)], rows)


def trajectory_table(r: Results) -> str:
    """Recall of all edits so far, and perplexity, along the sequence."""
    rows = []
    for editor in plan.pair(plan.SEQUENCE_HOSTS, "blue"):
        runs = r.of("sequence", editor)
        if not runs:
            continue
        points: dict[int, list[Mapping[str, Any]]] = {}
        for run in runs:
            for point in run["trajectory"][1:]:
                points.setdefault(point["step"] * plan.STEP, []).append(point)
        cells = []
        for edits in sorted(points):
            recall = mean(100 * point["recall"]["score"] for point in points[edits])
            lines = [point["perplexity"] for point in points[edits]]
            finite = [value for value in lines if value is not None]
            text = f"{mean(finite):.3g}" if len(finite) == len(lines) else "∞"
            cells.append(f"{recall:.0f} / {text}")
        rows.append([title(editor), *cells])
    return table(["editor", *(f"{n} edits" for n in (250, 500, 750, 1000))], rows)


# ---------------------------------------------------------------------- batches


def batch_tables(r: Results) -> str:
    """Rates by size of the batch."""
    parts = []
    editors = plan.batch_editors(1)
    for column, label in COLUMNS:
        rows = []
        for editor in editors:
            cells = [plain(r.rate("batch", f"{size}_{editor}", column)) for size in plan.BATCHES]
            if set(cells) != {"–"}:
                rows.append([title(editor), *cells])
        head = ["editor", *(f"{size:,}" for size in plan.BATCHES)]
        parts.append(f"{label}:\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def blue_batches(r: Results) -> str:
    """BLUE minus its host by size of the batch."""
    rows = []
    for host in plan.BLUE_HOSTS:
        for column, label in COLUMNS:
            cells = [
                signed(r.gap(("batch", f"{size}_{host}+blue"), ("batch", f"{size}_{host}"), column))
                for size in plan.BATCHES
            ]
            if set(cells) != {"–"}:
                rows.append([f"{title(host + '+blue')} − {title(host)}", label, *cells])
    return table(["difference", "", *(f"{size:,}" for size in plan.BATCHES)], rows)


def groups_table(r: Results) -> str:
    """Single edits by kind of question."""
    rows = []
    for editor in plan.batch_editors(1):
        label = f"1_{editor}"
        if not r.of("batch", label):
            continue
        gen = [_mean(r.rate("batch", label, "gen", test)) for _, test in GROUPS]
        loc = [_mean(r.rate("batch", label, "loc", test)) for _, test in LOCAL]
        rows.append([title(editor), *gen, *loc])
    head = ["editor", *(f"Gen: {name}" for name, _ in GROUPS), *(f"Loc: {n}" for n, _ in LOCAL)]
    return table(head, rows)


def _mean(found: Estimate | None) -> str:
    return "–" if found is None else f"{found.mean:.1f}"


def cost_table(r: Results) -> str:
    """Seconds per edit of a sequence; what was known before counts as found."""
    rows = []
    for editor in plan.pair(plan.SEQUENCE_HOSTS, "blue"):
        runs = r.of("sequence", editor)
        if runs:
            rows.append([
                title(editor), seeds_of([1000 * run["edit_seconds"] for run in runs], 0),
                seeds_of([run["cpu_seconds"] / 60 for run in runs]),
            ])  # fmt: skip
    return table(["editor", "ms per edit (wall clock)", "CPU minutes of the whole run"], rows)


# ---------------------------------------------------------------------- robustness

TESTS = (
    ("edit", "the edit"), ("prompt", "rephrased"), ("prefix", "random prefix"),
    ("long", "long context"), ("long_held", "long context, seen"),
    ("subject_id", "other name, seen"), ("subject_od", "other name, unseen"),
    ("shuffle_id", "shuffled, seen"), ("shuffle_od", "shuffled, unseen"),
    ("possessive", "possessive"), ("neighborhood", "Loc: other subjects"),
    ("same_subject", "Loc: same subject"),
)  # fmt: skip


def robustness_table(r: Results) -> str:
    """The suite with and without REP."""
    rows = []
    for editor in plan.pair(plan.ROBUST_HOSTS, "rep"):
        runs = r.of("robustness", editor)
        if runs:
            cells = [_tested(r, editor, name) for name, _ in TESTS]
            rows.append([title(editor), len(runs), *cells])
    return table(["editor", "seeds", *(label for _, label in TESTS)], rows)


def _tested(r: Results, editor: str, name: str) -> str:
    runs = r.of("robustness", editor)
    if any(name not in run["cases"] for run in runs):
        return "–"
    return _mean(r.rate("robustness", editor, name))


def rep_table(r: Results) -> str:
    """REP minus its host on every test."""
    rows = []
    for name, label in TESTS:
        cells = []
        for host in plan.ROBUST_HOSTS:
            left, right = ("robustness", f"{host}+rep"), ("robustness", host)
            there = [run for run in (*r.of(*left), *r.of(*right)) if name in run["cases"]]
            whole = len(there) == len(r.of(*left)) + len(r.of(*right))
            cells.append(signed(r.gap(left, right, name)) if whole else "–")
        rows.append([label, *cells])
    return table(["REP − host", *(title(host) for host in plan.ROBUST_HOSTS)], rows)


# ---------------------------------------------------------------------- fixes


def fix_table(r: Results) -> str:
    """What each named fix of published code changes."""
    rows = []
    for fix in plan.FIXES:
        ours, released = (("fix", f"{fix.key}_{side}") for side in ("ours", "released"))
        runs = r.of(*released)
        if not (runs and r.of(*ours)):
            continue
        for column, label in COLUMNS:
            rows.append([
                fix.title if column == "rel" else "", label, plain(r.rate(*ours, column)),
                plain(r.rate(*released, column)), signed(r.gap(released, ours, column)),
            ])  # fmt: skip
    return table(["switch", "", "ours", "as released", "released − ours"], rows)
