"""Records of a file, whose accessors name file, record and field when something is wrong."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from errata.case import SubjectAt, subject_starts
from errata.config import did_you_mean
from errata.data._tally import EVERY, Reads, Tally
from errata.errors import DataError

VISIBLE = "a text with at least one visible character"
SKIP_HINT = "Mend the file, or leave such records out with --skip-bad."

_MISSING = object()


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

    It notes which of its fields are asked for; `value` counts as all of them.

    Attributes:
        file: Name of the file, for messages.
        place: Where in the file: `line 7`, `record 3 (case_id 17)`.
        key: Its own name in the file: position in a list, line number, key in an object.
        group: The part of the data set it belongs to (UniEdit: the domain).
        path: Field path of this value inside its record; empty for the record itself.
        tally: What is counted over all records of a load.
    """

    __slots__ = ("_reads", "_value", "file", "group", "key", "path", "place", "tally")

    def __init__(
        self,
        value: Any,
        file: str,
        place: str,
        key: str = "",
        group: str = "",
        path: str = "",
        tally: Tally | None = None,
        reads: Reads | None = None,
    ) -> None:
        self._value = value
        self.file = file
        self.place = place
        self.key = key
        self.group = group
        self.path = path
        self.tally = tally or Tally()
        self._reads = reads or self.tally.reads

    @property
    def value(self) -> Any:
        """The JSON value, taken as it is."""
        self._reads.whole = True
        return self._value

    def counted_by(self, tally: Tally) -> None:
        """Let the count of a load note what is read of this record and left out of it."""
        self.tally = tally
        self._reads = tally.reads

    def count(self) -> None:
        """Add the fields that were not read to the count: nothing more will be asked for."""
        self.tally.add(self._value)

    def leave_out(self, what: str, count: int = 1) -> None:
        """Note that a part of this record is left out by rule; `what` is a plural."""
        if count:
            self.tally.left_out[what] += count

    def peek(self) -> Any:
        """Return the JSON value; nothing counts as read by that."""
        return self._value

    def problem(self, message: str, hint: str = SKIP_HINT) -> DataError:
        """Return an error about this record."""
        return DataError(f"{self.file}: {self.place}: {message}", hint)

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
        value = self._get(field, expected)
        self._reads.below(field).whole = True
        return value

    def _get(self, field: str, expected: str) -> Any:
        value = self._find(field)
        if value is _MISSING:
            raise self.wrong(field, expected, value)
        return value

    def _find(self, field: str) -> Any:
        self._reads.below(field)
        value, done = self._value, ""
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
        return self._text(field, self._get(field, VISIBLE))

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

    def visible_texts(self, field: str, what: str, at_least: int = 0) -> tuple[str, ...]:
        """Return the texts of a list; blank ones and nulls are left out and counted as `what`.

        Raises:
            DataError: If it is missing, no list, too short with all its entries, or not of texts.
        """
        entries = self._list(field, "texts", at_least)
        found = [
            self._text(f"{field}[{index}]", value)
            for index, value in enumerate(entries)
            if not (value is None or (isinstance(value, str) and not value.strip()))
        ]
        self.leave_out(what, len(entries) - len(found))
        return tuple(found)

    def one_or_more_texts(self, field: str) -> tuple[str, ...]:
        """Return the texts of a field that holds one text or a list of them."""
        value = self._get(field, "a text or a list of texts")
        return self.texts(field, 1) if isinstance(value, list) else (self.text(field),)

    def _list(self, field: str, of: str, at_least: int = 0) -> list[Any]:
        expected = f"a list of {of}" if not at_least else f"a list of at least {at_least} {of}"
        value = self._get(field, expected)
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
        return self.inner(field, self._get(field, "an object"))

    def items(self, field: str, at_least: int = 0) -> list[Record]:
        """Return a list of objects, each as a record."""
        return [
            self.inner(f"{field}[{index}]", value)
            for index, value in enumerate(self._list(field, "objects", at_least))
        ]

    def numbered(self, field: str) -> list[Record]:
        """Return the objects of an object whose keys only number them (`{"0": …}`)."""
        value = self._get(field, "an object of numbered objects")
        if not isinstance(value, dict):
            raise self.wrong(field, "an object of numbered objects", value)
        reads = self._reads.below(f"{field}.{EVERY}")
        return [self._inner(f"{field}.{key}", entry, reads) for key, entry in value.items()]

    def inner(self, field: str, value: Any) -> Record:
        """Return an object that stands at `field` as a record.

        Raises:
            DataError: If it is not an object.
        """
        return self._inner(field, value, self._reads.below(field.partition("[")[0]))

    def _inner(self, field: str, value: Any, reads: Reads) -> Record:
        if not isinstance(value, dict):
            raise self.wrong(field, "an object", value)
        path = f"{self.path}.{field}".strip(".")
        return Record(value, self.file, self.place, self.key, self.group, path, self.tally, reads)

    def identity(self, field: str) -> str:
        """Return a name: a text, or a whole number as text."""
        value = self._get(field, "a text or a whole number")
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

    def check_names(self, known: tuple[str, ...], elsewhere: frozenset[str] = frozenset()) -> None:
        """Refuse fields that are nearly called as one of `known` that the record lacks.

        So are those that the format has, but not here. Others that are not known are no mistake:
        they are counted as not read.

        Raises:
            DataError: With the closest known names; or if the record is no object.
        """
        if not isinstance(self._value, dict):
            raise self.wrong("", "an object", self._value)
        absent = [name for name in known if name not in self._value]
        for key in self._value:
            if key in known:
                continue
            if key in elsewhere or difflib.get_close_matches(key, absent):
                name = f"{self.path}.{key}".strip(".")
                raise DataError(
                    f"{self.file}: {self.place}: unknown field {name!r}", did_you_mean(key, absent)
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
