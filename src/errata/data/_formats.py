"""Which data set a file is of: known by the fields of its records, whatever it is called.

A name that is given counts; what it names is only checked, since a file that maps to cases in two
ways gives other numbers in each. Without a name the format that has the most fields in common
with the first record is taken, and two that have as many are told apart by nobody but the user.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from errata.data._base import Dataset
from errata.data._reading import read_bytes, read_json
from errata.errors import ConfigError, DataError
from errata.registry import Registry

OWN = "jsonl"
"""Name of errata's own format."""

_START = 1 << 16
"""Bytes in which the first record is looked for before the whole file is parsed."""

Marks = Collection[Collection[str]]


def marks_of(registry: Registry) -> dict[str, Marks]:
    """Return the marks of every data set that has any, by its name."""
    marks = {name: entry.facts.get("marks", ()) for name, entry in registry.entries.items()}
    return {name: forms for name, forms in marks.items() if forms}


def agreement(value: Any, marks: Marks) -> int:
    """Return the number of fields of the largest form that a record has in full; 0: of none."""
    return max((len(form) for form in marks if all(_has(value, f) for f in form)), default=0)


def _has(value: Any, path: str) -> bool:
    for key in path.split("."):
        if isinstance(value, list) and value:
            value = value[0]
        if not isinstance(value, Mapping) or key not in value:
            return False
        value = value[key]
    return True


def recognised(value: Any, registry: Registry) -> tuple[str, ...]:
    """Return the data sets whose form agrees best with a record; none if no form does."""
    found = {name: agreement(value, marks) for name, marks in marks_of(registry).items()}
    best = max(found.values(), default=0)
    return tuple(name for name, count in found.items() if best and count == best)


def stray(value: Any, dataset: Dataset, registry: Registry) -> str | None:
    """Return the data set that a record is of if another one's form agrees with it better.

    A data set without marks takes any record.
    """
    found = recognised(value, registry)
    if len(found) != 1 or found[0] == dataset.name or not dataset.marks:
        return None
    own = agreement(value, dataset.marks + dataset.also_read)
    return found[0] if own < agreement(value, marks_of(registry)[found[0]]) else None


def looks_like(name: str, file: str, flag: str = "--data") -> str:
    """Return the hint that a file is of another data set."""
    return f"This looks like {name}: {flag} {name}:{file}"


def format_of(path: Path, registry: Registry) -> str | None:
    """Return the data set that a file or folder is of; None if its fields are of no known form.

    Raises:
        ConfigError: If several data sets have this form.
    """
    found = recognised(first_of(path), registry)
    if len(found) > 1:
        raise ConfigError(
            f"{path} may be of {' or '.join(found)}; which data set is it?",
            f"Example: {found[0]}:{path}",
        )
    return found[0] if found else None


def first_of(path: Path) -> Any:
    """Return the first record of a file, or of the first file in a folder; None if none is there.

    Of an object of records, as UniEdit's files are, it is the first of them.
    """
    file = path
    if path.is_dir():
        inside = (f for f in sorted(path.rglob("*")) if f.suffix in {".json", ".jsonl"})
        file = next(inside, path)
    if not file.is_file():
        return None
    value = first_record(file)
    inner = next(iter(value.values()), None) if isinstance(value, dict) else None
    is_record = not isinstance(inner, dict) or any(not isinstance(v, dict) for v in value.values())
    return value if is_record else inner


def first_record(file: Path) -> Any:
    """Return the first value of a list, of lines, or the one value of a file; None if broken.

    What is broken is told when the file is loaded.
    """
    try:
        data = read_bytes(file)
        text = data[:_START].decode("utf-8-sig", errors="ignore").lstrip()
        try:
            return json.JSONDecoder().raw_decode(text.removeprefix("[").lstrip())[0]
        except (ValueError, RecursionError):
            if len(data) <= _START:
                return None
        value = read_json(file)
    except DataError:
        return None
    return value[0] if isinstance(value, list) and value else value
