"""Figures 2 to 5b from the kept scores of other studies: no run is needed to draw them again.

```
scores of every case (studies/pocket, table2, real, ibke) ──▶ cells, as `errata figure` reads them
                                          of run folders  ──▶ the same drawing
```
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from errata.reporting.collect import Cell
from errata.reporting.figures import FIGURES, Drawing
from errata.store.runs import Run
from studies.common.statistics import mean
from studies.ibke.found import direct, of_part
from studies.ibke.plan import NETWORKS
from studies.pocket import plan
from studies.pocket.page import TITLES, Results
from studies.real.found import Rates
from studies.table2.page import TABLES

RATES = {"reliability": "rel1", "generality": "gen5", "locality": "loc5"}
"""Columns of `studies.pocket` that a summary of `errata eval` has: of all questions, top 5."""


def drawn(figure: str) -> Drawing:
    """Return one of the figures that kept scores suffice for."""
    return FIGURES[figure](list(FROM[figure]()))


def _cell(
    label: str, data: str, summary: Mapping[str, Any], *, model: str = "Pocket", seed: int = 0,
    name: str = "world", settings: Mapping[str, Any] | None = None,
    records: Sequence[dict[str, Any]] = (),
) -> Cell:  # fmt: skip
    config = {"data": {"name": name}, "editor": {"config": dict(settings or {})}}
    full = {"reliability": None, "generality": None, "locality": None, "by": {}, **summary}
    run = Run(Path(f"studies/{label}"), config, list(records), full)
    return Cell(run, label, label, label, model, data, seed)


def _scatter() -> Iterator[Cell]:
    """Yield the rows of Table II on pocket, and those on SmolLM2, of CounterFact: one set for both.

    MQuAKE has no locality questions, and the world is pocket's own.
    """
    with (TABLES / "table.csv").open(encoding="utf-8", newline="") as file:
        lines = [row for row in csv.DictReader(file) if row["data"] == "CounterFact"]
    for label in dict.fromkeys(row["row"] for row in lines):
        own = {row["metric"]: float(row["value"]) / 100 for row in lines if row["row"] == label}
        yield _cell(label, "CounterFact", {k: own[k] for k in RATES}, name="counterfact")
    rows = [(row.title.split(" (")[0], row.good) for row in direct().values()]
    rows += [
        (NETWORKS[name].title, own["records"])
        for name, own in of_part("seen").items()
        if name in ("ibke", "mend")
    ]
    for label, records in rows:
        rates = Rates([r for r in records if r["error"] is None]).rates
        own = {metric: float(rates[metric]) for metric in RATES}
        yield _cell(SAME.get(label, label), "CounterFact", own, model="SmolLM2", name="counterfact")


SAME = {"No edit": "W/O", "IBKE, ours": "IBKE", "MEND matched": "MEND"}
"""Rows of SmolLM2 by the names that Table II has for them."""


def _summary(results: Results, run: Mapping[str, Any], split: str) -> dict[str, Any]:
    rates = run["splits"][split]["cases"]
    return {metric: mean(rates[column]) / 100 for metric, column in RATES.items()}


def _latents() -> Iterator[Cell]:
    results = Results()
    for l_m in plan.SWEEP_LATENTS:
        for beta in plan.SWEEP_BETAS:
            for run in results.of(plan.sweep_name(l_m, beta)):
                for split, title in TITLES.items():
                    yield _cell(
                        "IBKE", title, _summary(results, run, split),
                        settings={"l_m": l_m, "beta": beta},
                    )  # fmt: skip


VARIANTS = {
    "ibke_paper": "full",
    "ablation_no_ib": "−IB",
    "ablation_no_sf": "−SF",
    "ablation_no_ib_no_sf": "−IB −SF",
}


def _variants() -> Iterator[Cell]:
    results = Results()
    for name, label in VARIANTS.items():
        for seed, run in enumerate(results.of(name)):
            for split, title in TITLES.items():
                short = title.removeprefix("held-out ")
                yield _cell(label, short, _summary(results, run, split), seed=seed)


def _domains() -> Iterator[Cell]:
    """Yield editors trained on one domain, with their rates by the domain of the test."""
    results = Results()
    for domain in plan.DOMAINS:
        for on, word in ((True, "with"), (False, "without")):
            (run,) = results.of(plan.domain_name(domain, on))
            by: dict[str, dict[str, list[float | None]]] = {}
            for split in TITLES:
                scores = run["splits"][split]["cases"]
                for at, case in enumerate(results.cases[split]):
                    own = by.setdefault(case["domain"], {metric: [] for metric in RATES})
                    for metric, column in RATES.items():
                        own[metric].append(scores[column][at])
            rates = {
                name: {metric: mean(values) / 100 for metric, values in own.items()}
                for name, own in by.items()
            }
            yield _cell(f"{domain}, {word}", "world", {"by": {"domain": rates}})


def _criteria() -> Iterator[Cell]:
    """Yield the paper's form with and without the bottleneck, with every question of a case."""
    results = Results()
    for name, label in (("ibke_paper", "with the bottleneck"), ("ablation_no_ib", "without")):
        for seed, run in enumerate(results.of(name)):
            for split, title in TITLES.items():
                scores = run["splits"][split]["cases"]["gen5"]
                records = [
                    {"questions": [{
                        "kind": "generality", "criteria": case["criteria"],
                        "hops": {"asked": case["hops"]}, "score": scores[at] / 100,
                    }]}
                    for at, case in enumerate(results.cases[split])
                ]  # fmt: skip
                yield _cell(label, title, {}, seed=seed, records=records)


FROM: dict[str, Callable[[], Iterator[Cell]]] = {
    "scatter": _scatter, "latents": _latents, "variants": _variants, "domains": _domains,
    "criteria": _criteria,
}  # fmt: skip
"""By figure, what yields its cells."""
