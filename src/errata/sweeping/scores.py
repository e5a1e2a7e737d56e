"""Summaries of finished cells become one table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from errata.sweeping.recipe import EditorRow, Recipe
from errata.sweeping.state import State
from errata.sweeping.units import SUMMARY, Unit, variants
from errata.untrusted import read_object

METRICS = ("reliability", "generality", "locality", "average")


def facts(unit: Unit) -> dict[str, Any]:
    """Return what a unit is, for a JSON document."""
    found: dict[str, Any] = {
        "name": unit.name, "row": unit.row, "label": unit.label, "editor": unit.entry.editor,
        "model": unit.model, "seed": unit.seed, "run": str(unit.folder), "needs": list(unit.needs),
    }  # fmt: skip
    if unit.kind == "eval":
        found["data"] = unit.data
    return found


def results(units: Sequence[Unit], state: State) -> list[dict[str, Any]]:
    """Return one entry per unit: what it is, how it ended, and the scores of a finished cell."""
    found = []
    for unit in units:
        progress = state.units[unit.name]
        entry = {
            **facts(unit),
            "status": progress.status,
            "reason": progress.reason or None,
            "attempts": progress.attempts,
            "seconds": round(progress.seconds, 1),
            "host": progress.host or None,
        }
        if progress.log:
            entry["log"] = progress.log
        if unit.kind == "eval":
            entry |= scores(unit)
        found.append(entry)
    return found


def scores(unit: Unit) -> dict[str, Any]:
    """Return the rates of a finished cell and its number of cases; else nothing."""
    path = unit.folder / SUMMARY
    try:
        summary = read_object(path)
    except (OSError, ValueError):
        return {}
    return {name: summary.get(name) for name in ("cases", *METRICS)}


def count(units: Sequence[Unit], state: State) -> dict[str, int]:
    """Return how many units ended in which way."""
    counts: dict[str, int] = {}
    for unit in units:
        status = state.units[unit.name].status
        counts[status] = counts.get(status, 0) + 1
    return counts


def labels_of(recipe: Recipe) -> dict[str, dict[str, str]]:
    """Return the names in tables of models, rows and data sets, in the order of the recipe."""
    return {
        "models": {name: entry.label or name for name, entry in recipe.models.items()},
        "rows": {
            name: _label(name, row)
            for key, entry in recipe.editors.items()
            for name, row in variants(key, entry)
        },
        "data": {name: entry.label or name for name, entry in recipe.data.items()},
    }


def _label(name: str, row: EditorRow) -> str:
    """Return the name of a row in tables: its label, else the editor's title if it is called so."""
    from errata.editors import editors

    if row.label or name != row.editor or name not in editors:
        return row.label or name
    return str(editors.entry(name).facts.get("title", name))


def label_of(recipe: Recipe, unit: Unit) -> tuple[str, str, str]:
    """Return model, row and data set of a unit as tables name them."""
    model = recipe.models[unit.model].label or unit.model
    data = recipe.data[unit.data].label or unit.data if unit.data else "training"
    return model, _label(unit.label, unit.entry) if unit.label == unit.row else unit.label, data
