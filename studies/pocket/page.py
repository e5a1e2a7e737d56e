"""Writes docs/results-pocket.md from the results of the study."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.common import results
from studies.common.statistics import Estimate, at_locality, difference, estimate
from studies.common.tables import table
from studies.pocket import plan
from studies.pocket.measure import COLUMNS
from studies.pocket.run import RESULTS, read

PAGE = Path(__file__).parents[2] / "docs" / "results-pocket.md"
TITLES = {"test": "held-out entities", "test_domains": "held-out domains"}
Case = Mapping[str, Any]

KINDS: tuple[tuple[str, Callable[[Case], bool]], ...] = (
    ("rephrased (Rep, SA, OA)", lambda c: set(c["criteria"]) <= {"Rep", "SA", "OA"}),
    ("alias of the subject (SA)", lambda c: "SA" in c["criteria"]),
    ("two hops (MH)", lambda c: "MH" in c["criteria"] and not {"RR", "SER"} & set(c["criteria"])),
    ("reversed (RR)", lambda c: "RR" in c["criteria"] and not {"MH", "SER"} & set(c["criteria"])),
    ("two hops, one reversed (MH, RR)",
     lambda c: {"MH", "RR"} <= set(c["criteria"]) and "SER" not in c["criteria"]),
    ("same entity, yes or no (SER)", lambda c: "SER" in c["criteria"]),
    ("all but SER", lambda c: "SER" not in c["criteria"]),
    ("any that build on a hop (MH, SER)", lambda c: c["hops"] > 0),
)  # fmt: skip


class Results:
    """Everything the page is made of, read once."""

    def __init__(self) -> None:
        found = read("cases")
        if found is None:
            raise SystemExit(f"no results in {RESULTS}; make them: python -m studies.pocket run")
        self.cases: dict[str, list[Case]] = found
        self.runs = results.names(RESULTS)
        self._read: dict[str, dict[str, Any]] = {}

    def of(self, name: str) -> list[dict[str, Any]]:
        """Return the results of an editor, one per seed, or the one it has."""
        names = [n for n in self.runs if n == name or n.rpartition("_s")[0] == name]
        for n in names:
            if n not in self._read:
                self._read[n] = read(n) or {}
        return [self._read[n] for n in names]

    def scores(self, name: str, split: str, column: str) -> list[list[float | None]]:
        """Return the scores of every case, one list per seed."""
        return [run["splits"][split]["cases"][column] for run in self.of(name)]

    def facts(self, split: str) -> list[str]:
        """Return the fact of every case."""
        return [case["fact"] for case in self.cases[split]]

    def rate(
        self, name: str, split: str, column: str, test: Callable[[Case], bool] | None = None
    ) -> Estimate:
        """Return a rate with its interval."""
        chosen = None if test is None else [test(case) for case in self.cases[split]]
        return estimate(self.scores(name, split, column), self.facts(split), chosen)

    def gap(
        self,
        left: str,
        right: str,
        split: str,
        column: str,
        test: Callable[[Case], bool] | None = None,
    ) -> Estimate:
        """Return the paired difference of two editors."""
        chosen = None if test is None else [test(case) for case in self.cases[split]]
        a, b = self.scores(left, split, column), self.scores(right, split, column)
        if len(b) == 1:
            b = b * len(a)
        return difference(a, b, self.facts(split), chosen)


EDITORS = (
    ("none", "no edit"),
    ("ft", "FT"),
    ("rome", "ROME"),
    ("mend_published", "MEND as published"),
    ("malmen", "MALMEN"),
    ("mend_matched", "MEND matched"),
    ("mend_mirror", "MEND matched, with mirror"),
    ("ibke_paper", "IBKE, paper's form"),
    ("ibke_no_mirror", "IBKE, ours without mirror"),
    ("ibke_ours", "IBKE, ours"),
)


def sensible(column: str) -> Callable[[Case], bool]:
    """Return which cases count for a rate: not yes/no questions, which pocket cannot answer."""
    if column.startswith("gen"):
        return lambda case: "SER" not in case["criteria"]
    if column.startswith("loc"):
        return lambda case: "SER" not in case["locality"]
    return lambda case: True


def main_tables(r: Results) -> str:
    """The main comparison, one table per split."""
    parts = []
    for split, title in TITLES.items():
        rows = []
        for name, label in EDITORS:
            runs = r.of(name)
            if not runs:
                continue
            rates = {c: r.rate(name, split, c, sensible(c)) for c in COLUMNS}
            spread = [
                "–" if len(rates[c].seeds) < 2
                else f"{min(rates[c].seeds):.1f}–{max(rates[c].seeds):.1f}"
                for c in ("gen1", "loc1")
            ]  # fmt: skip
            whole = [f"{r.rate(name, split, c).mean:.1f}" for c in ("gen5", "loc5")]
            rows.append([
                label, len(runs), rates["rel1"], rates["gen1"], spread[0],
                rates["gen5"], rates["loc1"], spread[1],
                rates["loc5"], " / ".join(whole),
            ])  # fmt: skip
        head = ["editor", "seeds", "Rel", "Gen", "seeds' Gen", "Gen top-5", "Loc", "seeds' Loc",
                "Loc top-5", "with SER: Gen / Loc top-5"]  # fmt: skip
        n, facts = len(r.cases[split]), len(set(r.facts(split)))
        parts.append(f"### On {title}\n\n{n} edits of {facts} facts.\n\n{table(head, rows)}")
    return "\n\n".join(parts)


PAIRS = (
    ("ibke_ours", "mend_matched", "IBKE (ours) − MEND matched"),
    ("ibke_ours", "mend_mirror", "IBKE (ours) − MEND matched with mirror"),
    ("ibke_no_mirror", "mend_matched", "IBKE (ours without mirror) − MEND matched"),
    ("ibke_paper", "mend_matched", "IBKE (paper's form) − MEND matched"),
    ("ibke_paper", "mend_published", "IBKE (paper's form) − MEND as published"),
    ("ibke_ours", "ibke_ours_no_ib", "ours: with − without the bottleneck"),
    ("ibke_paper", "ablation_no_ib", "paper's form: with − without the bottleneck"),
)


def pair_table(r: Results) -> str:
    """Paired differences over the same cases."""
    rows = []
    for left, right, label in PAIRS:
        if not (r.of(left) and r.of(right)):
            continue
        for split, title in TITLES.items():
            columns = ("rel1", "gen1", "gen5", "loc1")
            cells = [r.gap(left, right, split, c, sensible(c)).signed for c in columns]
            rows.append([label, title, *cells])
    return table(["difference", "on", "Rel", "Gen", "Gen top-5", "Loc"], rows)


def kinds_tables(r: Results) -> str:
    """Generality by kind of question."""
    parts = []
    shown = [(name, label) for name, label in EDITORS if r.of(name)]
    for split, title in TITLES.items():
        rows = []
        for label, test in KINDS:
            count = sum(test(case) for case in r.cases[split])
            if not count:
                continue
            cells = [f"{r.rate(name, split, 'gen1', test).mean:.1f}" for name, _ in shown]
            gap = (
                r.gap("ibke_ours", "mend_matched", split, "gen1", test).signed
                if r.of("ibke_ours") and r.of("mend_matched")
                else "–"
            )
            rows.append([label, count, *cells, gap])
        head = ["question", "edits", *(label for _, label in shown), "ours − MEND matched"]
        parts.append(f"Top-1, {title}:\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def points_of(r: Results, run: Mapping[str, Any], split: str) -> dict[str, dict[str, float]]:
    """Return generality and locality of an editor at every strength it was measured at."""
    points = {}
    for scale, columns in run["frontier"][split].items():
        points[scale] = {
            column: estimate(
                [values], r.facts(split), [sensible(column)(c) for c in r.cases[split]]
            ).mean
            for column, values in columns.items()
        }
    return points


def frontier_table(r: Results) -> str:
    """Generality at equal locality."""
    names = [("mend_matched", "MEND matched"), ("mend_mirror", "MEND matched, with mirror"),
             ("ibke_paper", "IBKE, paper's form"), ("ibke_ours", "IBKE, ours"),
             ("ibke_ours_no_ib", "IBKE, ours, without the bottleneck")]  # fmt: skip
    parts = []
    for split, title in TITLES.items():
        levels = (97.0, 96.0, 95.0, 94.0, 92.0, 90.0)
        rows = []
        for name, label in names:
            runs = [run for run in r.of(name) if "frontier" in run]
            if not runs:
                continue
            cells = []
            for level in levels:
                values = []
                for run in runs:
                    values.append(at_locality(points_of(r, run, split), level, "gen1"))
                there = [v for v in values if not math.isnan(v)]
                whole = len(there) == len(values)
                cells.append(
                    f"{sum(there) / len(there):.1f} ({min(there):.1f}–{max(there):.1f})"
                    if whole
                    else "–"
                )
            rows.append([label, *cells])
        head = ["editor", *(f"at Loc {level:.0f}" for level in levels)]
        parts.append(f"Top-1 generality at equal top-1 locality, {title}:\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def simple_table(r: Results, names: Sequence[tuple[str, str]], head: str) -> str:
    """A table of runs on both splits."""
    rows = []
    for name, label in names:
        runs = r.of(name)
        if not runs:
            continue
        cells: list[object] = [label, len(runs)]
        for split in TITLES:
            cells += [str(r.rate(name, split, c, sensible(c))) for c in ("rel1", "gen1", "loc1")]
        rows.append(cells)
    short = {"test": "entities", "test_domains": "domains"}
    columns = [f"{c}, {short[s]}" for s in TITLES for c in ("Rel", "Gen", "Loc")]
    return table([head, "seeds", *columns], rows)


def sweep_table(r: Results) -> str:
    """The sweep over the number of latents and the weight of the divergence."""
    parts = []
    for column, label in (("gen1", "generality"), ("loc1", "locality")):
        for split, title in TITLES.items():
            rows = []
            for l_m in plan.SWEEP_LATENTS:
                cells = []
                for beta in plan.SWEEP_BETAS:
                    found = r.of(plan.sweep_name(l_m, beta))
                    name = plan.sweep_name(l_m, beta)
                    mean = r.rate(name, split, column, sensible(column)).mean if found else math.nan
                    cells.append("–" if math.isnan(mean) else f"{mean:.1f}")
                rows.append([l_m, *cells])
            head = ["l_m", *(f"β = {beta:g}" for beta in plan.SWEEP_BETAS)]
            parts.append(f"Top-1 {label}, {title}:\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def domain_table(r: Results) -> str:
    """Editors trained on one domain, with and without the bottleneck."""
    rows = []
    for domain in plan.DOMAINS:
        pair = (plan.domain_name(domain, True), plan.domain_name(domain, False))
        if not all(r.of(name) for name in pair):
            continue
        trained = r.of(pair[0])[0]["training"]["train_groups"]
        for split, title in TITLES.items():
            cells = []
            for column in ("rel1", "gen1", "loc1"):
                a, b = (r.rate(name, split, column, sensible(column)).mean for name in pair)
                cells.append(f"{a:.1f} / {b:.1f}")
            gap = r.gap(*pair, split, "gen1", sensible("gen1")).signed
            rows.append([domain, trained, title, *cells, gap])
    head = ["trained on", "records", "asked on", "Rel with / without", "Gen with / without",
            "Loc with / without", "Gen: with − without"]  # fmt: skip
    return table(head, rows)


def cost_table(r: Results) -> str:
    """What training cost."""
    rows = []
    for name, label in EDITORS:
        runs = [run for run in r.of(name) if run.get("training")]
        if not runs:
            continue
        t = [run["training"] for run in runs]
        steps = sum(x["step"] for x in t) / len(t)
        cpu = sum(x["cpu_seconds"] for x in t) / len(t)
        rows.append([label, f"{t[0]['parameters']:,}", f"{steps:.0f}", f"{cpu / 60:.1f}",
                     f"{steps / cpu:.1f}"])  # fmt: skip
    head = ["editor", "parameters", "steps", "CPU minutes", "steps per CPU second"]
    return table(head, rows)
