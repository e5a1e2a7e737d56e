"""From records to a summary: a pure function, so that resumed runs and reports agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from errata.case import BEYOND
from errata.evaluation.bootstrap import Table, intervals
from errata.evaluation.long import KINDS as LONG_KINDS
from errata.evaluation.long import METRICS as LONG
from errata.evaluation.metrics import mean
from errata.evaluation.named_tests import ROBUSTNESS, named_tests
from errata.inspection.limits import told_of

Record = Mapping[str, Any]
Scores = dict[tuple[str, str], list[float]]

METRICS = ("reliability", "generality", "locality", "average")
COMPARED = {"reliability": ("ES", "EM", "EA"), "generality": ("PS", "PM", "PA")}
COMPARED["locality"] = ("NS", "NM", "NA")
SAMPLED = ("fluency", "consistency")
TOP1 = ("generality_top1", "locality_top1")
AGE_GROUPS = 10
"""Largest number of age groups in the retention table."""


def summarise(
    records: Sequence[Record], header: Mapping[str, Any], *, bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Return the summary of an evaluation.

    Args:
        records: One per case, in the order of the data set.
        header: What the numbers were made by (`editor`, `model`, `data`, `regime` …); copied to
            the front.
        bootstrap: Number of resamples of the records for the confidence intervals; 0 for none.
        seed: Seed of the resampling.
    """
    made = [record for record in records if record.get("error") is None]
    good = [record for record in made if record.get("asked", True)]
    table = Table.of([scores_of(record) for record in good])
    rates = table.rates() if good else {}
    bounds = intervals(table, bootstrap, seed)
    summary: dict[str, Any] = {
        **header,
        "cases": len(records),
        **({"asked": len(good)} if len(good) < len(made) else {}),
        "edits": sum(record["edits"] for record in made),
        "failed": len(records) - len(made),
        "failures": _failures(records),
        **{metric: rates.get(metric) for metric in METRICS},
        "f1": rates.get("f1"),
        "ci95": {
            metric: bounds[metric]
            for metric in (*METRICS, "f1", *TOP1, *SAMPLED)
            if metric in bounds
        },
        "by": _breakdowns(good) | _suite(good, bootstrap, seed),
        "also": {name: rates.get(name) for name in TOP1}
        | {"locality_gold": rates.get("locality_gold")},
        "hops": _hops(good),
        "counterfact": _counterfact(rates, bounds),
        "wild": _wild(rates, bounds, good),
        **_beyond(rates, bounds),
        **_left_out(good),
        **_long(rates, bounds, good),
        **{metric: rates.get(metric) for metric in SAMPLED},
        "retention": retention(good),
        **_tracked(records),
        "collapse": told_of([r["watched"] for r in records if r.get("watched")]),
        "bytes": _bytes(made),
        "seconds": _seconds(records),
    }
    return summary


def scores_of(record: Record) -> Scores:
    """Return the scores of one record, by metric and sub-metric.

    Comparisons of probabilities are averaged inside the record first (CounterFact's rule); all
    else is pooled over items.
    """
    scores: Scores = {}

    def put(metric: str, name: str, value: float) -> None:
        scores.setdefault((metric, name), []).append(value)

    compared: dict[str, list[float]] = {}
    for entry in record["questions"]:
        kind, name = entry["kind"], entry["name"]
        put(kind, name, entry["score"])
        if kind in BEYOND:
            put(f"before.{kind}", name, entry["before"]["score"])
        elif kind != "reliability":
            put(f"{kind}_top1", name, entry["top1"])
        if "gold" in entry:
            put("locality_gold", name, entry["gold"])
        if "wild" in entry:
            put(f"wild.{kind}", name, entry["wild"]["score"])
            if "judge" in entry["wild"]:
                put(f"judge.{kind}", name, entry["wild"]["judge"])
        for metric in LONG if "long" in entry else ():
            if metric in entry["long"]:
                put(f"long.{metric}.{kind}", name, entry["long"][metric])
        if "prefers" in entry:
            for prefix, values in (("", entry), ("before.", entry["before"])):
                for metric, field in zip(
                    COMPARED[kind], ("prefers", "margin", "greedy"), strict=True
                ):
                    compared.setdefault(prefix + metric, []).append(values[field])
    for metric, values in compared.items():
        put(metric, "", mean(values) or 0.0)
    for metric in SAMPLED:
        value = record.get("sampled", {}).get(metric)
        if value is not None:
            put(metric, "", value)
    return scores


def _rates(records: Iterable[Record]) -> dict[str, float]:
    rows = [scores_of(record) for record in records]
    return Table.of(rows).rates() if rows else {}


