"""Run folders and sweep folders with known scores, made without a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from errata.evaluation.summary import summarise
from errata.store.runs import RunFolder

Rates = Mapping[str, Sequence[float]]
"""By metric, the scores of one question per case."""


def record(number: int, scores: Mapping[str, float], **more: Any) -> dict[str, Any]:
    return {
        "id": f"case-{number}",
        "unit": number,
        "error": None,
        "edits": 1,
        "patch_bytes": 2048,
        "seconds": {"edit": 0.25, "evaluate": 0.5},
        "questions": [
            {"kind": kind, "name": kind, "score": value, "top1": value}
            for kind, value in scores.items()
        ],
        **more,
    }


def write_run(
    folder: Path,
    rates: Rates,
    *,
    editor: str = "rome",
    model: str = "pocket",
    data: str = "world",
    seed: int = 0,
    regime: str = "single",
    top_k: int = 5,
    settings: Mapping[str, Any] | None = None,
    finished: bool = True,
    ids: str = "aa",
    fingerprint: str = "f" * 64,
    **more: Any,
) -> Path:
    count = len(next(iter(rates.values())))
    records = [
        record(n, {kind: values[n] for kind, values in rates.items()}, **more) for n in range(count)
    ]
    header = {"editor": editor, "model": model, "data": data, "regime": regime}
    config = {
        "model": {"name": model, "fingerprint": fingerprint},
        "editor": {"name": editor, "config": dict(settings or {})},
        "data": {"name": data, "version": "1", "cases": count, "ids": ids},
        "protocol": {"regime": regime, "top_k": top_k, "batch": 1, "seed": seed},
    }
    with RunFolder.create(folder, config) as run:
        run.append(records)
        if finished:
            run.finish(summarise(records, {**header, "top_k": top_k}, bootstrap=0))
    return folder


def rates(reliability: float, generality: float, locality: float | None, n: int = 1) -> Rates:
    """Return the same rates for every case, in percent."""
    given = {"reliability": reliability, "generality": generality, "locality": locality}
    return {kind: [value / 100] * n for kind, value in given.items() if value is not None}


def write_sweep(
    folder: Path, units: Mapping[str, Mapping[str, Any]], labels: Mapping[str, Any] | None = None
) -> Path:
    """Write `sweep.json` as a sweep does."""
    document: dict[str, Any] = {
        "sweep": "little",
        "errata": "0",
        "units": {name: {"key": "k", **entry} for name, entry in units.items()},
    }
    if labels is not None:
        document["labels"] = labels
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps(document), encoding="utf-8")
    return folder
