"""A recipe becomes units of work: trainings and cells, each one `errata` command.

```
OUT/trainings/ROW/MODEL/seedK/          what `errata train` writes; OUT/…/seedK.log beside it
OUT/cells/MODEL/ROW/DATA/seedK/         what `errata eval` writes; likewise
```
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from errata.config import did_you_mean, flag_of
from errata.data import datasets, split_part
from errata.editors import editors
from errata.errors import ConfigError
from errata.evaluation.protocol import Protocol
from errata.store.digest import digest_of
from errata.sweeping.recipe import DataEntry, EditorRow, ModelEntry, Recipe, Training, Value
from errata.world.shipped import is_shipped

SUMMARY = "summary.json"


@dataclass(frozen=True)
class Unit:
    """One piece of work: a training, or one editor on one model and one data set.

    Attributes:
        name: Unique, with slashes; `train/…` or the cell's place in the table.
        kind: What it is.
        words: The `errata` command without `--resume`.
        folder: Where it writes; finished when it holds a summary.
        needs: Names of the trainings that have to be finished before.
        row: Name of the row after the grid is written out.
        label: Name of the row in tables.
        entry: The row's settings, grid written out.
        model: Name of the model in the recipe.
        data: Name of the data set in the recipe; empty for a training.
        seed: Seed.
    """

    name: str
    kind: Literal["train", "eval"]
    words: tuple[str, ...]
    folder: Path
    needs: tuple[str, ...]
    row: str
    label: str
    entry: EditorRow
    model: str
    data: str
    seed: int

    @property
    def log(self) -> Path:
        """What the command prints."""
        return self.folder.with_name(self.folder.name + ".log")

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return (self.folder / SUMMARY).is_file()

    def key(self, out: Path) -> str:
        """Return a hash of what is asked for, the same wherever the sweep's folder lies."""
        words = [word.replace(str(out), "OUT") for word in self.words]
        return digest_of(json.dumps([words, self.needs]))[:16]


def expand(
    recipe: Recipe, out: Path, *, limit: int | None = None, steps: int | None = None
) -> list[Unit]:
    """Return all units of a recipe: trainings first, then cells, model by model.

    Args:
        recipe: The recipe.
        out: Folder of the sweep; absolute, so that commands mean the same on every machine.
        limit: Fewer cases per cell than the recipe asks for.
        steps: Fewer steps per training.

    Raises:
        ConfigError: If an editor or a data set is unknown, or an editor that has to be trained has
            no training.
    """
    for name, entry in recipe.data.items():
        spec, _ = split_part(entry.spec)
        known = spec.partition(":")[0]
        if known not in datasets and not spec.endswith(".jsonl") and not Path(spec).exists():
            raise ConfigError(
                f"[data.{name}]: unknown data set {known!r}", did_you_mean(known, datasets.entries)
            )
    trainings: dict[str, Unit] = {}
    cells: dict[str, Unit] = {}
    rows = {name: row for key in recipe.editors for name, row in variants(key, recipe.editors[key])}
    for name, row in rows.items():
        _check_editor(name, row, recipe)
    for model, (name, row), seed in itertools.product(recipe.models, rows.items(), recipe.seeds):
        if row.models is not None and model not in row.models:
            continue
        training = None
        if row.train is not None:
            of = seed if recipe.train_seeds == "each" else recipe.seeds[0]
            training = _training(recipe, out, name, row, model, of, steps)
            trainings[training.name] = training
        for data in row.data or recipe.data:
            if model not in (recipe.data[data].models or recipe.models):
                continue
            cell = _cell(recipe, out, name, row, model, data, seed, limit, training)
            if cell.name in cells:
                raise ConfigError(f"two rows of the recipe are both called {name!r}")
            cells[cell.name] = cell
    return [*trainings.values(), *cells.values()]


def variants(name: str, row: EditorRow) -> Iterator[tuple[str, EditorRow]]:
    """Write out the grid of a row: one row per combination.

    Raises:
        ConfigError: If the grid varies something that the row does not have.
    """
    if not row.grid:
        yield name, row
        return
    for choice in itertools.product(*row.grid.values()):
        values = row.model_dump(exclude={"grid"}, exclude_unset=True)
        tail = []
        for key, value in zip(row.grid, choice, strict=True):
            _vary(values, key, value, f"[editors.{name}] grid: {key!r}")
            tail.append(f"{key.partition('.')[2]}={as_word(value)}")
        slug = re.sub(r"[^A-Za-z0-9_.=-]+", "-", "-".join([name, *tail]))
        values["label"] = " ".join([row.label or name, *tail])
        yield slug, EditorRow.model_validate(values)


def _vary(values: dict[str, Any], key: str, value: Value, place: str) -> None:
    """Set one value of a table of a row; `key` is the table, a dot and the name."""
    section, _, name = key.partition(".")
    if section not in ("settings", "edit_settings", "train") or not name:
        raise ConfigError(
            f"{place} names no setting", "Use settings.NAME, edit_settings.NAME or train.NAME."
        )
    if section == "train" and "train" not in values:
        raise ConfigError(f"{place}: the row has no training")
    table = values[section] = dict(values.get(section, {}))
    if section == "train" and name not in Training.model_fields:
        table["options"] = table = dict(table.get("options", {}))
    table[name] = value


