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
from errata.editors import editors, get_editor
from errata.model.lm import LM
from errata.store.runs import Run, load_run
from errata.training.sources import read_sources
from studies.common import results
from studies.common.device import card_of
from studies.ibke.plan import NETWORKS, PARTS, ROUNDS, STRENGTHS, Part
from studies.real.compact import compact, rounded
from studies.real.plan import DATA

RESULTS = Path(__file__).parent / "results"
MODEL, DTYPE = "smollm2", "bfloat16"
"""As the rows of `studies.real` that stand beside."""

LOSSES = ("kind", "step", "total", "sg", "il", "penalty")


def carry_out(
    name: str, networks: Path, data: Path, models: Path, limit: int, dtype: str = DTYPE
) -> None:
    """Evaluate networks on the first records of their part, each edited alone, and keep it."""
    part = PARTS[NETWORKS[name].part]
    lm = errata.load(str(models.expanduser() / MODEL), dtype=dtype)
    tested = load_cases(
        DATA["counterfact"].format(data=data), limit=limit, options=dict(part.tested)
    )
    config = json.loads((networks / "config.json").read_text("utf-8"))
    scales = _has_strength(config["editor"])
    runs, spent = {}, {}
    for strength in STRENGTHS if scales else (1.0,):
        began = time.process_time()
        runs[strength] = _at(lm, networks, config["editor"], tested, strength)
        spent[strength] = time.process_time() - began
    rounds = {
        key_of(*step): _kept(lm, _at(lm, networks, config["editor"], tested, *step))
        for step in (ROUNDS if scales else ())
    }
    run = runs[1.0]
    results.write(RESULTS, name, {
        "model": MODEL, "dtype": dtype, "data": "counterfact", "limit": limit,
        "fingerprint": run.config["model"]["fingerprint"][:16],
        "data_version": run.config["data"]["version"],
        "errata": run.config["run"]["errata"],
        "device": (card := card_of(lm)),
        "cpu_each": None if card else round(spent[1.0] / max(len(run.records), 1), 2),
        "training": training_of(networks, config, data, tested, part),
        "records": _kept(lm, run),
        "strengths": {f"{s:g}": _kept(lm, own) for s, own in runs.items() if s != 1.0},
        **({"rounds": rounds} if rounds else {}),
    })  # fmt: skip


def key_of(strength: float, rounds: int) -> str:
    """Return what records in rounds are kept under."""
    return f"{strength:g} x {rounds}"


def _at(
    lm: LM, networks: Path, editor: str, tested: LoadedData, strength: float, rounds: int = 1
) -> Run:
    """Return the run at a strength, in one round or more, made now or gone on with."""
    name = f"{strength:g}" if rounds == 1 else key_of(strength, rounds).replace(" ", "")
    out = networks.parent / f"{networks.name}-evaluated" / name
    how = {"scale": strength, "rounds": rounds} if _has_strength(editor) else {}
    made = get_editor(editor, {"weights": str(networks), **how}, model=MODEL)
    errata.evaluate(lm, made, tested, protocol={"bootstrap": 0}, out=out, resume=out.exists())
    return load_run(out)


def _has_strength(editor: str) -> bool:
    """Whether what an editor writes has a strength, and is written in rounds; SERAC's has none."""
    return "scale" in editors.load(editor).Config.model_fields


def _kept(lm: LM, run: Run) -> list[dict[str, Any]]:
    return [compact(record, lm.tokenizer) for record in run.records]


def training_of(
    networks: Path, config: Mapping[str, Any], data: Path, tested: LoadedData, part: Part
) -> dict[str, Any]:
    """Return how the networks came about: settings, losses, and what the tests share with it."""
    card = json.loads((networks / "best" / "config.json").read_text("utf-8"))
    summary = json.loads((networks / "summary.json").read_text("utf-8"))
    lines = (networks / "log.jsonl").read_text("utf-8").splitlines()
    log = [json.loads(line) for line in lines]
    own = config["training"]
    specs = [str(entry["spec"]).replace(str(data), "{data}") for entry in config["data"]]
    kept = rounded({
        "editor": config["editor"], "compute": config.get("compute", "float32"),
        "data": [
            {"spec": spec, "records": entry["groups"]}
            for spec, entry in zip(specs, config["data"], strict=True)
        ],
        "parameters": summary["parameters"],
        "best_step": card["step"],
        "made": max(entry["step"] for entry in log),
        "seconds": max(entry["seconds"] for entry in log),
        "device": _card_of_training(networks),
        "log": [{key: entry[key] for key in LOSSES if key in entry} for entry in log],
        "shared": shared(config, tested, own["seed"], part),
    })  # fmt: skip
    loop = {key: own[key] for key in ("steps", "batch", "lr", "warmup", "seed", "sg_weight")}
    settings = {k: v for k, v in config["settings"].items() if v is not None}
    # learning rates may be far below what is rounded to
    return {**kept, "settings": settings, "loop": loop}


def _card_of_training(networks: Path) -> str | None:
    """Return the GPU that networks were trained on; None: a processor."""
    found = json.loads((networks / "env.json").read_text("utf-8"))["device"]
    return None if found == "cpu" else str(found)


def shared(
    config: Mapping[str, Any], tested: LoadedData, seed: int, part: Part
) -> dict[str, int]:  # fmt: skip
    """Count the tests whose prompt, subject and answer were those of a training record's edit.

    Raises:
        ValueError: If the networks were not trained on the records of their part.
    """
    entry = config["data"][0]
    first = read_sources(
        f"{entry['spec']}:{entry['groups']}", seed=seed, skip_bad=True, options=dict(part.without)
    ).pools[0]
    if first.version != entry["version"]:
        raise ValueError(f"trained on other records than {part.recipe} says: {entry['spec']}")
    seen = [edit for case in first.cases for edit in case.edits]

    def count(cases: Sequence[Case], field: str) -> int:
        has = {getattr(edit, field) for edit in seen}
        return sum(any(getattr(e, field) in has for e in case.edits) for case in cases)

    names = {"prompts": "prompt", "subjects": "subject", "targets": "target"}
    return {name: count(tested.cases, field) for name, field in names.items()}


def read(name: str) -> dict[str, Any] | None:
    """Return a kept result."""
    return results.read(RESULTS, name)
