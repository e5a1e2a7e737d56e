"""The cells: run where they have no result, and finished runs of `errata eval` taken as one."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import errata
from errata.data import load_cases
from errata.store.runs import load_run
from studies.common import results
from studies.common.device import card_of, spent_since
from studies.lifelong import plan
from studies.lifelong.compact import result_of

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Places:
    """Where runs are written, and where public files lie.

    Attributes:
        folder: Run folders, one per cell.
        data: Folder of public files.
    """

    folder: Path
    data: Path


def default(variable: str, otherwise: str) -> Path:
    """Return a folder from the environment."""
    return Path(os.environ.get(variable, otherwise)).expanduser()


def carry_out(cells: Sequence[plan.Cell], places: Places) -> None:
    """Run what has no result yet; a cell that was stopped goes on where it was."""
    loaded: dict[str, Any] = {}
    for cell in cells:
        if results.read(RESULTS, cell.name) is not None:
            continue
        about, editor = plan.SEQUENCES[cell.sequence], plan.EDITORS[cell.editor]
        lm = loaded.setdefault(about.model, None) or errata.load(about.model)
        loaded = {about.model: lm}
        spec = about.data.format(data=places.data)
        drawn = 0 if about.data == "world" else None
        data = load_cases(spec, None, about.edits, seed=drawn, options=about.options or None)
        out = places.folder / cell.name
        begun = out.exists()
        start = time.process_time()
        found = errata.evaluate(
            lm, editor.name, data, protocol="wild", regime=f"sequential:{about.edits}",
            batch=about.batch, perplexity=about.perplexity.format(data=places.data),
            every=about.every, stop_when="never", data_options=about.options or None,
            chat=about.chat, ask=about.ask, out=out, resume=begun, **editor.settings,
        )  # fmt: skip
        # of a run that was stopped once, the seconds before are not known
        card = card_of(lm)
        spent = None if begun else spent_since(start, card)
        results.write(RESULTS, cell.name, result_of(found.records, found.summary, spent, card))
        print(f"{cell.name}: {told(found.summary)}", flush=True)


def keep(cell: plan.Cell, folder: Path) -> None:
    """Take a finished run of `errata eval` as a cell.

    Raises:
        SystemExit: If the run is not finished, or of something else than the cell.
    """
    run = load_run(folder)
    if run.summary is None:
        raise SystemExit(f"{folder} is not finished: it has no summary")
    about, editor = plan.SEQUENCES[cell.sequence], plan.EDITORS[cell.editor]
    protocol = run.config["protocol"]
    there = {
        "editor": run.config["editor"]["name"],
        "model": run.config["model"]["name"],
        "data": run.config["data"]["name"],
        "cases": run.config["data"]["cases"],
        "regime": protocol["regime"],
        "batch": protocol["batch"],
        "answers": protocol["answers"],
    }
    wanted = {
        "editor": editor.name,
        "model": about.model,
        "data": about.data.partition(":")[0],
        "cases": about.edits,
        "regime": f"sequential:{about.edits}",
        "batch": about.batch,
        "answers": "wild",
    }
    other = {key: value for key, value in there.items() if value != wanted[key]}
    if other:
        raise SystemExit(f"{folder} is no run of {cell.name}: {other}, wanted {wanted}")
    results.write(RESULTS, cell.name, result_of(list(run.records), run.summary, None))
    print(f"{cell.name}: {told(run.summary)}")


def told(summary: Any) -> str:
    """Say in a line what came of a run."""
    free = summary.get("wild") or {}
    rates = [f"{name} {summary[name]:.3f} / {free.get(name) or 0:.3f} WILD"
             for name in ("reliability", "generality", "locality")
             if summary.get(name) is not None]  # fmt: skip
    return ", ".join(rates)


def states(cells: Sequence[plan.Cell]) -> list[str]:
    """Say of each cell whether it is there."""
    return [
        f"{cell.name}: {'done' if results.read(RESULTS, cell.name) is not None else 'not run'}"
        for cell in cells
    ]
