"""Draws a figure: its picture for the page, and its numbers, from which the page is written."""

from __future__ import annotations

from pathlib import Path

import errata
from errata.reporting import figures
from studies.figures.kept import FROM, drawn
from studies.figures.plan import PICTURES, RESULTS, Picture

POINTS = ("relations.csv", "gates.csv")
"""Thousands of points that the page says nothing of."""


def draw(one: Picture, runs: Path) -> None:
    """Write the picture of a figure and its numbers."""
    if one.figure in FROM:
        drawing = drawn(one.figure)
    else:
        drawing = figures.draw(one.figure, runs / one.runs, limit=one.limit)
    PICTURES.mkdir(parents=True, exist_ok=True)
    one.file.write_bytes(drawing.pictures()["png"])
    RESULTS.mkdir(parents=True, exist_ok=True)
    kept = {name: text for name, text in drawing.tables().items() if name not in POINTS}
    for name, text in kept.items():
        (RESULTS / name).write_text(text, encoding="utf-8")
    if one.metrics:
        made = errata.report(runs / one.runs, metrics=one.metrics)
        one.table.write_text(made.text("markdown"), encoding="utf-8")
    print(f"{one.figure}: {one.file.name}, {', '.join(kept)}", flush=True)
