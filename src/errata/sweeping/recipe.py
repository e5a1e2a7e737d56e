"""Recipes: what to sweep over, as a checked TOML file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from errata.config import S, Settings, did_you_mean, read_toml, settings_from
from errata.errors import ConfigError
from errata.evaluation.protocol import Protocol, protocol_of

Value = bool | int | float | str | tuple[Any, ...] | dict[str, Any]
"""A setting as TOML knows it."""

DATA, DATA_DIR = "{data}", "data"
"""What a recipe writes for the folder of local data, and the folder that it means by default."""

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class Hardware(Settings):
    """What units run on; `cpus` and `gpus` for Ray, the rest for estimates."""

    device_tflops: float | dict[str, float] | None = Field(
        default=None,
        description="10¹² floating-point operations per second that a device sustains, as one "
        "number or per dtype (float32 = 15, float16 = 50); none: 10 for a GPU, and for a CPU what "
        "a dry run measures on this one",
    )
    device_memory_gb: float | None = Field(
        default=None, gt=0, description="Memory of one device; a dry run marks what exceeds it"
    )
    devices: int = Field(default=1, ge=1, description="Units that run at the same time")
    startup_seconds: float | None = Field(
        default=None,
        ge=0,
        description="From the start of a unit until its model is loaded; none: 60 on a GPU, on a "
        "CPU 5 and what reading the model takes",
    )
    cpus: float = Field(default=1.0, gt=0, description="Cores that Ray reserves for a unit")
    gpus: float = Field(default=0.0, ge=0, description="GPUs that Ray reserves for a unit")


class ModelEntry(Settings):
    """A backbone. Sizes are needed only for estimates, and known for the paper's backbones."""

    id: str = Field(description="pocket, a folder, or a Hub id")
    dtype: Literal["float64", "float32", "bfloat16", "float16"] | None = Field(
        default=None, description="As --dtype"
    )
    device: str | None = Field(default=None, description="cpu, cuda, …")
    compute: Literal["auto", "float32", "bfloat16"] | None = Field(
        default=None, description="As --compute"
    )
    revision: str | None = Field(default=None, description="Branch, tag or commit on the Hub")
    label: str | None = Field(default=None, description="Name in tables")
    parameters: float | None = Field(default=None, gt=0, description="Parameters of the model")
    layers: int | None = Field(default=None, ge=1, description="Blocks")
    hidden: int | None = Field(default=None, ge=1, description="Width of the hidden state")
    inner: int | None = Field(default=None, ge=1, description="Width inside the FFN")


class DataEntry(Settings):
    """A data set that every editor is evaluated on."""

    spec: str = Field(
        description="As --data: NAME, NAME:PATH or FILE.jsonl; {data} stands for --data-dir"
    )
    split: str | None = Field(default=None, description="As --split")
    limit: int | None = Field(default=None, ge=1, description="Cases per cell, as --limit")
    shuffle: bool | None = Field(default=None, description="Whether the seed draws the cases")
    skip_bad: bool = Field(default=False, description="Leave broken records out")
    options: dict[str, Value] = Field(default_factory=dict, description="As --data-set")
    label: str | None = Field(default=None, description="Name in tables")
    models: tuple[str, ...] | None = Field(default=None, description="Only for these models")
    protocol: dict[str, Value] = Field(
        default_factory=dict,
        description="What is asked on this data set only, as the recipe's [protocol]",
    )
    cases: int | None = Field(
        default=None, ge=1, description="Cases of the whole set, for estimates without a limit"
    )
    tokens: tuple[float, float, float] = Field(
        default=(20.0, 40.0, 20.0),
        description="Tokens of a case's edits, generality questions with their hops, and locality "
        "questions; for estimates",
    )


class Training(Settings):
    """How an editor's networks are trained before its cells run, per model and seed."""

    data: tuple[str, ...] = Field(
        min_length=1, description="As `errata train --data`, one entry per data set"
    )
    split: str | None = Field(default=None, description="As --split; default train")
    validation: str | None = Field(default=None, description="As --validation")
    limit: int | None = Field(default=None, ge=1, description="As --limit")
    skip_bad: bool = Field(default=False, description="Leave broken records out")
    data_options: dict[str, Value] = Field(default_factory=dict, description="As --data-set")
    steps: int | None = Field(default=None, ge=1, description="As --steps")
    options: dict[str, Value] = Field(
        default_factory=dict, description="Settings of the loop, as --train"
    )


