"""Relations of CounterFact's records: the nested form names them, the flat form only words them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, field_validator, model_serializer

from errata.config import Settings
from errata.data._base import NotUsed
from errata.data._records import Record
from errata.store.digest import digest_of

_TABLE = Path(__file__).parent / "relations.txt"
"""Relations (numbers of Wikidata), a tab, and the digest of how nested records word an edit: the
words themselves are the data's."""


class RelationOptions(Settings):
    """Which relations are read, so that some can be trained on and others tested."""

    relations: tuple[str, ...] = Field(
        (),
        description="only records of these relations, by their numbers in Wikidata (P37,P103); "
        "empty: all",
    )
    without: tuple[str, ...] = Field(
        (), description="no record of these relations: what `relations` leaves for training"
    )

    @field_validator("relations", "without", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        names = value.split(",") if isinstance(value, str) else value
        if not isinstance(names, list | tuple):
            return value
        names = [str(name).strip() for name in names]
        known = set().union(*_wordings().values())
        # files of one's own name relations as they like; a number of Wikidata's is CounterFact's
        wrong = [n for n in names if not n or (re.fullmatch(r"[Pp]\d*", n) and n not in known)]
        if wrong:
            have = ", ".join(sorted(known, key=lambda name: int(name[1:])))
            raise ValueError(f"{wrong[0]!r} is no relation of CounterFact; these are: {have}")
        return tuple(sorted(set(names)))

    @model_serializer(mode="wrap")
    def _as_asked(self, plain: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what was not asked for: the version of the data is as without the option."""
        return {name: value for name, value in plain(self).items() if value}


DIGITS = 16
"""Hex digits of a digest that the table has."""


@cache
def _wordings() -> Mapping[str, frozenset[str]]:
    lines = _TABLE.read_text(encoding="utf-8").splitlines()
    pairs = (line.split("\t", 1) for line in lines)
    return {digest: frozenset(names.split()) for names, digest in pairs}


def relations_of(record: Record) -> frozenset[str]:
    """Return the relations that a record may be of, by its number or by how its edit is worded.

    Several relations share wordings (`{} is located in`); of a wording that is not in the table
    nothing is known, and the answer is empty.

    Raises:
        DataError: If a field is missing or no text.
    """
    if record.has("requested_rewrite"):
        return frozenset({record.at("requested_rewrite").text("relation_id")})
    wording = record.text("prompt").replace(record.text("subject"), "{}", 1).strip()
    return _wordings().get(digest_of(wording)[:DIGITS], frozenset())


def check_wanted(record: Record, options: RelationOptions) -> None:
    """Leave a record out that is not, or not surely, of the relations asked for.

    Raises:
        DataError: If a field is missing or no text.
        NotUsed: If it is of another relation, or may be.
    """
    if not options.relations and not options.without:
        return
    found = relations_of(record)
    if not found:
        raise NotUsed("records whose wording tells no relation")
    if found & set(options.without) or (options.relations and not found <= set(options.relations)):
        raise NotUsed("records of other relations than those asked for")