def _group(
    records: Iterable[Record], key: Callable[[Mapping[str, Any]], Iterable[Any]]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return mean and number of the entries of each kind, by every value of `key`."""
    pools: dict[str, dict[Any, list[float]]] = {"generality": {}, "locality": {}}
    for record in records:
        for entry in record["questions"]:
            if entry["kind"] != "reliability":
                own = pools.setdefault(entry["kind"], {})
                for value in key(entry):
                    own.setdefault(value, []).append(entry["score"])
    return {
        kind: {
            str(value): {"mean": mean(pool[value]), "items": len(pool[value])}
            for value in sorted(pool)
        }
        for kind, pool in pools.items()
    }


def _breakdowns(records: Sequence[Record]) -> dict[str, Any]:
    domains: dict[str, list[Record]] = {}
    for record in records:
        if record.get("domain"):
            domains.setdefault(record["domain"], []).append(record)
    by_domain = {}
    for domain in sorted(domains):
        rates = _rates(domains[domain])
        by_domain[domain] = {"cases": len(domains[domain])} | {m: rates.get(m) for m in METRICS}
    hops = _group(records, lambda entry: [entry["hops"]["asked"] if "hops" in entry else 0])
    return {
        "name": _group(records, lambda entry: [entry["name"]]),
        "criteria": _group(records, lambda entry: entry.get("criteria", ())),
        "domain": by_domain,
        "hops": hops["generality"],
    }


def _suite(records: Sequence[Record], bootstrap: int, seed: int) -> dict[str, Any]:
    """Return the tests of a suite, if the records are of one: their answers are scored whole."""
    if not any(entry.get("exact") for record in records for entry in record["questions"]):
        return {}
    return {"test": named_tests(records, bootstrap, seed, ROBUSTNESS)}


def _failures(records: Iterable[Record]) -> dict[str, int]:
    """Return how often each reason kept a case from being edited or asked."""
    counts: dict[str, int] = {}
    for record in records:
        if record.get("error") is not None:
            counts[record["error"]] = counts.get(record["error"], 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:10])


def _hops(records: Iterable[Record]) -> dict[str, int]:
    total = {"asked": 0, "known": 0, "edited": 0, "failed": 0}
    for record in records:
        for entry in record["questions"]:
            hops = entry.get("hops")
            if hops:
                for field in ("asked", "known", "edited"):
                    total[field] += hops[field]
                total["failed"] += len(hops["failed"])
    return total


def _counterfact(
    rates: Mapping[str, float], bounds: Mapping[str, list[float]]
) -> dict[str, Any] | None:
    names = [name for trio in zip(*COMPARED.values(), strict=True) for name in trio]
    if not any(name in rates for name in names):
        return None
    names.insert(3, "S")
    return {
        **{name: rates.get(name) for name in names},
        "ci95": {name: bounds[name] for name in names if name in bounds},
        "before": {name: rates.get(f"before.{name}") for name in names},
    }


def _left_out(records: Iterable[Record]) -> dict[str, int]:
    """Return the number of questions whose conditions the unedited model did not meet, if any."""
    count = sum(record.get("left_out", 0) for record in records)
    return {"left_out": count} if count else {}


def _beyond(rates: Mapping[str, float], bounds: Mapping[str, list[float]]) -> dict[str, Any]:
    """Return what came of the questions that compare answers, if there are any."""
    names = [kind for kind in BEYOND if kind in rates]
    if not names:
        return {}
    return {
        "beyond": {
            **{name: rates[name] for name in names},
            "ci95": {name: bounds[name] for name in names if name in bounds},
            "before": {name: rates[f"before.{name}"] for name in names},
        }
    }


def _wild(
    rates: Mapping[str, float], bounds: Mapping[str, list[float]], records: Sequence[Record]
) -> dict[str, Any] | None:
    kinds = ["reliability", "generality", "locality"]
    kinds += [kind for kind in BEYOND if f"wild.{kind}" in rates]
    if not any(f"wild.{kind}" in rates for kind in kinds):
        return None
    pools: dict[str, dict[str, list[float]]] = {}
    refused = 0
    for record in records:
        for entry in record["questions"]:
            refused += "wild_refused" in entry
            if entry["kind"] != "reliability" and "wild" in entry:
                own = pools.setdefault(entry["kind"], {})
                own.setdefault(entry["name"], []).append(entry["wild"]["score"])
    return {
        **{kind: rates.get(f"wild.{kind}") for kind in kinds},
        "ci95": {k: bounds[f"wild.{k}"] for k in kinds if f"wild.{k}" in bounds},
        "by": {
            kind: {n: {"mean": mean(p), "items": len(p)} for n, p in sorted(own.items())}
            for kind, own in sorted(pools.items())
        },
        **_verdicts(rates, bounds),
        **({"refused": refused} if refused else {}),
    }


def _long(
    rates: Mapping[str, float], bounds: Mapping[str, list[float]], records: Sequence[Record]
) -> dict[str, Any]:
    """Return the scores of long answers by kind of question; nothing if none were asked for."""
    found: dict[str, Any] = {}
    for kind in LONG_KINDS:
        names = {m: f"long.{m}.{kind}" for m in LONG if f"long.{m}.{kind}" in rates}
        if names:
            own = {m: bounds[name] for m, name in names.items() if name in bounds}
            found[kind] = {**{m: rates[name] for m, name in names.items()}, "ci95": own}
    refused = sum("long_refused" in e for record in records for e in record["questions"])
    if refused:
        found["refused"] = refused
    return {"long": found} if found else {}


def _verdicts(
    rates: Mapping[str, float], bounds: Mapping[str, list[float]]
) -> dict[str, dict[str, Any]]:
    """Return the rates by a judge's verdicts, if there was a judge."""
    names = [f"judge.{kind}" for kind in ("reliability", "generality")]
    if not any(name in rates for name in names):
        return {}
    found: dict[str, Any] = {n.removeprefix("judge."): rates.get(n) for n in names}
    own = {n.removeprefix("judge."): bounds[n] for n in names if n in bounds}
    return {"judge": {**found, "ci95": own}}


def retention(records: Sequence[Record]) -> dict[str, Any] | None:
    """Return reliability right after each edit and at the end, by the number of later edits."""
    points = [
        (record["age"], mean(record["immediate"]), mean(_reliability(record)))
        for record in records
        if record.get("immediate")
    ]
    if not points:
        return None
    ages = {age for age, _, _ in points}
    oldest = max(ages)
    width = 1 if len(ages) <= AGE_GROUPS else -(-(oldest + 1) // AGE_GROUPS)
    groups: dict[int, list[tuple[float | None, float | None]]] = {}
    for age, immediate, final in points:
        groups.setdefault(age // width, []).append((immediate, final))

    def both(pairs: Iterable[tuple[float | None, float | None]]) -> dict[str, Any]:
        first, last = zip(*pairs, strict=True)
        return {
            "cases": len(first),
            "immediate": mean(x for x in first if x is not None),
            "final": mean(x for x in last if x is not None),
        }

    return {
        **both([(immediate, final) for _, immediate, final in points]),
        "by_age": [
            {"age": [group * width, min((group + 1) * width - 1, oldest)], **both(groups[group])}
            for group in sorted(groups)
        ],
    }


def _tracked(records: Sequence[Record]) -> dict[str, Any]:
    """Return what was measured along sequences: at both ends, and as means over them by step."""
    runs = [record["trajectory"] for record in records if record.get("trajectory")]
    if not runs:
        return dict.fromkeys(("drift", "perplexity", "general", "trajectory"))
    first, last = _mean_point([run[0] for run in runs]), _mean_point([run[-1] for run in runs])
    steps: dict[int, list[Mapping[str, Any]]] = {}
    for run in runs:
        for point in run:
            steps.setdefault(point["step"], []).append(point)
    ends = {
        name: {"before": first[name], "after": last[name]} if name in first else None
        for name in ("perplexity", "general")
    }
    path = [{"step": step, **_mean_point(steps[step])} for step in sorted(steps)]
    return {"drift": last.get("drift"), **ends, "trajectory": path}


def _mean_point(points: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean of what was measured of several sequences after as many steps.

    A perplexity that is not finite makes the mean None.
    """
    found: dict[str, Any] = {
        "sequences": len(points),
        "edits": mean(point["edits"] for point in points),
    }
    if all("perplexity" in point for point in points):
        values = [point["perplexity"] for point in points]
        found["perplexity"] = None if None in values else mean(values)
    for name in ("general", "drift", "recall"):
        own = [point[name] for point in points if name in point]
        if own:
            found[name] = _mean_tree(own)
    return found


def _mean_tree(trees: Sequence[Any]) -> Any:
    """Return the means of the leaves of nested mappings; what one of them lacks counts not."""
    if isinstance(trees[0], Mapping):
        names = dict.fromkeys(name for tree in trees for name in tree)
        return {name: _mean_tree([tree[name] for tree in trees if name in tree]) for name in names}
    return mean(value for value in trees if value is not None)


def _reliability(record: Record) -> list[float]:
    return [e["score"] for e in record["questions"] if e["kind"] == "reliability"]


def _seconds(records: Sequence[Record]) -> dict[str, Any]:
    """Sum the wall seconds that records carry: the only part that is not repeatable."""
    total: dict[str, float] = {}
    for record in records:
        for part, seconds in record.get("seconds", {}).items():
            total[part] = total.get(part, 0.0) + seconds
    edits = sum(record["edits"] for record in records if record.get("error") is None)
    per_edit = total.get("edit", 0.0) / edits if edits else None
    return {"edit": 0.0, "hops": 0.0, "evaluate": 0.0, **total, "per_edit": per_edit}


def _bytes(records: Sequence[Record]) -> dict[str, Any] | None:
    """Return the size of all patches, and its share of an edit; cases of a unit share a patch."""
    patches: dict[int, int] = {}
    for record in records:
        if "patch_bytes" not in record:
            return None  # of a version that did not record it
        patches[record["unit"]] = record["patch_bytes"]
    edits = sum(record["edits"] for record in records)
    total = sum(patches.values())
    return {"patches": total, "per_edit": total / edits if edits else None}
