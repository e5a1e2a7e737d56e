"""Which facts of a sheet hold on a running server, by its own words; no model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from errata.inspection.served import Answer, Question, ask_server, questions_of
from errata.served import Client, Said
from errata.sheets.checking import KINDS, Checked, Kind, cases_of

if TYPE_CHECKING:
    from errata.case import Edit, Probe
    from errata.patch.report import Report
    from errata.sheets.fact import Fact

KIND: Mapping[str, Kind] = {"edit": "taken", "generality": "holds", "locality": "keeps"}


def ask_facts(
    client: Client,
    facts: Sequence[Fact],
    *,
    base: Client | None = None,
    report: Report | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[tuple[Checked, ...], dict[str, int]]:
    """Ask a server everything that tells whether facts hold.

    What `keeps` names without an answer is asked where the unedited model can be asked beside it.

    Args:
        client: Asks the server.
        facts: The facts.
        base: Asks the unedited model.
        report: What the build recorded: what the unedited model says of the facts, where it is not
            asked.
        progress: Called with the questions answered and their number.

    Returns:
        The questions that were answered, and of those that were not how many for which reason.

    Raises:
        EndpointError: If none was answered at all.
    """
    given = {(fact.id, one.question) for fact in facts for one in fact.keeps if one.target}

    def own_target(one: Question) -> bool:
        return KIND[one.kind] != "keeps" or (one.case, one.asked.question) in given

    questions = questions_of(cases_of(facts))
    if base is None:
        questions = [one for one in questions if own_target(one)]
    served = ask_server(client, questions, base=base, progress=progress)
    before = {} if report is None else {one.edit.question: one.taken_before for one in report.edits}
    found: list[Checked] = []
    failed: dict[str, int] = {}
    for one in served.answers:
        if one.error is None:
            known = before.get(one.question.asked.question)
            found.append(_checked(one, own_target(one.question), known))
        else:
            failed[one.error] = failed.get(one.error, 0) + 1
    order = {fact.id: number for number, fact in enumerate(facts)}
    found.sort(key=lambda one: (order[one.fact], KINDS.index(one.kind)))
    return tuple(found), failed


def _checked(one: Answer, own_target: bool, known: bool | None) -> Checked:
    """Return an answer as what it says about a fact.

    Args:
        one: The answer.
        own_target: Whether the sheet says what is right; else it is what the unedited model says.
        known: Whether the unedited model was found to give it when the patch was made.
    """
    asked, kind, says = one.question.asked, KIND[one.question.kind], one.says or ""
    right, before, expected = one.ok is True, True, " ".join((one.base or "").split())
    if own_target:
        expected = asked.target.strip()
        before = known if one.base is None else _gives(one.base, asked)
        if kind == "keeps":  # the sheet itself says what is right, and need not be compared
            right = _gives(says, asked)
    return Checked(
        one.question.case, kind, asked.prompt, expected, before, right,
        one.question.p_before, one.probability, None if right else " ".join(says.split()),
    )  # fmt: skip


def _gives(text: str, asked: Edit | Probe) -> bool:
    said = Said(text)
    return said.begins(asked.target) if asked.chat == "off" else said.holds(asked.target)
