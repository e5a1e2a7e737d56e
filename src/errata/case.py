"""What should become true, and the questions that test it: frozen data without torch.

An [`Edit`][errata.case.Edit] is one fact to write into a model. A `Probe` is one question asked of
the edited model. A `Case` joins them: one benchmark record, edited as one unit and scored by its
probes.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal, TypeVar, cast, get_args

from errata.arguments import all_of, expect, several
from errata.errors import DataError, EditError
from errata.spacing import AUTO

Beyond = Literal["choice", "negation", "leakage"]
"""Questions that are answered by comparing likelihoods: whether an edit is more than a phrase."""

BEYOND: tuple[Beyond, ...] = get_args(Beyond)

ProbeKind = Literal["generality", "locality"] | Beyond

KINDS: tuple[ProbeKind, ...] = ("generality", "locality", *BEYOND)

SubjectAt = Literal["first", "last"] | int
"""Which occurrence of a subject in a prompt is meant; numbers count from 1."""


def subject_starts(prompt: str, subject: str) -> list[int]:
    """Return where the subject occurs: as whole words if it does so anywhere, else anyhow."""
    pattern = re.escape(subject.strip())
    whole = [found.start() for found in re.finditer(rf"(?<!\w){pattern}(?!\w)", prompt)]
    return whole or [found.start() for found in re.finditer(pattern, prompt)]


Chat = Literal["off", "user", "system+user"]
"""How a question is put: as plain text, or as a user's message in the model's own chat template,
alone or behind a system message."""

CHATS: tuple[str, ...] = get_args(Chat)


EDIT = "Type: errata.Edit(PROMPT, TARGET, subject=…)"


def _require_text(value: object, what: str) -> None:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{what} is {value!r}; expected a text with at least one visible character")


def check_chat(chat: object, system: object) -> Chat:
    """Return a chat; refuse one that there is not.

    Raises:
        DataError: If the chat is unknown, or a system text is given that would go nowhere.
    """
    if chat not in CHATS:
        raise DataError(f"unknown chat {chat!r}", f"Known: {', '.join(CHATS)}")
    if system is not None:
        _require_text(system, "system text")
        if chat != "system+user":
            raise DataError(
                f"a system text with chat {chat!r} would not be read", 'Say chat "system+user".'
            )
    return cast("Chat", chat)


def _check_asked(joiner: object, chat: object, system: object) -> None:
    if not isinstance(joiner, str):
        raise DataError(f"joiner is {joiner!r}; expected auto or a text", 'Example: "" or " "')
    check_chat(chat, system)


class _Asked:
    """How something is asked.

    Of the fields that say so, only what is not at its default is shown: digests over earlier data
    stay what they were.
    """

    __slots__ = ()
    prompt: str
    chat: Chat
    system: str | None

    @property
    def question(self) -> tuple[str, str, str | None]:
        """The question as it is asked: prompt, chat and system message; what edits clash about."""
        return self.prompt, self.chat, self.system

    def __repr__(self) -> str:
        shown = [
            f"{item.name}={getattr(self, item.name)!r}"
            for item in fields(cast("Any", self))
            if item.name not in (*HOW, "subject_at", "choices", "conditions")
            or getattr(self, item.name) != item.default
        ]
        return f"{type(self).__name__}({', '.join(shown)})"


HOW: Mapping[str, Any] = MappingProxyType({"joiner": AUTO, "chat": "off", "system": None})
"""How edits and probes are asked where they say nothing."""


@dataclass(frozen=True, slots=True, repr=False)
class Edit(_Asked):
    """One fact to write: after `prompt`, the model should say `target`.

    Attributes:
        prompt: The full question, subject filled in, ending just before the target.
        target: The answer to write.
        subject: The entity the fact is about. It has to occur in `prompt` for editors that need it
            (they check; an editor that does not use subjects accepts any prompt).
        target_true: The answer that a dataset holds to be true before the edit, if it says one.
        id: A name for messages and records.
        subject_rephrases: Other ways to name the subject that an editor may learn from (REP does).
            Those that an evaluation keeps for its own questions do not belong here.
        subject_at: Which occurrence of the subject is meant where the prompt holds several:
            `first`, `last` or a number from 1. The last one has read all others.
        joiner: What stands between prompt and target: `auto` (a space where their scripts use one,
            see `errata.spacing`), or a text, empty for nothing.
        chat: Whether the prompt is a user's message in the model's chat, and not plain text.
        system: The system message in front of it; default: a short one of errata.

    Raises:
        DataError: If prompt, target or a name of the subject is empty or only white space, or the
            chat is unknown, or `subject_at` is none of these.
    """

    prompt: str
    target: str
    subject: str | None = None
    target_true: str | None = None
    id: str | None = None
    subject_rephrases: tuple[str, ...] = ()
    subject_at: SubjectAt = "last"
    joiner: str = AUTO
    chat: Chat = "off"
    system: str | None = None

    def __post_init__(self) -> None:
        _require_text(self.prompt, "prompt")
        _require_text(self.target, "target")
        if self.subject is not None:
            _require_text(self.subject, "subject")
        # a list, as JSON has it, would not be hashable
        names = several(self.subject_rephrases, "subject_rephrases", error=DataError)
        object.__setattr__(self, "subject_rephrases", names)
        for name in self.subject_rephrases:
            _require_text(name, "subject rephrase")
        at: Any = self.subject_at  # out of a file it may be anything
        if at not in ("first", "last") and (not isinstance(at, int) or at is True or at < 1):
            raise DataError(f"subject_at is {at!r}; expected 'first', 'last' or a number from 1")
        _check_asked(self.joiner, self.chat, self.system)


@dataclass(frozen=True, slots=True)
class Condition:
    """What the unedited model has to say, for a question to count (RippleEdits).

    Attributes:
        prompt: Asked of the unedited model.
        answers: Groups of spellings; of each of them one has to stand in what it says.
        holds: Whether it has to; otherwise it must not.

    Raises:
        DataError: If there is no answer, or a text is blank.
    """

    prompt: str
    answers: tuple[tuple[str, ...], ...]
    holds: bool = True

    def __post_init__(self) -> None:
        _require_text(self.prompt, "condition prompt")
        what = "answers of a condition"
        groups = several(self.answers, what, "a list of lists of texts", DataError)
        answers = tuple(several(group, what, error=DataError) for group in groups)
        object.__setattr__(self, "answers", answers)
        if not self.answers or not all(self.answers):
            raise DataError(f"condition {self.prompt!r} has no answer; expected at least one")
        for text in (text for group in self.answers for text in group):
            _require_text(text, "condition answer")


@dataclass(frozen=True, slots=True, repr=False)
class Probe(_Asked):
    """One question asked of the edited model.

    Attributes:
        prompt: The question, ending just before the answer.
        target: The expected answer; for locality, the answer on which the model is teacher-forced.
        kind: `generality` (the edit should show), `locality` (nothing should move), or one that is
            scored by comparing the answer with `choices`: `choice` (right if it is the likeliest),
            `negation` (the answer would be wrong: right if one of the choices is likelier) and
            `leakage` (the old answer; 1 if it is still likelier than the choices, so less is
            better).
        name: Sub-metric in which the score is averaged (`rephrase`, `uni_gen`, `multi_hop`, `NQ`
            …).
        criteria: Flags of the benchmark (UniEdit: `Rep`, `MH`, `RR`, `SER`, `SA`, `OA`, `SS`, `RS`,
            `OS`, `1-NF`, `W/O`), for break-downs.
        hops: Facts the question builds on; those unknown to the model are edited before it is
            asked.
        top_k: Rank that still counts as a hit, if it differs from the protocol's (1 for yes/no).
        foil: A competing answer; set where the benchmark compares two probabilities (CounterFact).
        answers: Further spellings accepted when a generated answer is compared.
        subject: The entity the question is about, if the data set says so.
        joiner: What stands between prompt and answers: `auto` (a space where their scripts use one,
            see `errata.spacing`), or a text, empty for nothing.
        chat: Whether the prompt is a user's message in the model's chat, and not plain text.
        system: The system message in front of it; default: a short one of errata.
        choices: The answers that `target` is compared with; needed by the kinds that compare, and
            by no other.
        conditions: What the unedited model has to know, or the question is left out.

    Raises:
        DataError: If a text is blank, or choices are missing or would not be read.
    """

    prompt: str
    target: str
    kind: ProbeKind
    name: str
    criteria: tuple[str, ...] = ()
    hops: tuple[Edit, ...] = ()
    top_k: int | None = None
    foil: str | None = None
    answers: tuple[str, ...] = ()
    subject: str | None = None
    joiner: str = AUTO
    chat: Chat = "off"
    system: str | None = None
    choices: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()

    def __post_init__(self) -> None:
        _require_text(self.prompt, "probe prompt")
        _require_text(self.target, "probe target")
        if self.kind not in KINDS:
            known = ", ".join(KINDS)
            raise DataError(f"probe {self.prompt!r} is of kind {self.kind!r}", f"Known: {known}")
        _check_asked(self.joiner, self.chat, self.system)
        object.__setattr__(self, "choices", several(self.choices, "choices", error=DataError))
        conditions = several(self.conditions, "conditions", "a list of conditions", DataError)
        object.__setattr__(self, "conditions", conditions)
        for choice in self.choices:
            _require_text(choice, "probe choice")
        if self.kind in BEYOND and self.foil is not None:
            raise DataError(
                f"probe {self.prompt!r} of kind {self.kind!r} has a foil; name it among its choices"
            )
        if (self.kind in BEYOND) != bool(self.choices):
            told = "has no choices" if self.kind in BEYOND else "has choices, which nothing reads"
            raise DataError(
                f"probe {self.prompt!r} of kind {self.kind!r} {told}",
                f"Answers to compare with belong to {', '.join(BEYOND)}, and those need some.",
            )


@dataclass(frozen=True, slots=True)
class Case:
    """One benchmark record: edits applied as one unit, and the probes that score them.

    Attributes:
        id: Unique within its data set.
        edits: At least one edit.
        probes: Questions asked after the edits; may be empty.
        meta: Whatever else the record says (domain, relation, triples …), read-only.
        exact: Whether edits and generality questions are scored as wholes: all tokens of the target
            hit, or nothing (robustness tests). Locality is a share of tokens in any case.
        chat: If not `off`, all edits and questions of the case are asked in the chat.
        system: Their system message.

    Raises:
        DataError: If there is no edit, or the chat is unknown.
    """

    id: str
    edits: tuple[Edit, ...]
    probes: tuple[Probe, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    exact: bool = False
    chat: Chat = "off"
    system: str | None = None

    def __post_init__(self) -> None:
        for name, kind in (("edits", Edit), ("probes", Probe)):
            what = f"{name} of case {self.id!r}"
            told = f"a list of {name}"
            held = all_of(getattr(self, name), kind, what, told, error=DataError)
            object.__setattr__(self, name, held)
        if not self.edits:
            raise DataError(f"case {self.id!r} has no edit; expected at least one")
        check_chat(self.chat, self.system)
        if self.chat != "off":
            for name in ("edits", "probes"):
                told = tuple(in_chat(one, self.chat, self.system) for one in getattr(self, name))
                object.__setattr__(self, name, told)

    def of(self, kind: ProbeKind) -> tuple[Probe, ...]:
        """Return the probes of one kind, in order."""
        return tuple(probe for probe in self.probes if probe.kind == kind)


def how_asked(question: Edit | Probe) -> dict[str, Any]:
    """Return what an edit or a probe says of how it is asked, without what is at its default."""
    told = {item.name: getattr(question, item.name) for item in fields(question)
            if item.name in HOW and getattr(question, item.name) != item.default}  # fmt: skip
    return told


def described(edit: Edit) -> dict[str, Any]:
    """Return an edit as JSON values, without what it does not say."""
    defaults = {item.name: item.default for item in fields(edit)}
    return {key: value for key, value in asdict(edit).items() if value != defaults[key]}


Asked = TypeVar("Asked", Edit, Probe)


def in_chat(question: Asked, chat: Chat, system: str | None = None) -> Asked:
    """Return an edit or a probe, with the facts it builds on, as asked in the chat."""
    if isinstance(question, Probe):
        hops = tuple(in_chat(hop, chat, system) for hop in question.hops)
        return replace(question, chat=chat, system=system, hops=hops)
    return replace(question, chat=chat, system=system)


LISTS = "a list of groups, each a list of edits"
GROUPS = "Type: editor.edit(lm, [[edit, …], …]), or for one group editor.edit_one(lm, [edit])"


def check_groups(groups: object) -> None:
    """Refuse what is no list of groups of edits.

    Raises:
        ArgumentError: If a group is no list, or holds something else than edits.
        EditError: If one is empty.
    """
    for number, group in enumerate(_listed("what is to be edited", groups)):
        edits = _listed(f"group {number}", group)
        if not edits:
            raise EditError(f"group {number} is empty; expected at least one edit")
        for edit in edits:
            expect(edit, Edit, f"one of group {number}", "an Edit", EDIT)


def _listed(what: str, given: object) -> Collection[object]:
    fits = isinstance(given, Collection) and not isinstance(given, str | Mapping)
    expect(cast("object", given), object if fits else (), what, LISTS, GROUPS)
    return cast("Collection[object]", given)
