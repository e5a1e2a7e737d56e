"""Reading JSON and JSONL so that whatever is wrong is named by file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from errata import untrusted
from errata.data._records import SKIP_HINT, Record, describe
from errata.errors import DataError

_BOM = b"\xef\xbb\xbf"


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def utf8(data: bytes, where: str, line: int = 1) -> str:
    """Decode strictly as UTF-8.

    Args:
        data: The bytes; a byte order mark is left out.
        where: The file, for messages.
        line: Number of the first line of `data`.

    Raises:
        DataError: Names line and byte.
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise DataError(
            f"{where}:{line}: not UTF-8 (it looks like UTF-16)", "Save the file as UTF-8."
        )
    try:
        return data.removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        # error.object is what was decoded (without the byte order mark)
        before = error.object[: error.start]
        line += before.count(b"\n")
        column = len(before) - (before.rfind(b"\n") + 1) + 1
        raise DataError(
            f"{where}:{line}: not UTF-8: byte 0x{error.object[error.start]:02x} at byte {column}"
            " of the line",
            "Save the file as UTF-8.",
        ) from None


def _parse(text: str, where: str, line: int = 1) -> Any:
    try:
        value = json.loads(text, parse_constant=_constant, object_pairs_hook=_distinct)
        untrusted.check_values(value, texts=False)  # of texts, fields say themselves
        return value
    except json.JSONDecodeError as error:
        ends = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        hint = "It ends too early; fetch or write it again." if ends else None
        raise DataError(
            f"{where}:{line + error.lineno - 1}: not valid JSON at column {error.colno}:"
            f" {error.msg}",
            hint,
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}:{line}: not valid JSON: {error}") from None


def read_bytes(path: Path, limit: int = untrusted.DATA_BYTES) -> bytes:
    """Read a file of bounded size.

    Raises:
        DataError: If it is missing, a folder, too large, or not readable.
    """
    try:
        return untrusted.read_bytes(path, limit=limit)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: If it is not UTF-8, not JSON, or repeats a key; names the line.
    """
    return _parse(utf8(read_bytes(path), str(path)), str(path))


def read_list(path: Path, id_field: str | None = None) -> Iterator[Record]:
    """Read a JSON file that holds a list of records.

    Args:
        path: The file.
        id_field: Field shown in messages besides the position (counted from 0).

    Raises:
        DataError: If the file does not hold a list.
    """
    value = read_json(path)
    if not isinstance(value, list):
        raise DataError(f"{path} holds {describe(value)}; expected a list of records")
    for index, entry in enumerate(value):
        name = entry.get(id_field) if id_field and isinstance(entry, dict) else None
        place = f"record {index}" + ("" if name is None else f" ({id_field} {name})")
        yield Record(entry, str(path), place, str(index))


def read_lines(path: Path) -> Iterator[Record | DataError]:
    """Read a JSONL file: one record per line, blank lines allowed.

    A line that cannot be read comes as the error that tells why, so that one broken line need
    not lose the others.
    """
    data = read_bytes(path)
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        utf8(data, str(path))
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.removeprefix(_BOM).strip():
            continue
        try:
            value = _parse(utf8(line.rstrip(b"\r"), str(path), number), str(path), number)
        except DataError as error:
            yield DataError(error.message, error.hint or SKIP_HINT)
            continue
        yield Record(value, str(path), f"line {number}", str(number))


def read_records(path: Path, id_field: str | None = None) -> Iterator[Record | DataError]:
    """Read a file that holds a list of records, or one record per line if it ends in `.jsonl`.

    Lists in files that end in `.jsonl`, and lines in those that do not, are found by how the file
    begins.

    Raises:
        DataError: If it is neither.
    """
    start = read_bytes(path).removeprefix(_BOM).lstrip()
    if path.suffix == ".jsonl":
        lines = not start.startswith(b"[")
    else:
        first, _, rest = start.partition(b"\n")
        lines = first.startswith(b"{") and rest.lstrip().startswith(b"{") and _is_json(first)
    yield from read_lines(path) if lines else read_list(path, id_field)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
