"""A sheet: a folder with `errata.toml` (model, editors, gates) and facts in JSONL or YAML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from errata.config import Settings, read_toml, settings_from
from errata.data._reading import read_lines
from errata.data._records import Record
from errata.data._yaml import ENDINGS, read_yaml
from errata.errors import ConfigError, DataError
from errata.sheets.fact import Fact, fact_of
from errata.sheets.faults import refuse_faults
from errata.store.digest import digest_of_all
from errata.untrusted import check_file, reachable

TOML, FACTS, PATCH = "errata.toml", "facts", "patch"
"""Files and folders of a sheet; the patch lies there unless it is to go elsewhere."""
TABLES = ("settings", "gates")


class Gates(Settings):
    """What has to hold of a build; shares from 0 to 1."""

    taken: float = Field(default=1.0, ge=0, le=1, description="Facts that are taken, at least")
    holds: float = Field(default=1.0, ge=0, le=1, description="`holds` that follow, at least")
    keeps: float = Field(default=1.0, ge=0, le=1, description="`keeps` that did not move, at least")
    neighbours: float | None = Field(
        default=None, ge=0, le=1, description="Neighbours that moved, at most; none: any"
    )


class SheetConfig(Settings):
    """What `errata.toml` says beside its tables."""

    name: str = Field(description="Name of the sheet; patches bear it", min_length=1)
    model: str = Field(default="pocket", description="The base model")
    revision: str | None = Field(default=None, description="Its revision on the Hub")
    editor: tuple[str, ...] = Field(
        default=("rome",), min_length=1, description="An editor, or several that are tried in turn"
    )

    @field_validator("editor", mode="before")
    @classmethod
    def _one_or_more(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


@dataclass(frozen=True)
class Sheet:
    """Corrections of one model.

    Attributes:
        folder: Where it lies.
        config: Name, model, editors.
        settings: Settings of the editors; each takes those that it has.
        gates: What has to hold of a build.
        facts: All facts, in the order of files by name, and of lines.
    """

    folder: Path
    config: SheetConfig
    settings: Mapping[str, Any]
    gates: Gates
    facts: tuple[Fact, ...]

    @property
    def name(self) -> str:
        """Name of the sheet."""
        return self.config.name

    def valid(self, at: date | None = None) -> tuple[Fact, ...]:
        """Return the facts that are valid on a day; default: today."""
        at = at or date.today()
        return tuple(fact for fact in self.facts if fact.state(at) == "valid")

    def left_out(self, at: date | None = None) -> list[str]:
        """Say which facts are not valid on a day, and why."""
        at = at or date.today()
        found = []
        for fact in self.facts:
            if (state := fact.state(at)) == "ended":
                found.append(f"{fact.id} left out: it ended on {fact.valid_until} ({fact.place})")
            elif state == "not yet":
                found.append(f"{fact.id} left out: it begins on {fact.valid_from} ({fact.place})")
        return found

    def find(self, name: str) -> Fact:
        """Return the fact of an id.

        Raises:
            DataError: Names those that come close.
        """
        from errata.config import did_you_mean

        found = next((fact for fact in self.facts if fact.id == name), None)
        if found is None:
            hint = did_you_mean(name, [fact.id for fact in self.facts])
            raise DataError(f"no fact {name!r} in {self.folder}", hint)
        return found


def load_sheet(folder: str | Path, at: date | None = None) -> Sheet:
    """Read a sheet, and refuse one that contradicts itself.

    Args:
        folder: Where it lies.
        at: The day from which on facts may not contradict each other; default: today.

    Raises:
        ConfigError: If there is none, or `errata.toml` says what it should not.
        DataError: If a fact is broken, ids occur twice, or facts contradict each other; names
            file and line of every contradiction.
    """
    folder = Path(folder)
    with reachable(folder, DataError):
        if not (folder / TOML).is_file():
            raise ConfigError(
                f"{folder} is no sheet: there is no {TOML}", f"errata sheet init {folder}"
            )
    path = folder / TOML
    document = read_toml(path)
    tables = {}
    for name in TABLES:
        tables[name] = document.pop(name, {})
        if not isinstance(tables[name], dict):
            raise ConfigError(
                f"{path}: {name} is no table", f"Write [{name}] and its entries below."
            )
    config = settings_from(SheetConfig, document, where=str(path))
    gates = settings_from(Gates, tables["gates"], where=f"{path} [gates]")
    facts = tuple(fact for file in files_of(folder) for fact in _read(file, folder))
    if not facts:
        raise DataError(
            f"{folder / FACTS} holds no fact",
            'In a .jsonl file one object per line: {"id": …, "prompt": …, "target": …}; in a .yaml '
            "file a list of them.",
        )
    refuse_faults(facts, at or date.today())
    return Sheet(folder, config, tables["settings"], gates, facts)


def files_of(folder: Path) -> list[Path]:
    """Return the files of facts, by name.

    Raises:
        DataError: If there is one that would be overlooked.
    """
    try:
        entries = sorted((folder / FACTS).iterdir())
    except OSError as error:
        raise DataError(f"cannot read {folder / FACTS}: {error.strerror or error}") from None
    for entry in entries:
        if entry.suffix in (".json", ".toml", ".csv"):
            raise DataError(
                f"{entry} would be overlooked: facts are read from .jsonl and .yaml files",
                "Write one object per line to a file that ends in .jsonl.",
            )
    endings = (".jsonl", *ENDINGS)
    return [entry for entry in entries if entry.suffix in endings and entry.name[0] != "."]


QUOTES = "Mend the entry; numbers and true or false that are meant as texts stand in quotes."


def facts_of(path: Path) -> Iterator[tuple[Record, Fact]]:
    """Read a file of facts, each with the record that it was read from.

    Raises:
        DataError: Names file, line and field.
    """
    written = path.suffix in ENDINGS
    for record in read_yaml(path) if written else read_lines(path):
        if isinstance(record, DataError):
            raise DataError(record.message, "Mend the line.")
        try:
            yield record, fact_of(record)
        except DataError as error:
            plain = written and error.hint == "Mend the line."
            raise DataError(error.message, QUOTES if plain else error.hint) from None


def _read(path: Path, folder: Path) -> list[Fact]:
    try:
        check_file(path, within=folder)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None
    return [fact for _, fact in facts_of(path)]


def digest_of_facts(facts: Sequence[Fact]) -> str:
    """Return what stands for the content of facts, 16 hex digits."""
    import json

    told = (json.dumps(f.described(), sort_keys=True, ensure_ascii=False) for f in facts)
    return digest_of_all(told)[:16]
