"""Puts trained networks into the package, stored in half precision, with a card of their scores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

import errata
from errata.data import load_cases
from errata.editors import get_editor
from errata.editors.base_trained import TrainedEditor
from errata.nets import weights
from studies.common.tables import table
from studies.pocket.measure import measure
from studies.pocket.page import TITLES, Results, sensible
from studies.pocket.run import VARIANTS

SHIPPED = {"ibke": "ibke_ours", "mend": "mend_small"}
"""Editor -> runs of which the one with the lowest validation loss ships."""

LIMIT = 15e6
"""Bytes of all networks together."""


def ship(folder: Path) -> None:
    """Write the best networks of each shipped editor, and say what half precision changes."""
    r, lm = Results(), errata.load("pocket")
    for editor, name in SHIPPED.items():
        best = min(r.of(name), key=lambda run: run["training"]["best"])
        run = best["run"]["name"]
        source = get_editor(editor, {"weights": str(folder / run)})
        assert isinstance(source, TrainedEditor)
        network = source.network(lm)
        settings = source.settings.model_dump(mode="json", exclude={"weights", "scale"})
        trained_on = load_cases("world", split="train", options={"variants": VARIANTS["train"]})
        data = {"spec": "world", "split": "train", "variants": VARIANTS["train"]}
        facts = {
            "step": best["training"]["best_step"],
            "validation": best["training"]["best"],
            "data": [{**data, "version": trained_on.version}],
        }
        weights.save(
            weights.SHIPPED / editor, network, editor=editor, settings=settings, lm=lm,
            card=_card(r, editor, run, best, trained_on.version), dtype=torch.float16,
            facts={**facts, "training": best["run"]["training"], "made by": _command(run)},
        )  # fmt: skip
        for split in TITLES:
            data = load_cases("world", split=split, options={"variants": VARIANTS[split]})
            now = measure(lm, get_editor(editor, {"weights": "pocket"}), data)["rates"]
            was = best["splits"][split]["rates"]
            print(editor, split, {k: f"{was[k]:.2f} -> {now[k]:.2f}" for k in now}, flush=True)
    size = sum(p.stat().st_size for p in weights.SHIPPED.rglob("*") if p.is_file())
    print(f"{size / 1e6:.2f} MB in {weights.SHIPPED}")
    if size > LIMIT:
        raise SystemExit(f"more than {LIMIT / 1e6:.0f} MB")


def _command(run: str) -> str:
    return f"python -m studies.pocket run --only {run}"


def _card(r: Results, editor: str, run: str, best: dict[str, Any], version: str) -> str:
    rows = []
    for split, title in TITLES.items():
        cases = r.cases[split]
        cells = []
        for column in ("rel1", "gen1", "loc1"):
            values = best["splits"][split]["cases"][column]
            keep = [sensible(column)(case) for case in cases]
            found = [v for v, k in zip(values, keep, strict=True) if k and v is not None]
            cells.append(f"{sum(found) / len(found):.1f}")
        rows.append([title, *cells])
    head = ["on", "reliability", "generality", "locality"]
    training = best["training"]
    return f"""# {editor} for the pocket model

Networks of the knowledge editor `{editor}` for errata's pocket model; no other model will do. They
are used by themselves: `errata eval --editor {editor} --model pocket --data world`.

Made by

    {_command(run)}
    python -m studies.pocket ship

{training["step"]:,} steps on {training["train_groups"]:,} records of the world's training split
(version {version[:16]}), {training["parameters"]:,} parameters, stored in half precision; the
checkpoint of step {training["best_step"]} had the lowest validation loss, {training["best"]:.4f}.

Top-1, percent, one edit at a time, yes/no questions left out (docs/results-pocket.md):

{table(head, rows)}
"""
