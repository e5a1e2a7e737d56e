"""Result files: one compressed JSON file per run, equal for equal results."""

from __future__ import annotations

import gzip
import json
from functools import lru_cache
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
    """Return a result, to be read and not written to; None if the run is not finished.

    A page asks for a result once for each table that it stands in.
    """
    path = path_of(folder, name)
    if not path.is_file():
        return None
    state = path.stat()
    return _parsed(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=256)
def _parsed(path: Path, written: int, size: int) -> dict[str, Any]:
    """Return what a file holds; `written` and `size` tell it from an earlier one of its name."""
    return json.loads(gzip.decompress(path.read_bytes()))
