"""Result files: one compressed JSON file per run, equal for equal results."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

SUFFIX = ".json.gz"


def path_of(folder: Path, name: str) -> Path:
    """Return the file of a run's result."""
    return folder / f"{name}{SUFFIX}"


def names(folder: Path) -> list[str]:
    """Return the names of all results of a folder, sorted."""
    return sorted(path.name.removesuffix(SUFFIX) for path in folder.glob(f"*{SUFFIX}"))


def write(folder: Path, name: str, result: dict[str, Any]) -> None:
    """Write a result, compressed, without a time stamp: equal results are equal files."""
    folder.mkdir(parents=True, exist_ok=True)
    data = json.dumps(result, separators=(",", ":")).encode()
    path = path_of(folder, name)
    part = path.with_suffix(".part")
    part.write_bytes(gzip.compress(data, 9, mtime=0))
    part.replace(path)


def read(folder: Path, name: str) -> dict[str, Any] | None:
    """Return a result; None if the run is not finished."""
    path = path_of(folder, name)
    return json.loads(gzip.decompress(path.read_bytes())) if path.is_file() else None
