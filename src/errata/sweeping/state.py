"""`sweep.json`: what ran in a sweep's folder, how often, and how it ended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from errata import __version__
from errata.documents import Document, checked
from errata.errors import RunError
from errata.store.files import write_atomically
from errata.store.locks import take_lock as take
from errata.sweeping.units import Unit
from errata.untrusted import read_object

if TYPE_CHECKING:
    from filelock import BaseFileLock

FILE = "sweep.json"
Labels = Mapping[str, Mapping[str, str]]
Status = Literal["waiting", "running", "done", "failed", "blocked"]
"""Blocked: a training that it needs failed."""


@dataclass
class Progress:
    """How far one unit is.

    Attributes:
        key: Hash of what was asked for.
        status: Where it stands.
        attempts: How often it was started, over all runs of the sweep.
        seconds: Time of all attempts.
        host: Machine of the last attempt.
        reason: Why it is not done.
    """

    key: str
    status: Status = "waiting"
    attempts: int = 0
    seconds: float = 0.0
    host: str = ""
    reason: str = ""
    log: list[str] = field(default_factory=list)


class _Entry(Document):
    """A unit in the file."""

    key: str
    status: Status = "waiting"
    attempts: int = 0
    seconds: float = 0.0
    host: str = ""
    reason: str = ""
    log: list[str] = Field(default_factory=list)


class _Document(Document):
    """The file."""

    sweep: str
    units: dict[str, _Entry]
    labels: dict[str, dict[str, str]] = Field(default_factory=dict)


class State:
    """The folder of a sweep, held by this process; use it as a context manager.

    Attributes:
        units: Progress by the unit's name.
        labels: Names in tables of models, rows and data sets, in the order of the recipe.
    """

    def __init__(self, out: Path, name: str, lock: BaseFileLock, labels: Labels) -> None:
        self.out, self.name, self.labels = out, name, labels
        self.units: dict[str, Progress] = {}
        self._lock = lock

    @classmethod
    def open(
        cls,
        out: Path,
        name: str,
        units: Sequence[Unit],
        *,
        labels: Labels | None = None,
        force: bool = False,
    ) -> State:
        """Take a sweep's folder and compare what was done there with what is asked for now.

        Args:
            out: The folder; created if missing.
            name: Name of the sweep.
            units: All units of the recipe.
            labels: Names in tables, by `models`, `rows` and `data`; kept for reports.
            force: Do units again that were done with another command, instead of refusing.

        Raises:
            RunError: If another process has it, if it holds something else or another sweep, or if
                a unit in it was started with another command and `force` is not given.
        """
        if out.exists() and not out.is_dir():
            raise RunError(f"{out} is a file; expected a folder", "Choose another --out.")
        if (
            out.is_dir()
            and any(out.iterdir())
            and not any((out / file).exists() for file in (FILE, "lock"))
        ):
            raise RunError(f"{out} exists and is not a sweep's folder", "Choose another --out.")
        try:
            out.mkdir(parents=True, exist_ok=True)
            lock = take(out)
        except OSError as error:
            raise RunError(f"cannot use {out}: {error.strerror or error}") from error
        try:
            state = cls(out, name, lock, labels or {})
            state._enter(units, read(out), force)
        except BaseException:
            lock.release()
            raise
        return state

    def _enter(self, units: Sequence[Unit], old: Mapping[str, Any], force: bool) -> None:
        if old and old["sweep"] != self.name:
            raise RunError(
                f"{self.out} holds the sweep {old['sweep']!r}, not {self.name!r}",
                "Choose another --out.",
            )
        before = {name: progress_from(entry) for name, entry in old.get("units", {}).items()}
        keys = {unit.name: unit.key(self.out) for unit in units}
        other = [
            unit
            for unit in units
            if unit.name in before
            and before[unit.name].key != keys[unit.name]
            and unit.folder.exists()
        ]
        if other and not force:
            more = f" and {len(other) - 1} more" if len(other) > 1 else ""
            raise RunError(
                f"{self.out}: {other[0].name}{more} was started with other settings",
                "Choose another --out, or add --force to do them again.",
            )
        again = {unit.name for unit in other}
        for unit in units:
            redo = unit.name in again or not again.isdisjoint(unit.needs)
            if redo and unit.folder.exists():
                shutil.rmtree(unit.folder)
                unit.log.unlink(missing_ok=True)
            known = None if redo else before.get(unit.name)
            self.units[unit.name] = known or Progress(keys[unit.name])
        gone = {name: entry for name, entry in before.items() if name not in self.units}
        self.units |= gone  # of an earlier form of the recipe, or left out by --only
        self.write()

    def write(self) -> None:
        """Write the file, whole or not at all."""
        document = {
            "sweep": self.name,
            "errata": __version__,
            "labels": self.labels,
            "units": {name: asdict(progress) for name, progress in self.units.items()},
        }
        text = json.dumps(document, indent=1, ensure_ascii=False) + "\n"
        write_atomically(self.out / FILE, text.encode())

    def __enter__(self) -> State:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lock.release()


def read(out: Path) -> dict[str, Any]:
    """Return what stands in a sweep's folder; nothing if it is new.

    Raises:
        RunError: If the file is damaged.
    """
    path = out / FILE
    if not path.is_file():
        return {}
    try:
        document = read_object(path, within=out)
        checked(_Document, document)
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path} is damaged: {error}", "Delete it: finished units are found by their folders."
        ) from None
    return document


def progress_from(entry: Mapping[str, Any]) -> Progress:
    """Read the progress of a unit as it was written."""
    known = {item.name for item in fields(Progress)}
    return Progress(**{key: value for key, value in entry.items() if key in known})
