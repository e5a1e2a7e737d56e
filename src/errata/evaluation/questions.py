"""A case as the rows that are asked of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from errata.case import BEYOND, Beyond, Case, Edit, Probe

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.model.tokens import Row

Kind = Literal["reliability", "generality", "locality"] | Beyond


@dataclass(frozen=True, slots=True)
class Question:
    """One tokenised question.

    Attributes:
        kind: Which metric it serves.
        name: Sub-metric in which its score is averaged; `edit` for the edits themselves.
        prompt: The question.
        target: The answer it is teacher-forced on.
        source: The edit or the probe, which says how it is asked.
        row: Prompt and target.
        k: Rank that counts as a hit.
        criteria: Flags of the benchmark.
        hops: Facts the question builds on.
        foil: Prompt and competing answer, where two probabilities are compared.
        answers: What a generated answer may say; empty where none is compared.
        choices: Prompt and each of the answers that the target is compared with.
        exact: Whether only a whole answer counts; otherwise the share of its tokens that are hit.
    """

    kind: Kind
    name: str
    prompt: str
    target: str
    source: Edit | Probe
    row: Row
    k: int
    criteria: tuple[str, ...] = ()
    hops: tuple[Edit, ...] = ()
    foil: Row | None = None
    answers: tuple[str, ...] = ()
    choices: tuple[Row, ...] = ()
    exact: bool = False

    @property
    def compared(self) -> bool:
        """Whether likelihoods are compared, rather than tokens counted."""
        return self.kind in BEYOND


def questions_of(lm: LM, case: Case, top_k: int, compare: bool) -> list[Question]:
    """Return the questions of a case: its edits, generality, locality, and those that compare.

    Args:
        lm: Tokenises.
        case: The case.
        top_k: Rank that counts as a hit where a probe says nothing else.
        compare: Compare the probability of each edit's target with that of its `target_true`.

    Raises:
        EditError: If a target adds no token.
        ModelError: If a question is longer than the model's context.
    """
    questions = [_of_edit(lm, edit, compare, case.exact) for edit in case.edits]
    for kind in ("generality", "locality", *BEYOND):
        for probe in case.of(kind):
            spoken = kind == "generality"
            questions.append(
                Question(
                    kind=kind,
                    name=probe.name,
                    prompt=probe.prompt,
                    target=probe.target,
                    source=probe,
                    row=lm.row_of(probe),
                    k=probe.top_k or top_k,
                    criteria=probe.criteria,
                    hops=probe.hops if spoken else (),
                    foil=lm.row_of(probe, probe.foil) if probe.foil else None,
                    answers=(probe.target, *probe.answers) if kind != "locality" else (),
                    choices=tuple(lm.row_of(probe, choice) for choice in probe.choices),
                    exact=spoken and case.exact,
                )
            )
    return questions


def _of_edit(lm: LM, edit: Edit, compare: bool, exact: bool) -> Question:
    foil = edit.target_true if compare else None
    return Question(
        kind="reliability",
        name="edit",
        prompt=edit.prompt,
        target=edit.target,
        source=edit,
        row=lm.row_of(edit),
        k=1,
        foil=lm.row_of(edit, foil) if foil else None,
        answers=(edit.target,),
        exact=exact,
    )


def compares(cases: Sequence[Case]) -> bool:
    """Return whether the data set compares two probabilities, as CounterFact does."""
    return any(probe.foil for case in cases for probe in case.probes)