class EditorRow(Settings):
    """A row of the table: an editor, its settings, and its training if it has one.

    With a training, `settings` belong to it, and cells take them from the trained networks.
    """

    editor: str = Field(description="See `errata ls editors`")
    label: str | None = Field(default=None, description="Name in tables")
    settings: dict[str, Value] = Field(default_factory=dict, description="As --set")
    on: dict[str, dict[str, Value]] = Field(
        default_factory=dict, description="Further settings for one model of [models]"
    )
    as_published: str | dict[str, str] | None = Field(
        default=None, description="Backbone whose published settings to start from, or per model"
    )
    edit_settings: dict[str, Value] = Field(
        default_factory=dict, description="Settings of cells whose editor has a training"
    )
    train: Training | None = Field(default=None, description="Train networks first")
    models: tuple[str, ...] | None = Field(default=None, description="Only on these models")
    data: tuple[str, ...] | None = Field(default=None, description="Only on these data sets")
    grid: dict[str, tuple[Value, ...]] = Field(
        default_factory=dict,
        description="One row per combination of settings.NAME, edit_settings.NAME or train.NAME",
    )


class Recipe(Settings):
    """Everything that a sweep runs over."""

    name: str = Field(description="Name of the sweep and of its folder")
    about: str = Field(default="", description="One sentence")
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1, description="Seeds")
    train_seeds: Literal["each", "first"] = Field(
        default="each", description="One training per seed, or one for all seeds"
    )
    protocol: dict[str, Value] = Field(
        default_factory=dict,
        description="Whatever `errata eval` can be asked: regime, batch, top_k, suite, general, "
        "retention, fluency, every … (`errata.Protocol`); a name may stand in the file itself too",
    )
    retries: int = Field(default=2, ge=0, description="How often a unit that failed starts again")
    hardware: Hardware = Field(default_factory=Hardware)
    models: dict[str, ModelEntry]
    data: dict[str, DataEntry]
    editors: dict[str, EditorRow]

    def asked(self, data: str) -> dict[str, Any]:
        """Return what is asked on a data set: the recipe's protocol, and its own on top."""
        return {**self.protocol, **self.data[data].protocol}

    def protocol_on(self, data: str) -> Protocol:
        """Return the same with all defaults."""
        return protocol_of(None, self.asked(data))


def read_recipe(path: str | Path, data_dir: str | Path = DATA_DIR) -> Recipe:
    """Read and check a recipe.

    Args:
        path: The TOML file.
        data_dir: The folder that `{data}` stands for in the names of data sets.

    Raises:
        ConfigError: If the file is missing or broken, or a name or value in it is wrong.
    """
    return recipe_from(read_toml(path), str(path), data_dir)


def recipe_from(
    document: Mapping[str, Any], where: str = "recipe", data_dir: str | Path = DATA_DIR
) -> Recipe:
    """Build a recipe from a parsed document.

    Args:
        document: The tables of the file.
        where: What to call it in messages.
        data_dir: The folder that `{data}` stands for in the names of data sets.

    Raises:
        ConfigError: If a name or value in it is wrong; names the table that holds it.
    """
    values = _asked_together(document, where)
    values["protocol"] = _protocol(values["protocol"], f"{where} [protocol]", data_dir)
    if "hardware" in values:
        table = _table(values["hardware"], where, "hardware")
        values["hardware"] = _read(Hardware, table, f"{where} [hardware]")
    kinds = {"models": ModelEntry, "data": DataEntry, "editors": EditorRow}
    for section, kind in kinds.items():
        entries = _table(values.get(section, {}), where, section)
        if not entries:
            raise ConfigError(
                f"{where}: no [{section}.NAME]", f"A sweep needs at least one table [{section}.…]"
            )
        made = {}
        for name, entry in entries.items():
            place = f"{where} [{section}.{name}]"
            if not NAME.fullmatch(name):
                raise ConfigError(
                    f"{place}: {name!r} cannot name a folder",
                    "Use letters, digits, . _ and -; the name in tables is `label`.",
                )
            table = dict(_table(entry, where, f"{section}.{name}"))
            if isinstance(table.get("spec"), str):
                table["spec"] = table["spec"].replace(DATA, str(data_dir))
            if kind is DataEntry and "protocol" in table:
                own = _table(table["protocol"], where, f"{section}.{name}.protocol")
                table["protocol"] = _protocol(own, f"{where} [data.{name}.protocol]", data_dir)
            for key in ("settings", "edit_settings", "on") if kind is EditorRow else ():
                if key in table:
                    table[key] = _placed(table[key], data_dir)
            if kind is EditorRow and "train" in table:
                inner = _table(table["train"], where, f"{section}.{name}.train")
                if "data" in inner:
                    inner = {**inner, "data": _placed(inner["data"], data_dir)}
                table["train"] = _read(Training, inner, f"{where} [{section}.{name}.train]")
            made[name] = _read(kind, table, place)
        values[section] = made
    recipe = _read(Recipe, values, where)
    if not NAME.fullmatch(recipe.name):
        raise ConfigError(f"{where}: name {recipe.name!r} cannot name a folder")
    if len(set(recipe.seeds)) != len(recipe.seeds):
        raise ConfigError(f"{where}: a seed stands twice in {list(recipe.seeds)}")
    for name, entry in recipe.data.items():
        place = f"[data.{name}.protocol]" if entry.protocol else "[protocol]"
        try:
            recipe.protocol_on(name)
        except ConfigError as error:
            told = error.message.removeprefix("protocol: ")
            raise ConfigError(f"{where} {place}: {told}", error.hint) from None
        _check_names(f"{where} [data.{name}] models", entry.models or (), recipe.models)
    for name, row in recipe.editors.items():
        _check_row(row, recipe, f"{where} [editors.{name}]")
    return recipe


