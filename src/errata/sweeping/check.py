"""Every mistake that can be found before the first unit runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from errata.editors import get_editor
from errata.errors import ConfigError
from errata.sweeping.recipe import Recipe
from errata.sweeping.units import Unit, as_pairs


@dataclass(frozen=True)
class Resolved:
    """All settings of a row on a model, also those that the recipe leaves to the editor.

    Attributes:
        settings: Of the editor.
        loop: Of the training; empty if it has none.
    """

    settings: Mapping[str, Any]
    loop: Mapping[str, Any]


def check(recipe: Recipe, units: Sequence[Unit], *, files: bool) -> dict[str, Resolved]:
    """Check settings of editors and trainings, and that local data is there.

    Args:
        recipe: The recipe.
        units: Its units.
        files: Whether local files and packages have to be there, as they need not for a dry run.

    Returns:
        Settings by the name of the unit.

    Raises:
        ConfigError: If a name or a value is wrong, or a file is missing.
        MissingExtra: If a package is missing that cells will ask for.
    """
    made: dict[tuple[str, str], Resolved] = {}
    for unit in units:
        place = (unit.row, unit.model)
        if place not in made:
            try:
                made[place] = _resolve(recipe, unit)
            except ConfigError as error:
                raise ConfigError(f"[editors.{unit.row}]: {error.message}", error.hint) from None
    if files:
        _check_files(recipe, units)
        _check_packages(recipe, units)
    return {unit.name: made[unit.row, unit.model] for unit in units}


def _resolve(recipe: Recipe, unit: Unit) -> Resolved:
    from errata.editors.base_networks import trainable
    from errata.training.config import settings_for

    row, model = unit.entry, recipe.models[unit.model].id
    settings = {**row.settings, **row.on.get(unit.model, {})}
    published = row.as_published
    if isinstance(published, dict):
        published = published.get(unit.model)
    if row.train is None:
        editor = get_editor(row.editor, settings, as_published=published, model=model)
        return Resolved(editor.config.model_dump(), {})
    words = as_pairs("", settings)[1::2]
    trained = trainable(row.editor, model, overrides=words, as_published=published)
    get_editor(row.editor, row.edit_settings)
    loop = settings_for(trained, model, row.train.options)
    return Resolved(trained.config.model_dump(), loop.model_dump())


def _check_files(recipe: Recipe, units: Sequence[Unit]) -> None:
    """Look for local data that unfinished units read."""
    from errata.training.sources import parse_sources

    wanted: dict[str, str] = {}
    for unit in units:
        if unit.finished:
            continue
        if unit.kind == "eval":
            wanted[recipe.data[unit.data].spec] = f"[data.{unit.data}]"
        elif unit.entry.train is not None:
            wanted |= dict.fromkeys(unit.entry.train.data, f"[editors.{unit.row}.train]")
    for spec, place in wanted.items():
        for source in parse_sources(spec):
            if source.path is not None and not source.path.exists():
                raise ConfigError(
                    f"{place}: no such file or folder: {source.path}",
                    "Paths are looked up from the current folder; {data} in a recipe stands for"
                    " --data-dir, else $ERRATA_DATA, else the folder data.",
                )


def _check_packages(recipe: Recipe, units: Sequence[Unit]) -> None:
    """Look for what general ability is measured with, if unfinished cells will ask for it."""
    from errata.evaluation.ability import need_harness

    left = [unit for unit in units if unit.kind == "eval" and not unit.finished]
    if any(recipe.asked(unit.data).get("general") for unit in left):
        need_harness()
