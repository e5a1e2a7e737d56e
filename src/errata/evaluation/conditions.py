"""Questions that count only where the unedited model knows what they build on (RippleEdits).

Each condition is asked of the model before any edit, greedily; it is met if of every group of
answers one stands in what the model says. Equal questions are asked once.

Source: Cohen et al. 2023, https://arxiv.org/abs/2307.12976, and its released runner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from errata.case import Condition, Edit, Probe, how_asked
from errata.errors import EditError, ModelError
from errata.evaluation.before import remembered
from errata.evaluation.questions import Question

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.model.tokens import Row

NEW_TOKENS = 30
"""Tokens in which an answer is looked for."""


def met(
    lm: LM, questions: Mapping[str, Sequence[Question]]
) -> tuple[dict[str, list[Question]], dict[str, int]]:
    """Return the questions that count, and how many of each case do not.

    Args:
        lm: The model without a patch.
        questions: The questions of each case.
    """
    asked = {
        edit: None
        for own in questions.values()
        for question in own
        for edit, _ in _conditions(question)
    }
    if not asked:
        return {case: list(own) for case, own in questions.items()}, {}
    rows = {}
    for edit in asked:
        try:
            rows[edit] = lm.prompt_of(edit)
        except (EditError, ModelError):
            continue  # what cannot be asked is not known

    def ask(part: Sequence[Row]) -> list[str]:
        return lm.generate(list(part), NEW_TOKENS)

    how = f"conditions {NEW_TOKENS}"
    texts = remembered(lm, how, list(rows.values()), ask, "conditions of questions")
    said = dict(zip(rows, texts, strict=True))
    kept: dict[str, list[Question]] = {}
    left_out: dict[str, int] = {}
    for case, own in questions.items():
        kept[case] = [
            question
            for question in own
            if all(is_met(condition, said.get(edit)) for edit, condition in _conditions(question))
        ]
        if len(kept[case]) < len(own):
            left_out[case] = len(own) - len(kept[case])
    return kept, left_out


def is_met(condition: Condition, said: str | None) -> bool:
    """Return whether what the model says meets a condition; None: it could not be asked."""
    if said is None:
        return False
    known = all(any(answer in said for answer in group) for group in condition.answers)
    return known == condition.holds


def _conditions(question: Question) -> list[tuple[Edit, Condition]]:
    """Return the conditions of a question, each as what is asked in the way of the question."""
    source = question.source
    if not isinstance(source, Probe):
        return []
    return [(Edit(c.prompt, "?", **how_asked(source)), c) for c in source.conditions]