NOT_ASKED = ("seed",)
"""What of a protocol a recipe says otherwise: by `seeds`."""


def _asked_together(document: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return the tables, with what the file itself says of the protocol moved into its table."""
    values = dict(document)
    table = dict(_table(values.get("protocol", {}), where, "protocol"))
    for name in Protocol.model_fields:
        if name not in values or name in NOT_ASKED:
            continue
        if name in table:
            raise ConfigError(f"{where}: {name!r} stands in the file and in [protocol]")
        table[name] = values.pop(name)
    values["protocol"] = table
    return values


def _protocol(table: Mapping[str, Any], where: str, data_dir: str | Path) -> dict[str, Any]:
    """Refuse unknown names, and put the folder of local data into paths."""
    known = [name for name in Protocol.model_fields if name not in NOT_ASKED]
    for name in table:
        if name not in known:
            hint = "Write seeds = […]." if name in NOT_ASKED else did_you_mean(name, known)
            raise ConfigError(f"{where}: unknown setting {name!r}", hint)

    return _placed(table, data_dir)


def _read(kind: type[S], table: Mapping[str, Any], where: str) -> S:
    """Build settings; an unknown name is reported before one that is missing."""
    for name in table:
        if name not in kind.model_fields:
            raise ConfigError(
                f"{where}: unknown setting {name!r}", did_you_mean(name, kind.model_fields)
            )
    for name, field in kind.model_fields.items():
        if field.is_required() and name not in table:
            raise ConfigError(f"{where}: {name!r} is missing", f"{name}: {field.description}")
    return settings_from(kind, table, where=where)


def _placed(value: Any, data_dir: str | Path) -> Any:
    """Return a value with the folder of local data put into all its texts."""
    if isinstance(value, Mapping):
        return {key: _placed(item, data_dir) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_placed(item, data_dir) for item in value]
    return value.replace(DATA, str(data_dir)) if isinstance(value, str) else value


def _table(value: Any, where: str, name: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: {name} is {value!r}; expected a table [{name}]")
    return value


def _check_names(place: str, names: Iterable[str], known: Iterable[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{place}: {name!r} is not in this recipe", did_you_mean(name, known))


def _check_row(row: EditorRow, recipe: Recipe, place: str) -> None:
    published = row.as_published if isinstance(row.as_published, dict) else {}
    for key, names, known in (
        ("on", row.on, recipe.models),
        ("as_published", published, recipe.models),
        ("models", row.models or (), recipe.models),
        ("data", row.data or (), recipe.data),
    ):
        _check_names(f"{place} {key}", names, known)
    if row.edit_settings and row.train is None:
        raise ConfigError(
            f"{place}: edit_settings belong to rows with a training", "Write them as settings."
        )
    for key, choices in row.grid.items():
        if not choices:
            raise ConfigError(f"{place} grid: {key!r} has no values")
