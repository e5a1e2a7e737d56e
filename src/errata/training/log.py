"""The log of a training run: one JSON line per entry, always; trackers on request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from errata.errors import RunError
from errata.store.files import write_atomically
from errata.store.records import reported
from errata.untrusted import parse, read_bytes

LOG = "log.jsonl"


class Log:
    """Appends entries to `log.jsonl`, after dropping those of steps that will be done again.

    Args:
        folder: Folder of the run.
        step: Steps done by the checkpoint that the run goes on from.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.path = folder / LOG
        kept = [entry for entry in read_log(folder) if entry["step"] <= step]
        text = "".join(json.dumps(entry) + "\n" for entry in kept)
        write_atomically(self.path, text.encode())

    def write(self, entry: Mapping[str, Any]) -> None:
        """Append one entry.

        Raises:
            RunError: If it cannot be written.
        """
        try:
            with self.path.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(dict(entry)) + "\n")
        except OSError as error:
            raise RunError(
                f"cannot write {self.path}: {error.strerror or error}",
                "Make room and go on with --resume; the last checkpoint is kept.",
            ) from error


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of a run's log; a half-written last line is left out."""
    path = folder / LOG
    if not path.is_file():
        return []
    entries = []
    with reported(f"cannot read {path}"):
        lines = read_bytes(path).splitlines()
    for line in lines:
        try:
            entry = parse(line)
        except ValueError:
            break
        if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
            break
        entries.append(entry)
    return entries
