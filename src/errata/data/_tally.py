"""Which fields of the records of one load were read, and what was left out of them.

Records note by themselves every field that a mapping asks for. What is in a file and was asked for
by no record is then known without a list of known fields in each loader, so that nothing that a
file says is dropped in silence.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

EVERY = "*"
"""Stands for all keys of an object whose keys only number or name its entries."""

NAMED = 8
"""Fields that are named in a note; further ones are counted."""

Path = tuple[str, ...]


class Reads:
    """The fields that were read of an object, and of the objects in it.

    Attributes:
        whole: Whether the value was taken as it is, with all that is in it.
        fields: What was read of each field; those that were never asked for are not there.
    """

    __slots__ = ("fields", "whole")

    def __init__(self) -> None:
        self.whole = False
        self.fields: dict[str, Reads] = {}

    def below(self, path: str) -> Reads:
        """Return what was read below a dotted path; it counts as asked for from now on."""
        found = self
        for key in path.split("."):
            if key not in found.fields:
                found.fields[key] = Reads()
            found = found.fields[key]
        return found

    def unread(self, value: Any, path: Path = ()) -> Iterator[Path]:
        """Yield the path of every field in `value` that was not asked for; lists are looked into.

        Args:
            value: The JSON value.
            path: Where it stands.
        """
        if self.whole:
            return
        if isinstance(value, list):
            for part in value:
                yield from self.unread(part, path)
        elif isinstance(value, dict):
            for key, part in value.items():
                inner = self.fields.get(key) or self.fields.get(EVERY)
                if inner is None:
                    yield (*path, str(key))
                elif isinstance(part, dict | list):
                    yield from inner.unread(part, (*path, str(key)))

    def has(self, path: Path) -> bool:
        """Say whether a path was asked for, or lies in what was taken whole."""
        found = self
        for key in path:
            if found.whole:
                return True
            inner = found.fields.get(key) or found.fields.get(EVERY)
            if inner is None:
                return False
            found = inner
        return True


class Tally:
    """The count over all records of one load.

    Args:
        passed_over: Dotted paths of fields that the published format has and no case is made of.

    Attributes:
        reads: What was read of any of the records.
        unread: How many records have each field that had not been read when they came.
        left_out: How many questions, names … were left out of the records, by reason.
    """

    def __init__(self, passed_over: Iterable[str] = ()) -> None:
        self.reads = Reads()
        self.unread: Counter[Path] = Counter()
        self.left_out: Counter[str] = Counter()
        for path in passed_over:
            self.reads.below(path).whole = True

    def add(self, value: Any) -> None:
        """Count the fields of a record that nothing was made of."""
        self.unread.update(set(self.reads.unread(value)))

    def unread_notes(self) -> list[str]:
        """Return the note that counts and names the fields that no record was asked for, if any."""
        found = {
            ".".join(path): count
            for path, count in self.unread.most_common()
            if not self.reads.has(path)
        }
        if not found:
            return []
        if len(found) == 1:
            ((name, count),) = found.items()
            return [f"{_records(count)} a field {name!r} that is not read"]
        named = [f"{name!r} ({count:,})" for name, count in list(found.items())[:NAMED]]
        more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
        return [
            f"fields that are not read, with the records that have them: {', '.join(named)}{more}"
        ]

    def left_out_notes(self) -> list[str]:
        """Return one note per reason for which parts of records were left out."""
        return [f"{count:,} {reason} left out" for reason, count in self.left_out.items()]


def _records(count: int) -> str:
    return "1 record has" if count == 1 else f"{count:,} records have"
