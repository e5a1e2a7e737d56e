"""Questions that data sets hold by name: portability and locality as EasyEdit's files have them.

Three spellings are read: `{"Reasoning": [{"prompt": …, "ground_truth": …}, …]}` (KnowEdit),
`{"neighborhood": {"prompt": …, "ground_truth": …}}` (what EasyEdit's editors take), and
`{"Recalled Relation": …, "New Question": …, "New Answer": …}` (the portability of its zsRE).
Each name becomes the name of probes, in lower case; portability is a flag besides.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from errata.case import Probe, ProbeKind
from errata.data._records import Record

ONE_HOP = "one_hop"
"""Name of a question with `New Question` and `New Answer`, as EasyEdit reports it."""

PORTABILITY = "portability"
"""Flag of generality questions that ask for what follows from an edit, whatever their name."""

ANSWERS = "a text, or a list of texts or of lists of texts"


def answers_of(record: Record, field: str) -> tuple[str, ...]:
    """Return the accepted answers of a field: one, a list of them, or a list of alias lists.

    The first is the one to expect; blank ones and repetitions are dropped.

    Raises:
        DataError: If it holds anything else.
    """
    found: dict[str, None] = {}
    for text in _flat(record, field, record.get(field, ANSWERS)):
        if text.strip():
            found[text.strip()] = None
    return tuple(found)


def _flat(record: Record, field: str, value: Any) -> Iterator[str]:
    if value is None:
        return
    if isinstance(value, list):
        for part in value:
            yield from _flat(record, field, part)
    elif isinstance(value, bool | dict):
        raise record.wrong(field, ANSWERS, value)
    else:
        yield value if isinstance(value, str) else str(value)


def named_questions(record: Record, field: str, kind: ProbeKind) -> list[Probe]:
    """Return the questions of an object of named questions; none where it is missing or null.

    Questions without a text or without an answer are left out and counted.

    Raises:
        DataError: If it is of no known spelling.
    """
    if not record.has(field):
        return []
    group = record.at(field)
    names = tuple(group.peek())
    if "New Question" in names:
        group.optional_text("Recalled Relation")
        return _asked(group, "New Question", "New Answer", kind, ONE_HOP)
    return [probe for key in names for probe in _group(group, key, kind)]


def _group(group: Record, key: str, kind: ProbeKind) -> Iterator[Probe]:
    name = "_".join(key.lower().replace("-", " ").split())
    group.has(key)  # read, even where nothing stands in it
    value = group.peek()[key]  # not by path: a key may hold dots
    entries: list[Record] = []
    if isinstance(value, list):
        entries = [group.inner(f"{key}[{number}]", entry) for number, entry in enumerate(value)]
    elif value is not None:
        entries = [group.inner(key, value)]
    for entry in entries:
        yield from _asked(entry, "prompt", "ground_truth", kind, name)


def _asked(entry: Record, prompt: str, answer: str, kind: ProbeKind, name: str) -> list[Probe]:
    """Return one probe per text of `prompt`; with as many answers as texts, each has its own."""
    texts, replies = entry.get(prompt, ANSWERS), entry.get(answer, ANSWERS)
    if not isinstance(texts, list):
        texts, replies = [texts], [replies]
    elif not isinstance(replies, list) or len(replies) != len(texts):
        replies = [replies] * len(texts)
    found: list[Probe] = []
    for text, reply in zip(texts, replies, strict=True):
        if not (isinstance(text, str) or text is None):
            raise entry.wrong(prompt, "a text or a list of texts", text)
        accepted = tuple(dict.fromkeys(t.strip() for t in _flat(entry, answer, reply) if t.strip()))
        if not (text or "").strip() or not accepted:
            entry.leave_out(f"{name} questions without text or answer")
            continue
        flags = (PORTABILITY,) if kind == "generality" else ()
        found.append(Probe(str(text), accepted[0], kind, name, flags, answers=accepted[1:]))
    return found
