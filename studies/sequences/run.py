"""The runs, and what is kept of each: its summary and, per case, its scores."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import errata
from errata.data import LoadedData, load_cases
from errata.errors import ErrataError
from errata.model.lm import LM
from studies.common import results
from studies.common.device import card_of, spent_since
from studies.sequences.plan import REGIMES, WORLD, Editor, Regime, Run

RESULTS = Path(__file__).parent / "results"

KEPT = ("cases", "failed", "reliability", "generality", "locality", "by", "also", "collapse",
        "perplexity", "retention", "bytes", "hops", "data_version", "errata")  # fmt: skip
"""Of the summary; seconds are another machine's business."""


@dataclass(frozen=True)
class Places:
    """Where public files lie, and training runs by the name of their networks.

    Attributes:
        data: Folder of public files.
        networks: Folder of training runs.
    """

    data: Path
    networks: Path


def carry_out(runs: Sequence[Run], places: Places) -> None:
    """Run what has no result yet; one that cannot be run is named and left."""
    models: dict[str, LM] = {}
    for run in runs:
        if results.read(RESULTS, run.name) is not None:
            continue
        about = REGIMES[run.regime]
        lm = models.get(about.model) or errata.load(about.model)
        models = {about.model: lm}
        try:
            kept = _carried_out(lm, about, about.editors[run.editor], places)
        except ErrataError as error:
            print(f"{run.name}: {error}", flush=True)
            continue
        results.write(RESULTS, run.name, kept)
        print(f"{run.name}: {_told(kept['summary'])}", flush=True)


def _carried_out(lm: LM, about: Regime, editor: Editor, places: Places) -> dict[str, Any]:
    settings: dict[str, Any] = {
        key: value.format(data=places.data) if isinstance(value, str) else value
        for key, value in editor.settings.items()
    }
    if editor.networks:
        settings["weights"] = str(places.networks / editor.networks)
    more: dict[str, Any] = {}
    if about.regime != "single":
        more = {"batch": about.batch, "stop_when": "never", "retention": True,
                "perplexity": about.perplexity.format(data=places.data)}  # fmt: skip
    began = time.process_time()
    found = errata.evaluate(
        lm, editor.name, _data(about, places), regime=about.regime, bootstrap=1000, **more,
        **settings,
    )  # fmt: skip
    card = card_of(lm)
    spent = spent_since(began, card)
    return {
        "summary": {key: found.summary.get(key) for key in KEPT},
        "edits": found.summary["edits"],
        "seconds": None if spent is None else round(spent, 1),
        "device": card,
        "records": [_short(record) for record in found.records],
    }


def _data(about: Regime, places: Places) -> LoadedData:
    if about.data != "world":
        return load_cases(about.data.format(data=places.data), about.split, about.limit)
    drop = {"drop_collisions": True} if about.split == "train" else {}
    return load_cases("world", about.split, about.limit, seed=0, options={**WORLD, **drop})


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
