"""One correction of a sheet: what to write, what has to follow, what must not move, until when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal, get_args

from errata.case import CHATS, Chat, Edit, Probe, SubjectAt, subject_starts
from errata.config import did_you_mean
from errata.data._records import SKIP_HINT, Record
from errata.errors import DataError
from errata.spacing import AUTO

State = Literal["valid", "not yet", "ended"]
STATES: tuple[str, ...] = get_args(State)

FIELDS = (
    "id", "prompt", "subject", "target", "subject_at", "joiner", "chat", "system",
    "holds", "keeps", "owner", "reason", "valid_from", "valid_until",
)  # fmt: skip
"""Fields of a fact."""
ASKED = ("prompt", "target", "chat", "system")
"""Fields of what has to follow, or must not move, where it is more than a prompt."""


@dataclass(frozen=True)
class Asked:
    """A question that tells whether a fact does what it should.

    Attributes:
        prompt: The question.
        target: The expected answer; None: of `keeps`, what the unedited model says.
        chat: Whether it is asked in the model's chat.
        system: The system message.
    """

    prompt: str
    target: str | None = None
    chat: Chat = "off"
    system: str | None = None

    @property
    def question(self) -> tuple[str, str, str | None]:
        """The question as it is asked, as edits have it."""
        return self.prompt, self.chat, self.system

    def probe(self, kind: Literal["generality", "locality"], target: str) -> Probe:
        """Return it as a question of an evaluation; `target` is asked where it has none."""
        name = "holds" if kind == "generality" else "keeps"
        return Probe(
            self.prompt, self.target or target, kind, name, chat=self.chat, system=self.system
        )

    def described(self) -> str | dict[str, Any]:
        """Return it as it stands in a file: a text if it is no more than a prompt."""
        told = {n: v for n in ASKED if (v := getattr(self, n)) not in (None, "off")}
        return self.prompt if len(told) == 1 else told


@dataclass(frozen=True)
class Fact:
    """One correction.

    Attributes:
        id: Its name in the sheet.
        prompts: Questions that it is written at; one is usual.
        target: The answer to write.
        subject: The entity, as it stands in the prompts.
        subject_at: Which occurrence of it is meant.
        joiner: What stands between prompt and target.
        chat: Whether the prompts are a user's messages.
        system: The system message.
        holds: What has to follow from it: paraphrases, questions in the chat.
        keeps: What must not move.
        owner: Who answers for it.
        reason: Why it is there.
        valid_from: First day on which it is true; None: ever since.
        valid_until: Last day on which it is true; None: until further notice.
        place: File and line, for messages.
    """

    id: str
    prompts: tuple[str, ...]
    target: str
    subject: str | None = None
    subject_at: SubjectAt = "last"
    joiner: str = AUTO
    chat: Chat = "off"
    system: str | None = None
    holds: tuple[Asked, ...] = ()
    keeps: tuple[Asked, ...] = ()
    owner: str | None = None
    reason: str | None = None
    valid_from: date | None = None
    valid_until: date | None = None
    place: str = ""

    @property
    def edits(self) -> tuple[Edit, ...]:
        """What is written: one edit per prompt."""
        many = len(self.prompts) > 1
        return tuple(
            Edit(
                prompt, self.target, self.subject, id=f"{self.id}/{number}" if many else self.id,
                subject_at=self.subject_at, joiner=self.joiner, chat=self.chat, system=self.system,
            )
            for number, prompt in enumerate(self.prompts, start=1)
        )  # fmt: skip

    def state(self, at: date) -> State:
        """Return whether it is valid on a day; both its first and its last day count."""
        if self.valid_until is not None and at > self.valid_until:
            return "ended"
        if self.valid_from is not None and at < self.valid_from:
            return "not yet"
        return "valid"

    def meets(self, other: Fact, since: date) -> bool:
        """Whether there is a day, from `since` on, on which both are valid."""
        starts = [since, *(f.valid_from for f in (self, other) if f.valid_from is not None)]
        ends = [f.valid_until for f in (self, other) if f.valid_until is not None]
        return not ends or max(starts) <= min(ends)

    def described(self) -> dict[str, Any]:
        """Return it as JSON values, as it stands in a file."""
        told: dict[str, Any] = {
            "id": self.id,
            "prompt": self.prompts[0] if len(self.prompts) == 1 else list(self.prompts),
            "subject": self.subject,
            "target": self.target,
            "subject_at": None if self.subject_at == "last" else self.subject_at,
            "joiner": None if self.joiner == AUTO else self.joiner,
            "chat": None if self.chat == "off" else self.chat,
            "system": self.system,
            "holds": [one.described() for one in self.holds],
            "keeps": [one.described() for one in self.keeps],
            "owner": self.owner,
            "reason": self.reason,
            "valid_from": None if self.valid_from is None else self.valid_from.isoformat(),
            "valid_until": None if self.valid_until is None else self.valid_until.isoformat(),
        }
        return {name: value for name, value in told.items() if value not in (None, [])}


def fact_of(record: Record) -> Fact:
    """Read one line.

    Raises:
        DataError: Names file, line and field, what it is and what was expected.
    """
    try:
        return _fact(record)
    except DataError as error:
        place = f"{record.file}: {record.place}"
        told = error.message if record.file in error.message else f"{place}: {error.message}"
        hint = "Mend the line." if error.hint in (None, SKIP_HINT) else error.hint
        raise DataError(told, hint) from None


def _fact(record: Record) -> Fact:
    _only(record, FIELDS)
    fact = Fact(
        id=record.identity("id"),
        prompts=record.one_or_more_texts("prompt"),
        target=record.text("target"),
        subject=_text(record, "subject"),
        subject_at=record.get("subject_at") if record.has("subject_at") else "last",
        joiner=record.get("joiner") if record.has("joiner") else AUTO,
        **_chat(record),
        holds=_asked(record, "holds"),
        keeps=_asked(record, "keeps"),
        owner=_text(record, "owner"),
        reason=_text(record, "reason"),
        valid_from=_day(record, "valid_from"),
        valid_until=_day(record, "valid_until"),
        place=f"{record.file}: {record.place}",
    )
    for prompt in fact.prompts:
        if fact.subject is not None and not subject_starts(prompt, fact.subject):
            raise record.wrong("subject", f"a part of the prompt {prompt!r}", fact.subject)
        if fact.prompts.count(prompt) > 1:
            raise record.problem(f"field 'prompt' holds {prompt!r} twice")
    if fact.valid_from and fact.valid_until and fact.valid_from > fact.valid_until:
        expected = f"a day not before valid_from ({fact.valid_from})"
        raise record.wrong("valid_until", expected, record.get("valid_until"))
    _ = fact.edits  # what an edit refuses is said here
    return fact


def _only(record: Record, known: tuple[str, ...]) -> None:
    value = record.peek()
    if not isinstance(value, Mapping):
        raise record.wrong("", "an object", value)
    for key in value:
        if key not in known:
            name = f"{record.path}.{key}".strip(".")
            raise record.problem(f"unknown field {name!r}", did_you_mean(str(key), known))


def _text(record: Record, field: str) -> str | None:
    return record.text(field) if record.has(field) else None


def _chat(record: Record) -> dict[str, Any]:
    chat, system = "off", _text(record, "system")
    if record.has("chat"):
        chat = record.text("chat")
        if chat not in CHATS:
            raise record.wrong("chat", " or ".join(map(repr, CHATS)), chat)
    if system is not None and chat != "system+user":
        raise record.wrong("chat", "'system+user', as there is a system text", chat)
    return {"chat": chat, "system": system}


def _asked(record: Record, field: str) -> tuple[Asked, ...]:
    """Read a list of questions, each a prompt or an object."""
    if not record.has(field):
        return ()
    value = record.get(field)
    expected = "a list of prompts, or of objects with a prompt"
    if not isinstance(value, list):
        raise record.wrong(field, expected, value)
    found = []
    for index, entry in enumerate(value):
        name = f"{field}[{index}]"
        one = {"prompt": entry} if isinstance(entry, str) else entry
        if not isinstance(one, dict):
            raise record.wrong(name, "a prompt, or an object with a prompt", entry)
        inner = record.inner(name, one)
        _only(inner, ASKED)
        found.append(Asked(inner.text("prompt"), _text(inner, "target"), **_chat(inner)))
    return tuple(found)


def _day(record: Record, field: str) -> date | None:
    text = _text(record, field)
    if text is None:
        return None
    try:
        return day_of(text)
    except ValueError:
        raise record.wrong(field, "a day as 2026-12-31", text) from None


def day_of(text: str) -> date:
    """Return a day that is written as 2026-12-31, and in no other way.

    Raises:
        ValueError: If it is none.
    """
    day = date.fromisoformat(text)
    if day.isoformat() != text:
        raise ValueError(text)
    return day
