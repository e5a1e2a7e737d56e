"""One evaluation of trained networks, and what is kept of it and of their training."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import errata
from errata.case import Case
from errata.data import LoadedData, load_cases
from errata.editors import get_editor
from errata.store.runs import load_run
from errata.training.sources import read_sources
from studies.common import results
from studies.real.compact import compact, rounded
from studies.real.plan import DATA

RESULTS = Path(__file__).parent / "results"
MODEL, DTYPE = "smollm2", "bfloat16"
"""As the rows of `studies.real` that stand beside."""

LOSSES = ("kind", "step", "total", "sg", "il", "penalty")


def carry_out(name: str, networks: Path, data: Path, models: Path, limit: int) -> None:
    """Evaluate the networks on the first held-out records, each edited alone, and keep it."""
    lm = errata.load(str(models.expanduser() / MODEL), dtype=DTYPE)
    tested = load_cases(DATA["counterfact"].format(data=data), limit=limit)
    out = networks.parent / f"{networks.name}-evaluated"
    config = json.loads((networks / "config.json").read_text("utf-8"))
    editor = get_editor(config["editor"], {"weights": str(networks)}, model=MODEL)
    began = time.process_time()
    errata.evaluate(
        lm, editor, tested, protocol={"bootstrap": 0}, out=out, resume=out.exists(),
    )  # fmt: skip
    spent = time.process_time() - began
    run = load_run(out)
    results.write(RESULTS, name, {
        "model": MODEL, "dtype": DTYPE, "data": "counterfact", "limit": limit,
        "fingerprint": run.config["model"]["fingerprint"][:16],
        "data_version": run.config["data"]["version"],
        "errata": run.config["run"]["errata"],
        "cpu_each": round(spent / max(len(run.records), 1), 2),
        "training": training_of(networks, config, data, tested),
        "records": [compact(record, lm.tokenizer) for record in run.records],
    })  # fmt: skip


def training_of(
    networks: Path, config: Mapping[str, Any], data: Path, tested: LoadedData
) -> dict[str, Any]:
    """Return how the networks came about: settings, losses, and what the tests share with it."""
    card = json.loads((networks / "best" / "config.json").read_text("utf-8"))
    lines = (networks / "log.jsonl").read_text("utf-8").splitlines()
    log = [json.loads(line) for line in lines]
    own = config["training"]
    specs = [str(entry["spec"]).replace(str(data), "{data}") for entry in config["data"]]
    return rounded({
        "editor": config["editor"], "compute": config.get("compute", "float32"),
        "settings": {k: v for k, v in config["settings"].items() if v is not None},
        "loop": {key: own[key] for key in ("steps", "batch", "lr", "warmup", "seed")},
        "data": [
            {"spec": spec, "records": entry["groups"]}
            for spec, entry in zip(specs, config["data"], strict=True)
        ],
        "best_step": card["step"],
        "made": max(entry["step"] for entry in log),
        "seconds": max(entry["seconds"] for entry in log),
        "log": [{key: entry[key] for key in LOSSES if key in entry} for entry in log],
        "shared": shared(config, tested, own["seed"]),
    })  # fmt: skip


def shared(config: Mapping[str, Any], tested: LoadedData, seed: int) -> dict[str, int]:
    """Count the tests whose subject, and whose prompt, was an edit of a training record."""
    entries = config["data"]
    text = ",".join(
        f"{entry['spec']}:{entry['groups']}" if at == 0 else entry["spec"]
        for at, entry in enumerate(entries)
    )
    first = read_sources(text.split(",")[0], seed=seed, skip_bad=True).pools[0]
    seen = [edit for case in first.cases for edit in case.edits]
    subjects, prompts = {e.subject for e in seen}, {e.prompt for e in seen}

    def count(cases: Sequence[Case], has: set[Any], field: str) -> int:
        return sum(any(getattr(e, field) in has for e in case.edits) for case in cases)

    return {
        "subjects": count(tested.cases, subjects, "subject"),
        "prompts": count(tested.cases, prompts, "prompt"),
    }


def read(name: str) -> dict[str, Any] | None:
    """Return a kept result."""
    return results.read(RESULTS, name)
