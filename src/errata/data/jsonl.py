"""errata's own JSONL: what `--edits` and `--cases` read, one object per line."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from errata.arguments import all_of, path_of
from errata.case import BEYOND, CHATS, Case, Condition, Edit, Probe
from errata.config import did_you_mean
from errata.data._base import Dataset
from errata.data._reading import read_lines
from errata.data._records import SKIP_HINT, Record, describe, freeze, thaw
from errata.data._tally import Tally
from errata.errors import ConfigError, DataError
from errata.spacing import AUTO
from errata.store.files import write_atomically

log = logging.getLogger(__name__)

_EDIT = tuple(field.name for field in fields(Edit))
_PROBE = tuple(field.name for field in fields(Probe))
_CASE = tuple(field.name for field in fields(Case))
_CONDITION = tuple(field.name for field in fields(Condition))
_NAMES = frozenset((*_EDIT, *_PROBE, *_CASE))
_KINDS: tuple[str, ...] = ("generality", "locality", *BEYOND)


class Jsonl(Dataset):
    """errata's own cases: one JSON object per line with id, edits, probes and meta.

    A line of the edits format, `{"prompt": …, "target": …}`, is a case without probes.
    """

    name = "jsonl"
    title = "errata JSONL"
    paper = "the format is described in docs/data.md"
    splits = ()
    marks = (("prompt", "target"), ("id", "edits"))
    joiner = AUTO

    def download(self, split: str | None) -> list[Path]:
        """There is nothing to download."""
        raise ConfigError("jsonl is a format, not a published data set", "Use --data FILE.jsonl")

    def records(self, files: Sequence[Path]) -> Iterable[Record | DataError]:
        """Yield one record per line."""
        for file in files:
            yield from read_lines(file)

    def case(self, record: Record, seed: int) -> Case:
        """Read one line; nothing is drawn."""
        if is_edit(record):
            edit = _edit(record)
            return Case(id=edit.id or f"line {record.key}", edits=(edit,))
        record.check_names(_CASE, _NAMES)
        meta = record.at("meta").value if record.has("meta") else {}
        return Case(
            id=record.identity("id"),
            edits=tuple(_edit(entry) for entry in record.items("edits", at_least=1)),
            probes=tuple(_probe(e) for e in record.items("probes")) if record.has("probes") else (),
            meta=freeze(meta),
            exact=_flag(record, "exact"),
            **_chat(record),
        )


def is_edit(record: Record) -> bool:
    """Say whether a line is in the edits format: a prompt of its own, and no list of edits."""
    value = record.peek()
    return isinstance(value, dict) and "prompt" in value and "edits" not in value


def _edit(record: Record) -> Edit:
    record.check_names(_EDIT, _NAMES)
    return Edit(
        prompt=record.text("prompt"),
        target=record.text("target"),
        subject=_text_if_given(record, "subject"),
        target_true=_text_if_given(record, "target_true"),
        id=record.identity("id") if record.has("id") else None,
        subject_rephrases=record.texts("subject_rephrases", optional=True),
        subject_at=record.get("subject_at") if record.has("subject_at") else "last",
        joiner=_joiner(record),
        **_chat(record),
    )


def _joiner(record: Record) -> str:
    value = record.get("joiner") if record.has("joiner") else AUTO
    if not isinstance(value, str):
        raise record.wrong("joiner", 'auto or a text, "" for nothing', value)
    return value


def _chat(record: Record) -> dict[str, Any]:
    """Return how a record is asked, as arguments of an edit, a probe or a case."""
    chat, system = "off", _text_if_given(record, "system")
    if record.has("chat"):
        chat = record.text("chat")
        if chat not in CHATS:
            raise record.wrong("chat", " or ".join(map(repr, CHATS)), chat)
    if system is not None and chat != "system+user":
        raise record.wrong("chat", "'system+user', as there is a system text", chat)
    return {"chat": chat, "system": system}


def _text_if_given(record: Record, field: str) -> str | None:
    return record.text(field) if record.has(field) else None


def _probe(record: Record) -> Probe:
    record.check_names(_PROBE, _NAMES)
    kind = record.text("kind")
    if kind not in _KINDS:
        raise DataError(
            record.wrong("kind", " or ".join(map(repr, _KINDS)), kind).message,
            did_you_mean(kind, _KINDS),
        )
    top_k = record.get("top_k") if record.has("top_k") else None
    if top_k is not None and (not isinstance(top_k, int) or top_k is True or top_k < 1):
        raise record.wrong("top_k", "a whole number of at least 1", top_k)
    choices = record.texts("choices", optional=True)
    if (kind in BEYOND) != bool(choices):
        expected = "a list of at least one text" if kind in BEYOND else f"none with kind {kind!r}"
        raise record.wrong("choices", expected, list(choices) if choices else None)
    return Probe(
        prompt=record.text("prompt"),
        target=record.text("target"),
        kind=kind,  # pyright: ignore[reportArgumentType]  # one of _KINDS
        name=record.text("name") if record.has("name") else kind,
        criteria=record.texts("criteria", optional=True),
        hops=tuple(_edit(entry) for entry in record.items("hops")) if record.has("hops") else (),
        top_k=top_k,
        foil=_text_if_given(record, "foil"),
        answers=record.texts("answers", optional=True),
        subject=_text_if_given(record, "subject"),
        joiner=_joiner(record),
        choices=choices,
        conditions=tuple(_condition(entry) for entry in record.items("conditions"))
        if record.has("conditions")
        else (),
        **_chat(record),
    )


def _condition(record: Record) -> Condition:
    record.check_names(_CONDITION, _NAMES)
    answers = record.rows("answers")
    if not answers or not all(answers):
        raise record.wrong("answers", "a list of lists of texts", list(answers))
    return Condition(record.text("prompt"), answers, _flag(record, "holds", True))


def _flag(record: Record, field: str, default: bool = False) -> bool:
    value = record.get(field) if record.has(field) else default
    if not isinstance(value, bool):
        raise record.wrong(field, "true or false", value)
    return value


def read_edits(path: Path, source: str = "") -> list[Edit]:
    """Read a file of edits, one JSON object per line.

    Args:
        path: The file.
        source: What it is called in messages; by default its path.

    Raises:
        DataError: If the file or a line is broken, has a field that is nearly called as a known
            one, or repeats an id.
    """
    edits: list[Edit] = []
    seen: dict[str, str] = {}
    tally = Tally()
    source = source or str(path)
    for record in read_lines(path):
        try:
            if isinstance(record, DataError):
                raise record
            record.counted_by(tally)
            value = record.peek()
            if isinstance(value, dict) and "edits" in value:
                raise DataError(
                    f"{record.file}: {record.place}: a case, with its own list of edits; expected "
                    "one edit per line",
                    f"{_example()}\nCases are for errata verify --cases and errata eval --data.",
                )
            edit = _edit(record)
            record.count()
            if edit.id is not None:
                check_new(record, edit.id, seen)
        except DataError as error:
            hint = None if error.hint == SKIP_HINT else error.hint  # edits are never skipped
            raise DataError(error.message, hint) from None
        edits.append(edit)
    if not edits:
        raise DataError(f"{source} holds no edit", _example())
    for text in tally.unread_notes():
        log.warning("%s: %s", source, text)
    return edits


def check_new(record: Record, name: str, seen: dict[str, str]) -> None:
    """Note that `record` is called `name`.

    Raises:
        DataError: If another record of the set has that name; tells where both are.
    """
    if name in seen:
        raise record.problem(f"id {name!r} is already used by {seen[name]}")
    seen[name] = record.place if not record.group else f"{record.file}: {record.place}"


def _example() -> str:
    return 'Example of a line: {"prompt": "The capital of France is", "target": "Rome"}'


def save_edits(path: str | Path, edits: Iterable[Edit]) -> None:
    """Write edits so that `load_edits` gives equal ones; the file appears complete or not at all.

    Raises:
        DataError: If an edit cannot be written in the format.
    """
    _write(Path(path), ((edit.id, _slim(edit)) for edit in edits))


def save_cases(path: str | Path, cases: Iterable[Case]) -> None:
    """Write cases so that loading the file gives equal ones; it appears complete or not at all.

    Raises:
        DataError: If a case cannot be written (`meta` has to be JSON), or two have the same id.
    """
    path = path_of(path, "the file")
    given = all_of(cases, Case, "cases", "a list of cases", "Type: save_cases(FILE, cases)")
    _write(path, ((case.id, _slim(case)) for case in given))


def _slim(value: Any) -> Any:
    """Turn an edit, probe or case into a JSON object without what is at its default."""
    if isinstance(value, Edit | Probe | Case | Condition):
        entry: dict[str, Any] = {}
        for field in fields(value):
            part = getattr(value, field.name)
            default = {} if field.default_factory is not MISSING else field.default
            if part != default:
                entry[field.name] = _slim(part)
        return entry
    if isinstance(value, tuple):
        return [_slim(part) for part in value]
    return thaw(value) if isinstance(value, Mapping) else value


def _write(path: Path, entries: Iterable[tuple[str | None, Any]]) -> None:
    seen: set[str] = set()
    lines: list[bytes] = []
    for name, entry in entries:
        if name is not None and name in seen:
            raise DataError(f"cannot write {path}: id {name!r} occurs twice")
        if name is not None:
            seen.add(name)
        _check_json(entry, f"{path}: {name!r}")
        try:
            line = json.dumps(entry, ensure_ascii=False, allow_nan=False).encode()
        except (UnicodeEncodeError, ValueError) as error:
            raise DataError(f"cannot write {path}: {name!r}: {error}") from None
        lines.append(line + b"\n")
    write_atomically(path.expanduser(), b"".join(lines))


def _check_json(value: Any, where: str) -> None:
    """Refuse what JSON would change on the way: keys that are no texts, and other types."""
    if isinstance(value, dict):
        for key, part in value.items():
            if not isinstance(key, str):
                raise DataError(f"cannot write {where}: the key {key!r} is not a text")
            _check_json(part, where)
    elif isinstance(value, list):
        for part in value:
            _check_json(part, where)
    elif not (value is None or isinstance(value, str | bool | int | float)):
        raise DataError(f"cannot write {where}: {describe(str(value))} is not a JSON value")
