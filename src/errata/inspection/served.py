"""Does a running server hold the edits of a patch? Asked of its own words, without the model here.

Every question goes to the served model, and to an unedited one beside it where there is one. Where
there is none, what the unedited model says is what the patch recorded when it was made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from errata.case import BEYOND, Case, Chat, Edit, Probe, in_chat
from errata.errors import EndpointError
from errata.inspection.answers import SHOWN, word_of
from errata.model.chat import SYSTEM
from errata.patch.report import Neighbour
from errata.served import Client, Failure, Message, Request, Said

if TYPE_CHECKING:
    from errata.patch.report import Report

SPARE = 8
"""Tokens that may be said beyond a target: a tokenizer that is not known here cuts as it likes."""
REPLY = 24
"""Tokens more in a chat, where a reply is a sentence."""
MOST = 256
AS_BEFORE = 0.75
"""Share of the neighbours that answer as before where a server runs the unedited model; not all do:
what was recorded is another precision's."""
EDIT, NEIGHBOUR, BARE = "edit", "neighbour", "bare"


@dataclass(frozen=True)
class Question:
    """One question for a server.

    Attributes:
        kind: `edit`, `generality`, `locality`, `neighbour` or `bare`.
        name: What it is counted under.
        asked: The question with what is expected.
        case: Which case it belongs to.
        answers: Further spellings that are right.
        subject: Of a neighbour: who it is about.
        before: The unedited model's answer as the patch recorded it.
        p_before: Probability of the target in the unedited model as the patch recorded it.
    """

    kind: str
    name: str
    asked: Edit | Probe
    case: str
    answers: tuple[str, ...] = ()
    subject: str = ""
    before: str | None = None
    p_before: float | None = None

    def request(self, model: str | None = None) -> Request:
        """Return what is sent."""
        asked = self.asked
        tokens = SHOWN
        if self.kind not in (NEIGHBOUR, BARE):
            # no token is shorter than a byte, few are shorter than two
            tokens = min(SPARE + len(asked.target.encode()) // 2, MOST)
        if asked.chat == "off":
            return Request(asked.prompt, tokens, model)
        tokens += REPLY
        messages: list[Message] = [{"role": "user", "content": asked.prompt}]
        if asked.chat == "system+user":
            messages.insert(0, {"role": "system", "content": asked.system or SYSTEM})
        return Request(tuple(messages), tokens, model)


@dataclass(frozen=True)
class Answer:
    """What became of one question.

    Attributes:
        question: The question.
        says: The served model's words; None if it did not answer.
        ok: Whether they are what was expected; None: it cannot be told.
        probability: Of the target, where the server tells it.
        base: The words of the unedited model beside it.
        error: Why there is no answer.
    """

    question: Question
    says: str | None
    ok: bool | None
    probability: float | None = None
    base: str | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        own = self.question
        expected = own.asked.target
        if own.kind in ("locality", NEIGHBOUR, BARE):
            expected = self.base if self.base is not None else own.before
        return {
            "kind": own.kind,
            "name": own.name,
            "case": own.case,
            "prompt": own.asked.prompt,
            "chat": own.asked.chat,
            "expected": expected,
            "says": self.says,
            "ok": self.ok,
            "p": self.probability,
            "p_before": own.p_before,
            "base_says": self.base,
            "error": self.error,
        }


@dataclass(frozen=True)
class Served:
    """What a server was found to hold.

    Attributes:
        answers: Every question with its answer, in order.
        compared: Whether an unedited model was asked beside it.
    """

    answers: tuple[Answer, ...]
    compared: bool

    def of(self, *kinds: str) -> list[Answer]:
        """Return the answers of some kinds."""
        return [one for one in self.answers if one.question.kind in kinds]

    @property
    def edits(self) -> list[Answer]:
        """Answers to the edits themselves."""
        return self.of(EDIT)

    @property
    def facts(self) -> list[Answer]:
        """Answers to everything that is asked of the edits and the cases."""
        return self.of(EDIT, "generality", "locality")

    @property
    def unasked(self) -> list[Answer]:
        """Questions that were not answered."""
        return [one for one in self.answers if one.error is not None]

    @property
    def report(self) -> Report:
        """What else moved, in the form in which patches tell it."""
        from errata.patch.report import Report

        return Report(neighbours=self._moved(NEIGHBOUR), bare=self._moved(BARE))

    def _moved(self, kind: str) -> tuple[Neighbour, ...]:
        return tuple(
            Neighbour(
                one.question.asked.prompt,
                one.question.subject,
                word_of(one.base if one.base is not None else one.question.before or ""),
                word_of(one.says or ""),
                not one.ok,
            )
            for one in self.of(kind)
            if one.ok is not None
        )

    def rates(self) -> dict[str, Any]:
        """Return the rates that gates know, as a summary of an evaluation holds them."""
        names = {"reliability": EDIT, "generality": "generality", "locality": "locality"}
        found: dict[str, Any] = {name: _rate(self.of(kind)) for name, kind in names.items()}
        by: dict[str, dict[str, list[Answer]]] = {}
        for one in self.of("generality", "locality"):
            own = by.setdefault(one.question.kind, {})
            own.setdefault(one.question.name, []).append(one)
        means = {
            kind: {name: {"mean": _rate(answers)} for name, answers in own.items()}
            for kind, own in by.items()
        }
        found["by"] = {"name": means}
        found["failed"] = len(self.unasked)
        return found

    @property
    def unedited(self) -> str | None:
        """Say why the server seems to run the base model without the patch; None: it does not."""
        answered = [one for one in self.edits if one.says is not None]
        if not answered or any(one.ok for one in answered):
            return None
        if self.compared:
            both = [one for one in self.answers if one.says is not None and one.base is not None]
            if all(one.says == one.base for one in both):
                return f"all {len(both)} answers are those of the base model"
            return None
        held = [one for one in self.of(NEIGHBOUR, BARE) if one.ok is not None]
        same = sum(one.ok is True for one in held)
        if held and same < AS_BEFORE * len(held):
            return None
        beside = f", and {same} of {len(held)} questions beside them are answered as before"
        return "none of the edits is there" + (beside if held else "")


def _rate(answers: Sequence[Answer]) -> float | None:
    told = [one.ok for one in answers if one.ok is not None]
    return sum(told) / len(told) if told else None


def questions_of(
    cases: Sequence[Case],
    report: Report | None = None,
    chat: Chat = "off",
    system: str | None = None,
) -> list[Question]:
    """Return what is asked of a server.

    Args:
        cases: Edits and questions.
        report: What the patch recorded of its edits and their neighbours; None: neighbours are not
            asked.
        chat: If not `off`, everything is asked in the chat.
        system: The system message there.
    """

    def put(asked: Any) -> Any:
        return asked if chat == "off" else in_chat(asked, chat, system)

    told = {}
    if report is not None:
        # what was recorded of a question says nothing of the same words in a chat
        told = {put(one.edit).question: one for one in report.edits if put(one.edit) == one.edit}
    found = []
    for case in cases:
        for edit in case.edits:
            own = told.get(put(edit).question)
            found.append(Question(EDIT, EDIT, put(edit), case.id, p_before=own and own.p_before))
        for probe in filter(askable, case.probes):
            found.append(Question(probe.kind, probe.name, put(probe), case.id, probe.answers))
    if report is None:
        return found
    chats: set[tuple[Chat, str | None]] = {(one.edit.chat, one.edit.system) for one in report.edits}
    chat_of, system_of = chats.pop() if len(chats) == 1 else ("off", None)
    for kind, entries in ((NEIGHBOUR, report.neighbours), (BARE, report.bare)):
        for entry in entries:
            plain = Edit(entry.prompt, entry.before or "?")
            recorded = in_chat(plain, chat_of, system_of) if kind == NEIGHBOUR else plain
            asked = put(recorded)
            before = entry.before if asked == recorded else None
            found.append(Question(kind, kind, asked, kind, subject=entry.subject, before=before))
    return found


def askable(probe: Probe) -> bool:
    """Whether a server can be asked a probe.

    Likelihoods of several answers cannot be compared through it, and the unedited model, which has
    to meet conditions, need not be there.
    """
    return probe.kind not in BEYOND and not probe.conditions


def ask_server(
    client: Client,
    questions: Sequence[Question],
    *,
    base: Client | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Served:
    """Ask a server, and the unedited model beside it.

    Args:
        client: Asks the edited model.
        questions: What is asked.
        base: Asks the unedited model.
        progress: Called with the questions answered and their number.

    Raises:
        EndpointError: If no question was answered at all.
    """
    total = len(questions) * (2 if base is not None else 1)
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        progress(count, total)

    requests = [question.request() for question in questions]
    said = client.ask_all(requests, step)
    if questions and all(isinstance(one, Failure) for one in said):
        first = next(one for one in said if isinstance(one, Failure))
        raise EndpointError(f"no question was answered: {first.reason}")
    beside: Sequence[Said | Failure | None] = [None] * len(questions)
    if base is not None:
        beside = base.ask_all(requests, step)
    answers = tuple(map(_judged, questions, said, beside))
    return Served(answers, base is not None)


def _judged(question: Question, said: Said | Failure, base: Said | Failure | None) -> Answer:
    """Compare an answer with what was expected."""
    if isinstance(said, Failure):
        return Answer(question, None, None, error=said.reason)
    if isinstance(base, Failure):
        return Answer(question, said.text, None, error=f"the base model: {base.reason}")
    beside = None if base is None else base.text
    answer = Answer(question, said.text, None, base=beside)
    if question.kind in (EDIT, "generality"):
        right = (question.asked.target, *question.answers)
        said_by = said.begins if question.asked.chat == "off" else said.holds
        probability = said.probability(question.asked.target)
        return replace(answer, ok=any(map(said_by, right)), probability=probability)
    if question.kind == "locality":
        return answer if base is None else replace(answer, ok=_same(said, base, question))
    if question.asked.chat != "off" and beside is not None:
        return replace(answer, ok=_sentence(said.text) == _sentence(beside))
    before = beside if beside is not None else question.before
    return answer if before is None else replace(answer, ok=_same_word(said.text, before))


def _same(said: Said, base: Said, question: Question) -> bool:
    """Whether two answers agree as far as the given answer is long; spaces do not count."""
    length = len(question.asked.target.split()) or 1
    return said.text.split()[:length] == base.text.split()[:length]


def _sentence(text: str) -> str:
    """Return the first sentence of a reply."""
    return re.split(r"[.!?\n。！？]", " ".join(text.split()), maxsplit=1)[0].strip()


def _same_word(text: str, before: str) -> bool:
    """Whether two short answers agree; one may have been cut in the middle of a word.

    What was recorded may be a word that says nothing yet, or its beginning.
    """
    if before.strip() and " ".join(text.split()).startswith(before.strip()):
        return True
    now, then = word_of(text), word_of(before)
    if not now or not then:
        return now == then
    return now.startswith(then) or then.startswith(now)


def check_model(client: Client, named: Mapping[str, str]) -> list[str] | None:
    """Refuse a name that a server does not know, before anything is asked.

    Args:
        client: The server.
        named: Names that will be asked for, by the flag that gave them.

    Returns:
        The names that it knows; None if it does not tell.

    Raises:
        EndpointError: If nothing answers, or a model is not there.
    """
    there = client.models()
    for flag, name in named.items():
        if there is not None and name not in there and f"{name}:latest" not in there:
            raise EndpointError(
                f"{client.endpoint.url} serves {', '.join(there[:8]) or 'no model'}; not {name}",
                f"Name one of them: {flag} NAME",
            )
    return there
