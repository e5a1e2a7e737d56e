"""Which facts of a sheet hold: on the base model, and under the patch that was built of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from errata.case import Case, Edit, Probe
from errata.data._records import thaw
from errata.inspection.answers import short_answers
from errata.inspection.look import SAID, Answer, followed
from errata.progress import Step, watched
from errata.sheets.difference import told_of, words
from errata.sheets.fact import Fact

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.patch import Patch
    from errata.sheets.sheet import Gates, Sheet

Kind = Literal["taken", "holds", "keeps"]
KINDS: tuple[Kind, ...] = ("taken", "holds", "keeps")


@dataclass(frozen=True)
class Checked:
    """One question about a fact.

    Attributes:
        fact: Its id.
        kind: `taken`: the edit itself; `holds`: what has to follow; `keeps`: what must not move.
        prompt: The question.
        expected: The answer that is right.
        before: Whether the base model gives it; None: it was not asked.
        after: Whether it is given under the patch, or by a server; None: there is none.
        p_before: Probability of it in the base model; None: it is not known.
        p_after: The same under the patch.
        says: What is said instead where it is not given.
    """

    fact: str
    kind: Kind
    prompt: str
    expected: str
    before: bool | None
    after: bool | None = None
    p_before: float | None = None
    p_after: float | None = None
    says: str | None = None

    @property
    def ok(self) -> bool:
        """Whether it is as it should be; without a patch, whether the base model says so."""
        return bool(self.before if self.after is None else self.after)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "ok": self.ok}


def ask(lm: LM, facts: Sequence[Fact], patch: Patch | None = None) -> tuple[Checked, ...]:
    """Ask everything that tells whether facts hold.

    Args:
        lm: The base model; bit for bit the same afterwards.
        facts: The facts.
        patch: The patch that was built of them; None: only the base model is asked.
    """
    with watched("asking for the facts, part") as step:
        return _asked(lm, facts, patch, step)


def _asked(lm: LM, facts: Sequence[Fact], patch: Patch | None, step: Step) -> tuple[Checked, ...]:
    """Ask the base model, then the patched one, then for its words where it is wrong."""
    parts = 2 if patch is None else 3
    step(0, parts)
    told: list[tuple[Fact, Kind, Edit | Probe]] = []
    free: list[tuple[Fact, Kind, Edit | Probe]] = []
    for fact in facts:
        for edit in fact.edits:
            told.append((fact, "taken", edit))
        for one in fact.holds:
            told.append((fact, "holds", one.probe("generality", fact.target)))
        for one in fact.keeps:
            asked = one.probe("locality", fact.target)
            (free if one.target is None else told).append((fact, "keeps", asked))
    asked = [lm.row_of(question) for *_, question in told]
    rows = [followed(lm, row) for row in asked]
    if free:
        more, scores = short_answers(lm, [question for *_, question in free], rows)
    else:
        more, scores = [], lm.score(rows)
    asked += more
    scores = [*scores, *(lm.score(more) if more else ())]
    before = [Answer.of(lm, *one) for one in zip(asked, scores, strict=True)]
    step(1, parts)
    every, questions = [*rows, *more], [*told, *free]
    expected = [question.target.strip() for *_, question in told]
    expected += [lm.text(row.labels).strip() for row in more]
    after: list[Answer | None] = [None] * len(every)
    says: dict[int, str] = {}
    if patch is None:
        wrong = [i for i, answer in enumerate(before) if not answer.whole]
        says = _said(lm, questions, wrong)
    else:
        with patch.applied(lm):
            after = [Answer.of(lm, *one) for one in zip(asked, lm.score(every), strict=True)]
            wrong = [i for i, answer in enumerate(after) if answer and not answer.whole]
            step(2, parts)
            says = _said(lm, questions, wrong)
    step(parts, parts)
    found = []
    for i, (fact, kind, question) in enumerate(questions):
        old, new = before[i], after[i]
        found.append(
            Checked(
                fact.id, kind, question.prompt, expected[i], old.whole,
                None if new is None else new.whole, old.probability,
                None if new is None else new.probability, says.get(i),
            )
        )  # fmt: skip
    order = {fact.id: number for number, fact in enumerate(facts)}
    return tuple(sorted(found, key=lambda one: (order[one.fact], KINDS.index(one.kind))))


def _said(lm: LM, questions: Sequence[Any], wrong: Sequence[int]) -> dict[int, str]:
    if not wrong:
        return {}
    texts = lm.generate([questions[i][-1] for i in wrong], SAID)
    return {i: " ".join(text.split()) for i, text in zip(wrong, texts, strict=True)}


def rates(found: Sequence[Checked]) -> dict[str, tuple[int, int]]:
    """Return of each kind how many are right, and how many there are; facts count as wholes."""
    taken: dict[str, bool] = {}
    for one in found:
        if one.kind == "taken":
            taken[one.fact] = taken.get(one.fact, True) and one.ok
    told = {"taken": (sum(taken.values()), len(taken))}
    for kind in ("holds", "keeps"):
        own = [one.ok for one in found if one.kind == kind]
        told[kind] = (sum(own), len(own))
    return told


def missed(gates: Gates, found: Sequence[Checked], patch: Patch) -> list[str]:
    """Return which gates are missed, each in a sentence; none: all hold."""
    names = {
        "taken": "facts are taken", "holds": "answers follow", "keeps": "answers are kept",
    }  # fmt: skip
    said = []
    for kind, (right, count) in rates(found).items():
        least = getattr(gates, kind)
        if count and right / count < least:
            said.append(f"{right} of {count} {names[kind]}, required {least:.0%}")
    if gates.neighbours is not None:
        share = patch.report.metrics().get("neighbours")
        if share is None:
            said.append("what else moved is not on record, and a gate is about it")
        elif share > gates.neighbours:
            said.append(f"{share:.1%} of the neighbours moved, allowed {gates.neighbours:.1%}")
    return said


def stale(sheet: Sheet, facts: Sequence[Fact], patch: Patch) -> str | None:
    """Say how a patch differs from what the sheet says now; None: it is of these very facts."""
    built: Mapping[str, Any] | None = patch.meta.get("sheet")
    if built is None:
        return "the patch was not built of a sheet"
    then = told_of(thaw(built).get("facts") or ())
    now = told_of([fact.described() for fact in facts])
    if then == now:
        return None
    return f"the sheet has changed since it was built: {words(then, now)}"


def cases_of(facts: Sequence[Fact]) -> tuple[Case, ...]:
    """Return facts as cases of an evaluation, for a server that is asked."""
    return tuple(
        Case(
            fact.id,
            fact.edits,
            (
                *(one.probe("generality", fact.target) for one in fact.holds),
                *(one.probe("locality", fact.target) for one in fact.keeps),
            ),
        )
        for fact in facts
    )
