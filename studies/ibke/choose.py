"""Which rounds: rates on records that the page does not test, by strength and number of rounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import errata
from errata.data import load_cases
from errata.editors import get_editor
from studies.common import results
from studies.ibke.plan import CANDIDATES, CHOSEN_ON, NETWORKS
from studies.ibke.run import DTYPE, MODEL, key_of

CHOSEN = Path(__file__).parent / "chosen"

RATES = {"Rel": ("reliability", "top1"), "Gen": ("generality", "top1"),
         "Loc": ("locality", "top1"), "Gen, top 5": ("generality", "score"),
         "Loc, top 5": ("locality", "score")}  # fmt: skip


def choose(name: str, networks: Path, data: Path, models: Path) -> None:
    """Measure all candidates on the records that they were chosen on, and keep the rates."""
    lm = errata.load(str(models.expanduser() / MODEL), dtype=DTYPE)
    spec, options, seed = CHOSEN_ON[NETWORKS[name].part]
    cases = load_cases(spec.format(data=data), limit=60, options=options or None, seed=seed)
    editor = json.loads((networks / "config.json").read_text("utf-8"))["editor"]
    found = {}
    for strength, rounds in CANDIDATES:
        settings = {"weights": str(networks), "scale": strength, "rounds": rounds}
        made = get_editor(editor, settings, model=MODEL)
        run = errata.evaluate(lm, made, cases, protocol={"bootstrap": 0})
        found[key_of(strength, rounds)] = _rates(run.records)
    results.write(CHOSEN, name, {"records": len(cases.cases), "rates": found})


def _rates(records: list[dict[str, Any]]) -> dict[str, float]:
    """Return each rate: the mean over records of the mean over a record's questions."""
    rates = {}
    for label, (kind, metric) in RATES.items():
        scores = [
            [float(q[metric]) for q in record["questions"] if q["kind"] == kind]
            for record in records if record["error"] is None
        ]  # fmt: skip
        means = [sum(own) / len(own) for own in scores if own]
        rates[label] = round(sum(means) / len(means), 4)
    return rates
