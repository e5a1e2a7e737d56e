"""The runs, and what is kept of each: its summary and, per case, its scores."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import errata
from errata.data import load_cases
from studies.common import results
from studies.sequences.plan import DATA, EDITORS, REGIMES, Run

RESULTS = Path(__file__).parent / "results"

KEPT = ("cases", "failed", "reliability", "generality", "locality", "by", "also", "collapse",
        "perplexity", "retention", "bytes", "hops", "data_version", "errata")  # fmt: skip
"""Of the summary; seconds are another machine's business."""


def carry_out(runs: Sequence[Run]) -> None:
    """Run what has no result yet."""
    lm = errata.load("pocket")
    for run in runs:
        if results.read(RESULTS, run.name) is not None:
            continue
        about, editor = REGIMES[run.regime], EDITORS[run.editor]
        data = load_cases(
            "world", about.split, about.limit, seed=0,
            options={**DATA, **({"drop_collisions": True} if about.split == "train" else {})},
        )  # fmt: skip
        more: dict[str, Any] = {}
        if about.regime != "single":
            more = {"batch": about.batch, "stop_when": "never", "retention": True}
        began = time.process_time()
        found = errata.evaluate(
            lm, editor.name, data, regime=about.regime, bootstrap=1000, **more, **editor.settings
        )
        seconds = time.process_time() - began
        kept = {key: found.summary.get(key) for key in KEPT}
        results.write(RESULTS, run.name, {
            "summary": kept, "edits": found.summary["edits"], "seconds": round(seconds, 1),
            "records": [_short(record) for record in found.records],
        })  # fmt: skip
        print(f"{run.name}: {_told(kept)}, {seconds:.0f} CPU-s", flush=True)


def _short(record: Mapping[str, Any]) -> dict[str, Any]:
    asked = [
        [q["kind"][0], round(float(q["score"]), 4), sorted(q.get("criteria", ()))]
        for q in record["questions"]
    ]
    kept = {k: record[k] for k in ("id", "unit", "age", "error", "watched") if record.get(k)}
    return {**kept, "asked": asked}


def _told(summary: Mapping[str, Any]) -> str:
    names = ("reliability", "generality", "locality")
    return ", ".join(f"{n} {summary[n]:.3f}" for n in names if summary[n] is not None)
