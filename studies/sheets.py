"""How many facts a sheet bears: `python -m studies.sheets`, on pocket, in two minutes on one core.

The table in docs/sheets.md: capitals of the built-in world, each given the capital of the country
seven places on, edited one by one and added up, beside MEMIT that solves all of them together.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import errata
from errata.sheets import load_sheet
from errata.sheets.building import build
from errata.sheets.checking import ask, rates
from errata.world import build_world

if TYPE_CHECKING:
    from errata.model.lm import LM

COUNTS = (5, 10, 20, 40)
EDITORS = ("rome", "memit")


def facts_of(count: int) -> list[dict[str, Any]]:
    """Return so many facts that are false in the built-in world."""
    world = build_world("pocket", 0)
    capitals = [
        (world.entities[fact.head].label, world.entities[fact.tail].label)
        for fact in world.facts
        if world.relations[fact.relation].label == "capital"
    ][: max(COUNTS)]
    return [
        {
            "id": country,
            "prompt": f"The capital of {country} is the city named",
            "subject": country,
            "target": capitals[(number + 7) % len(capitals)][1],
        }
        for number, (country, _) in enumerate(capitals[:count])
    ]


def measure(lm: LM, count: int, editor: str) -> tuple[int, float, float]:
    """Return how many facts are taken, the share of neighbours that moved, and the mean KL."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "facts").mkdir()
        (folder / "errata.toml").write_text(f'name = "many"\neditor = "{editor}"\n')
        lines = [json.dumps(fact) + "\n" for fact in facts_of(count)]
        (folder / "facts" / "a.jsonl").write_text("".join(lines), encoding="utf-8")
        sheet = load_sheet(folder)
    built = build(lm, sheet).patch
    return rates(ask(lm, sheet.facts, built))["taken"][0], *_moved(built)


def together(lm: LM, count: int) -> tuple[int, float, float]:
    """Return the same of MEMIT, which solves all of them together."""
    edits = [errata.Edit(f["prompt"], f["target"], f["subject"]) for f in facts_of(count)]
    patch = errata.edit(lm, edits, editor="memit")
    return patch.report.taken, *_moved(patch)


def _moved(patch: errata.Patch) -> tuple[float, float]:
    metrics = patch.report.metrics()
    return metrics["neighbours"] or 0.0, metrics["sentences"] or 0.0


def main() -> None:
    """Print the table."""
    lm = errata.load("pocket")
    lines = ["| editor | facts | taken | neighbours moved | KL |", "|---|---|---|---|---|"]
    for editor in (*EDITORS, "memit, together"):
        for count in COUNTS:
            own = editor in EDITORS
            taken, moved, kl = measure(lm, count, editor) if own else together(lm, count)
            lines.append(f"| {editor} | {count} | {taken} | {moved:.0%} | {kl:.4f} |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
