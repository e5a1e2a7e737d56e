"""What contradicts itself in a sheet, all of it, so that it is mended in one go.

Every fact claims something of questions: its own prompts are written, `holds` have to follow,
`keeps` must not move. Claims about one question are compared where both are valid on some day:

```
                  written B     holds B       keeps B       keeps, whatever it is
written A         clash         clash         clash         clash
holds A, keeps A                clash         clash         –
written A twice   clash: it is solved for twice, and the sum overshoots
```
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date

from errata.errors import DataError
from errata.sheets.fact import Fact

SHOWN = 100
"""Faults that a message names."""
LENGTH = 80
"""Characters of a text that a message shows."""
WRITTEN = "written"
APART = "Take one out, or let one end (valid_until) before the other begins."
Question = tuple[str, str, str | None]


@dataclass(frozen=True)
class Claim:
    """What a fact says of one question.

    Attributes:
        fact: The fact.
        kind: `written`, `holds` or `keeps`.
        prompt: The question.
        answer: What is to be answered; None: what the unedited model says.
    """

    fact: Fact
    kind: str
    prompt: str
    answer: str | None

    def __str__(self) -> str:
        """Return it in words: `'Rome' in france`, `'Rome' in keeps of france`."""
        own = self.fact.id if self.kind == WRITTEN else f"{self.kind} of {self.fact.id}"
        said = "what the unedited model says" if self.answer is None else _short(self.answer)
        return f"{said} in {own}"

    def clashes(self, other: Claim, since: date) -> bool:
        """Whether both cannot hold on some day from `since` on."""
        written = [one.kind for one in (self, other)].count(WRITTEN)
        if self.answer is None or other.answer is None:
            wrong = written == 1
        else:
            wrong = written == 2 or self.answer != other.answer
        return wrong and self.fact.meets(other.fact, since)


def refuse_faults(facts: Sequence[Fact], since: date) -> None:
    """Refuse facts of which two have one id, or that contradict each other.

    Args:
        facts: The facts.
        since: The day from which on they may not contradict each other.

    Raises:
        DataError: Names all that is wrong, each with file and line.
    """
    found: list[str] = []
    more = False
    hints: dict[str, None] = {}
    for told, hint in _faults(facts, since):
        if len(found) == SHOWN:
            more = True
            break
        found.append(told)
        hints[hint] = None
    if not found:
        return
    if len(found) == 1:
        raise DataError(found[0], *hints)
    count = f"more than {SHOWN}" if more else str(len(found))
    lines = [f"{count} contradictions in the sheet:", *found, *(["…"] if more else [])]
    raise DataError("\n  ".join(lines), " ".join(hints))


def _faults(facts: Sequence[Fact], since: date) -> Iterator[tuple[str, str]]:
    """Yield what is wrong and what to do about it, in the order of the facts."""
    ids: dict[str, Fact] = {}
    seen: dict[Question, list[Claim]] = {}
    for fact in facts:
        first = ids.setdefault(fact.id, fact)
        if first is not fact:
            yield (
                f"{fact.place}: the id {fact.id!r} occurs twice; first at {first.place}",
                "Give one of them another id.",
            )
        for question, claim in _claims(fact):
            for other in seen.setdefault(question, []):
                if claim.clashes(other, since):
                    yield _told(other, claim), APART
            seen[question].append(claim)


def _claims(fact: Fact) -> Iterator[tuple[Question, Claim]]:
    for edit in fact.edits:
        yield edit.question, Claim(fact, WRITTEN, edit.prompt, fact.target.strip())
    for kind, asked in (("holds", fact.holds), ("keeps", fact.keeps)):
        for one in asked:
            answer = one.target if one.target or kind == "keeps" else fact.target
            yield one.question, Claim(fact, kind, one.prompt, answer and answer.strip())


def _told(one: Claim, two: Claim) -> str:
    prompt = _short(two.prompt)
    told = f"{prompt} is {one} and {two}"
    if one.kind == two.kind == WRITTEN and one.answer == two.answer:
        told = f"{prompt} is {_short(one.answer or '')} twice, in {one.fact.id} and {two.fact.id}"
    beside = "" if one.fact is two.fact else f" ({one.fact.place})"
    return f"{two.fact.place}: {told}{beside}"


def _short(text: str) -> str:
    return repr(text if len(text) <= LENGTH else f"{text[: LENGTH - 1]}…")
