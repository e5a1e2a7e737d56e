"""Records of a run: one JSON line each; a half-written last line is recognised and cut off."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from errata.errors import ErrataError, RunError
from errata.untrusted import DATA_BYTES, parse, read_bytes


@contextmanager
def reported(what: str) -> Iterator[None]:
    """Turn what the system refuses into an error that says what was tried."""
    try:
        yield
    except OSError as error:
        raise RunError(f"{what}: {error.strerror or error}") from error


def line_of(record: Mapping[str, Any]) -> bytes:
    """Return a record as it stands in the file."""
    return (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_records(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the records of a file and the length of the part that holds them.

    Raises:
        RunError: If a line before the last is damaged.
    """
    if not path.is_file():
        return [], 0
    with reported(f"cannot read {path}"):
        data = read_bytes(path, within=path.parent, limit=DATA_BYTES)
    records: list[dict[str, Any]] = []
    good = 0
    lines = data.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        record = _parse(line)
        if record is None:
            if number < len(lines):
                raise RunError(
                    f"{path}, line {number}: not a record",
                    "The file was changed by hand or damaged.",
                )
            break
        records.append(record)
        good += len(line)
    return records, good


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = parse(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("id"), str | int) else None


def mend_records(path: Path) -> list[dict[str, Any]]:
    """Read the records and cut off a half-written last line."""
    records, good = read_records(path)
    if path.is_file() and path.stat().st_size > good:
        cut_to(path, good)
    return records


def cut_to(path: Path, size: int) -> None:
    """Cut a file off behind its whole records."""
    with reported(f"cannot mend {path}"):
        if path.is_file():
            os.truncate(path, size)


@contextmanager
def counting(folders: Sequence[Path]) -> Iterator[None]:
    """Say whose records or scores cannot be counted.

    Raises:
        RunError: Names the folders and what is wrong.
    """
    try:
        yield
    except ErrataError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        names = ", ".join(map(str, folders))
        raise RunError(
            f"the records in {names} cannot be counted: {what}",
            "They were altered, or are of another version; run it again (--force).",
        ) from error
