"""The tables of docs/results-locate.md, from the results of the study."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from errata.editors import get_editor
from studies.common.statistics import Estimate, at_locality, mean
from studies.common.tables import table
from studies.locate import plan
from studies.locate.found import COLUMNS, Results, Test, plain, seeds_of, signed, title

PAGE = Path(__file__).parents[2] / "docs" / "results-locate.md"
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


# ---------------------------------------------------------------------- sequences


def sequence_table(r: Results) -> str:
    """What the editors have after 1,000 edits."""
    rows = []
    for editor in plan.SEQUENCE_LABELS:
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
    labels = [
        *((f"{host}+blue", host) for host in plan.SEQUENCE_HOSTS),
        *((plan.stronger_label(f"{h}+blue"), plan.stronger_label(h)) for h in plan.STRONGER),
    ]
    for pair, host in labels:
        left, right = ("sequence", pair), ("sequence", host)
        if not (r.of(*left) and r.of(*right)):
            continue
        cells = [signed(r.gap(left, right, c)) for c in ("rel", "gen", "loc")]
        known = _paired(r, left, right, lambda run: mean(run["general"]))
        rows.append([f"{title(pair)} − {title(host)}", *cells, known])
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
    for editor in plan.SEQUENCE_LABELS:
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
    for editor in plan.SEQUENCE_LABELS:
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
                seeds = max(len(r.of("batch", f"{size}_{editor}")) for size in plan.BATCHES)
                rows.append([title(editor), seeds, *cells])
        head = ["editor", "seeds", *(f"{size:,}" for size in plan.BATCHES)]
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
    for editor in plan.SEQUENCE_LABELS:
        runs = r.of("sequence", editor)
        if runs:
            rows.append([
                title(editor), seeds_of([1000 * run["edit_seconds"] for run in runs], 0),
                seeds_of([run["cpu_seconds"] / 60 for run in runs]),
            ])  # fmt: skip
    return table(["editor", "ms per edit (wall clock)", "CPU minutes of the whole run"], rows)


def _strengths(r: Results, host: str) -> dict[str, dict[str, dict[str, float]]]:
    """Return mean rates by editor and restraint, of the seeds that all of these have."""
    setting, values = plan.STRENGTHS[host]
    own = get_editor(host, model="pocket").config.model_dump()[setting]
    cells = {
        (editor, value): ("batch", f"{plan.STRENGTH_BATCH}_{editor}")
        if value == own
        else ("strength", plan.strength_label(editor, value))
        for editor in plan.pair((host,), "blue")
        for value in sorted((*values, own))
    }
    seeds = set.intersection(*(r.seeds(*cell) for cell in cells.values()))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (editor, value), cell in cells.items():
        rates = {column: r.rate(*cell, column, seeds=seeds) for column, _ in COLUMNS}
        points = {c: math.nan if rate is None else rate.mean for c, rate in rates.items()}
        found.setdefault(editor, {})[f"{value:,g}"] = points
    return found


def strength_table(r: Results) -> str:
    """Hosts and BLUE by how much their updates are restrained, in one batch size."""
    rows = []
    for host, (setting, _) in plan.STRENGTHS.items():
        both = list(_strengths(r, host).values())
        for value in both[0]:
            cells = [" / ".join(f"{x:.1f}" for x in points[value].values()) for points in both]
            rows.append([title(host), f"{setting} {value}", *cells])
    return table(["host", "", "host: Rel / Gen / Loc", "with BLUE"], rows)


LEVELS = (75.0, 80.0, 85.0, 90.0)


def equal_locality_table(r: Results) -> str:
    """Reliability and generality of hosts and BLUE at the same locality."""
    rows = []
    for host in plan.STRENGTHS:
        for editor, found in _strengths(r, host).items():
            points = {value: {"loc1": rates["loc"], **rates} for value, rates in found.items()}
            cells = []
            for level in LEVELS:
                rel, gen = (at_locality(points, level, column) for column in ("rel", "gen"))
                cells.append("–" if math.isnan(rel) else f"{rel:.1f} / {gen:.1f}")
            rows.append([title(editor), *cells])
    return table(["Rel / Gen", *(f"at Loc {level:.0f}" for level in LEVELS)], rows)


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
    for editor in (*plan.ROBUST_PAIRS, plan.RELEASED):
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
        left, right = ("robustness", plan.RELEASED), ("robustness", "memit+rep")
        known = all(name in run["cases"] for run in (*r.of(*left), *r.of(*right)))
        rows.append([label, *cells, signed(r.gap(left, right, name)) if known else "–"])
    head = ["REP − host", *(title(host) for host in plan.ROBUST_HOSTS), "released − ours, on MEMIT"]
    return table(head, rows)


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
