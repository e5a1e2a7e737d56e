"""Reading JSON and JSONL so that whatever is wrong is named by file, record and field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from errata.case import SubjectAt, subject_starts
from errata.config import did_you_mean
from errata.errors import DataError

VISIBLE = "a text with at least one visible character"
SKIP_HINT = "Mend the file, or leave such records out with --skip-bad."

_MISSING = object()
_BOM = b"\xef\xbb\xbf"


def describe(value: object) -> str:
    """Say in a few words what a JSON value is."""
    if value is _MISSING:
        return "missing"
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = json.dumps(value) if isinstance(value, bool | int | float) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


class Record:
    """One JSON value that knows where it stands, so that a wrong field can be named in full.

    Attributes:
        value: The JSON value.
        file: Name of the file, for messages.
        place: Where in the file: `line 7`, `record 3 (case_id 17)`.
        key: Its own name in the file: position in a list, line number, key in an object.
        group: The part of the data set it belongs to (UniEdit: the domain).
        path: Field path of this value inside its record; empty for the record itself.
    """

    __slots__ = ("file", "group", "key", "path", "place", "value")

    def __init__(
        self, value: Any, file: str, place: str, key: str = "", group: str = "", path: str = ""
    ) -> None:
        self.value = value
        self.file = file
        self.place = place
        self.key = key
        self.group = group
        self.path = path

    def problem(self, message: str) -> DataError:
        """Return an error about this record."""
        return DataError(f"{self.file}: {self.place}: {message}", SKIP_HINT)

    def wrong(self, field: str, expected: str, found: object) -> DataError:
        """Return an error about one field of this record."""
        name = f"{self.path}.{field}".strip(".")
        what = f"field {name!r} is" if name else "is"
        return self.problem(f"{what} {describe(found)}; expected {expected}")

    def get(self, field: str, expected: str = "a value") -> Any:
        """Return the value at a dotted path.

        Raises:
            DataError: If a part of the path is missing or not an object.
        """
        value = self._find(field)
        if value is _MISSING:
            raise self.wrong(field, expected, value)
        return value

    def _find(self, field: str) -> Any:
        value, done = self.value, ""
        for key in field.split("."):
            if not isinstance(value, dict):
                raise self.wrong(done, "an object", value)
            if key not in value:
                return _MISSING
            value, done = value[key], f"{done}.{key}".strip(".")
        return value

    def has(self, field: str) -> bool:
        """Say whether a field is there and not null."""
        return self._find(field) not in (_MISSING, None)

    def _text(self, field: str, value: object) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(field, VISIBLE, value)
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.wrong(field, "a text without unpaired surrogates", value) from None
        return value

    def text(self, field: str) -> str:
        """Return a text that is more than white space.

        Raises:
            DataError: If it is missing, empty, blank or no text.
        """
        return self._text(field, self.get(field, VISIBLE))

    def optional_text(self, field: str) -> str | None:
        """Return a text, or None where the field is missing, null or blank."""
        value = self._find(field)
        if value is _MISSING or value is None or (isinstance(value, str) and not value.strip()):
            return None
        return self._text(field, value)

    def texts(self, field: str, at_least: int = 0, optional: bool = False) -> tuple[str, ...]:
        """Return a list of texts, each more than white space.

        Raises:
            DataError: If it is missing (unless `optional`), no list, too short, or not of texts.
        """
        if optional and not self.has(field):
            return ()
        return tuple(
            self._text(f"{field}[{index}]", value)
            for index, value in enumerate(self._list(field, "texts", at_least))
        )

    def one_or_more_texts(self, field: str) -> tuple[str, ...]:
        """Return the texts of a field that holds one text or a list of them."""
        value = self.get(field, "a text or a list of texts")
        return self.texts(field, 1) if isinstance(value, list) else (self.text(field),)

    def _list(self, field: str, of: str, at_least: int = 0) -> list[Any]:
        expected = f"a list of {of}" if not at_least else f"a list of at least {at_least} {of}"
        value = self.get(field, expected)
        if not isinstance(value, list) or len(value) < at_least:
            raise self.wrong(field, expected, value)
        return value

    def rows(self, field: str, width: int | None = None) -> tuple[tuple[str, ...], ...]:
        """Return a list of lists of texts, such as triples, each of `width` entries if given."""
        expected = "a list of texts" if width is None else f"a list of {width} texts"
        found: list[tuple[str, ...]] = []
        for index, row in enumerate(self._list(field, "lists")):
            right = isinstance(row, list) and all(isinstance(part, str) for part in row)
            if not right or width not in (None, len(row)):
                raise self.wrong(f"{field}[{index}]", expected, row)
            found.append(tuple(row))
        return tuple(found)

    def at(self, field: str) -> Record:
        """Return the object at a path, as a record that names its fields in full."""
        return self.inner(field, self.get(field, "an object"))

    def items(self, field: str, at_least: int = 0) -> list[Record]:
        """Return a list of objects, each as a record."""
        return [
            self.inner(f"{field}[{index}]", value)
            for index, value in enumerate(self._list(field, "objects", at_least))
        ]

    def numbered(self, field: str) -> list[Record]:
        """Return the objects of an object whose keys only number them (`{"0": …}`)."""
        value = self.get(field, "an object of numbered objects")
        if not isinstance(value, dict):
            raise self.wrong(field, "an object of numbered objects", value)
        return [self.inner(f"{field}.{key}", entry) for key, entry in value.items()]

    def inner(self, field: str, value: Any) -> Record:
        """Return an object that stands at `field` as a record.

        Raises:
            DataError: If it is not an object.
        """
        if not isinstance(value, dict):
            raise self.wrong(field, "an object", value)
        path = f"{self.path}.{field}".strip(".")
        return Record(value, self.file, self.place, self.key, self.group, path)

    def identity(self, field: str) -> str:
        """Return a name: a text, or a whole number as text."""
        value = self.get(field, "a text or a whole number")
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return self._text(field, value)

    def splice(self, field: str, subject: str) -> str:
        """Return the template at `field` with `subject` put in place of its one `{}`.

        Spliced rather than formatted: other braces in a template are plain text.

        Raises:
            DataError: If there is not exactly one `{}`.
        """
        template = self.text(field)
        if template.count("{}") != 1:
            raise self.wrong(field, "a text with exactly one {} for the subject", template)
        return template.replace("{}", subject)

    def occurrence(self, field: str, subject: str) -> SubjectAt:
        """Return which occurrence of the subject a template puts in place of its `{}`."""
        prompt, start = self.splice(field, subject), self.text(field).index("{}")
        starts = subject_starts(prompt, subject)
        at = start + len(subject) - len(subject.lstrip())
        if at not in starts or at == starts[-1]:
            return "last"
        return starts.index(at) + 1

    def only(self, known: tuple[str, ...]) -> None:
        """Refuse fields that are not in `known`.

        Raises:
            DataError: With the closest known names; or if the record is no object.
        """
        if not isinstance(self.value, dict):
            raise self.wrong("", "an object", self.value)
        for key in self.value:
            if key not in known:
                name = f"{self.path}.{key}".strip(".")
                raise DataError(
                    f"{self.file}: {self.place}: unknown field {name!r}", did_you_mean(key, known)
                )


def freeze(value: Any) -> Any:
    """Make a JSON value read-only: lists become tuples, objects become mapping views."""
    if isinstance(value, list | tuple):
        return tuple(freeze(part) for part in value)
    if isinstance(value, Mapping):
        return MappingProxyType({key: freeze(part) for key, part in value.items()})
    return value


def thaw(value: Any) -> Any:
    """Undo `freeze`."""
    if isinstance(value, list | tuple):
        return [thaw(part) for part in value]
    if isinstance(value, Mapping):
        return {key: thaw(part) for key, part in value.items()}
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _decode(data: bytes, where: str, line: int = 1) -> str:
    """Decode strictly as UTF-8; `line` is the number of the first line of `data`."""
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
        return json.loads(text, parse_constant=_constant, object_pairs_hook=_distinct)
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


def read_bytes(path: Path) -> bytes:
    """Read a file.

    Raises:
        DataError: If it is missing, a folder, or not readable.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from None


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DataError: If it is not UTF-8, not JSON, or repeats a key; names the line.
    """
    return _parse(_decode(read_bytes(path), str(path)), str(path))


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
        _decode(data, str(path))
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.removeprefix(_BOM).strip():
            continue
        try:
            value = _parse(_decode(line.rstrip(b"\r"), str(path), number), str(path), number)
        except DataError as error:
            yield DataError(error.message, error.hint or SKIP_HINT)
            continue
        yield Record(value, str(path), f"line {number}", str(number))