def _check_editor(name: str, row: EditorRow, recipe: Recipe) -> None:
    if row.editor not in editors:
        raise ConfigError(
            f"[editors.{name}]: unknown editor {row.editor!r}",
            did_you_mean(row.editor, editors.all),
        )
    if row.train is not None:
        return
    trained = "training" in editors.entry(row.editor).facts.get("needs", ())
    for model in row.models or recipe.models:
        given = {**row.settings, **row.on.get(model, {})}
        if trained and "weights" not in given and not is_shipped(recipe.models[model].id):
            raise ConfigError(
                f"[editors.{name}]: {row.editor} needs networks trained for {model}",
                f"Add [editors.{name}.train] data = […], or settings = {{ weights = 'DIR' }}",
            )


def _training(
    recipe: Recipe, out: Path, name: str, row: EditorRow, model: str, seed: int, steps: int | None
) -> Unit:
    assert row.train is not None
    folder = out / "trainings" / name / model / f"seed{seed}"
    words = ["train", row.editor, *_model_words(recipe.models[model])]
    words += ["--data", ",".join(row.train.data), "--out", str(folder)]
    wanted = [n for n in (row.train.steps, steps) if n is not None]
    if wanted:
        words += ["--steps", str(min(wanted))]
    for flag in ("split", "validation", "limit"):
        value = getattr(row.train, flag)
        words += [] if value is None else [f"--{flag}", str(value)]
    words += as_pairs("--data-set", row.train.data_options)
    words += ["--skip-bad"] if row.train.skip_bad else []
    words += _published_words(row, model)
    words += as_pairs("--set", {**row.settings, **row.on.get(model, {})})
    words += as_pairs("--train", {"seed": seed, **row.train.options})
    return Unit(
        name=f"train/{name}/{model}/seed{seed}",
        kind="train", words=tuple(words), folder=folder, needs=(),
        row=name, label=row.label or name, entry=row, model=model, data="", seed=seed,
    )  # fmt: skip


def _cell(
    recipe: Recipe, out: Path, name: str, row: EditorRow, model: str, data: str, seed: int,
    limit: int | None, training: Unit | None,
) -> Unit:  # fmt: skip
    folder = out / "cells" / model / name / data / f"seed{seed}"
    words = ["eval", *_model_words(recipe.models[model]), "--editor", row.editor]
    if training is None:
        words += _published_words(row, model)
        words += as_pairs("--set", {**row.settings, **row.on.get(model, {})})
    else:
        words += as_pairs("--set", {"weights": str(training.folder), **row.edit_settings})
    words += _data_words(recipe.data[data], limit)
    words += _protocol_words(recipe.asked(data), recipe.protocol_on(data), seed)
    words += ["--out", str(folder)]
    return Unit(
        name=f"{model}/{name}/{data}/seed{seed}",
        kind="eval", words=tuple(words), folder=folder,
        needs=() if training is None else (training.name,),
        row=name, label=row.label or name, entry=row, model=model, data=data, seed=seed,
    )  # fmt: skip


# ---------------------------------------------------------------------- words of a command


def _model_words(model: ModelEntry) -> list[str]:
    words = ["--model", model.id]
    for flag in ("dtype", "device", "revision", "compute"):
        value = getattr(model, flag)
        if value is not None:
            words += [f"--{flag}", value]
    return words


def _data_words(data: DataEntry, limit: int | None) -> list[str]:
    words = ["--data", data.spec]
    if data.split is not None:
        words += ["--split", data.split]
    wanted = [n for n in (data.limit, limit) if n is not None]
    if wanted:
        words += ["--limit", str(min(wanted))]
    if data.shuffle is not None:
        words.append("--shuffle" if data.shuffle else "--no-shuffle")
    if data.skip_bad:
        words.append("--skip-bad")
    return words + as_pairs("--data-set", data.options)


def _protocol_words(given: Mapping[str, Value], protocol: Protocol, seed: int) -> list[str]:
    """Return the flags of what is asked; regime, top k and seed always stand there."""
    words = ["--regime", protocol.regime, "--top-k", str(protocol.top_k), "--seed", str(seed)]
    for name in Protocol.model_fields:
        if name not in given or name in ("regime", "top_k"):
            continue
        value, flag = given[name], flag_of(name, Protocol)
        if isinstance(value, Mapping):
            words += as_pairs(flag, value)
        elif isinstance(value, bool):
            words += [flag] if value else []
        elif isinstance(value, list | tuple):
            words += [word for one in value for word in (flag, str(one))]
        else:
            words += [flag, str(value)]
    return words


def _published_words(row: EditorRow, model: str) -> list[str]:
    given = row.as_published
    backbone = given.get(model) if isinstance(given, dict) else given
    return [] if backbone is None else ["--as-published", backbone]


def as_pairs(flag: str, settings: Mapping[str, Value]) -> list[str]:
    """Return settings as the words of a repeatable flag."""
    return [word for key, value in settings.items() for word in (flag, f"{key}={as_word(value)}")]


def as_word(value: Value) -> str:
    """Write a value as `--set` reads it: TOML, and strings bare where that is unambiguous."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_element(item) for item in value) + "]"
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9.]+(e[+-]?\d+)?|true|false|none|null",
                                               value, re.IGNORECASE):  # fmt: skip
        return json.dumps(value)
    return str(value)


def _element(value: Value) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else as_word(value)
