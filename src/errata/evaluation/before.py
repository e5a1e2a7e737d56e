"""What the unedited model says: computed once per model and data set, then kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from errata.errors import ErrataError
from errata.evaluation.metrics import mean_nll
from errata.evaluation.questions import Question
from errata.store.cache import load_json, save_json
from errata.store.files import cache_root

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.model.tokens import Row

log = logging.getLogger(__name__)
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Before:
    """The unedited model's answer to one question.

    Attributes:
        argmax: Its most probable token at each supervised position.
        nll: Mean negative log-likelihood of the answer.
        foil_nll: The same of the competing answer, if there is one.
        choices_nll: The same of each answer that the target is compared with.
    """

    argmax: tuple[int, ...]
    nll: float | None
    foil_nll: float | None
    choices_nll: tuple[float | None, ...] = ()


def ask_before(
    lm: LM, questions: Mapping[str, Sequence[Question]]
) -> dict[tuple[str, int], Before]:
    """Return the unedited model's answers to all locality questions and comparisons.

    The result is kept in the cache folder (`ERRATA_CACHE`) under the fingerprint of the model and
    the token ids asked; a file that is damaged is computed again.

    Args:
        lm: The model without a patch.
        questions: The questions of each case.

    Returns:
        Answers by case id and number of the question.
    """
    wanted = [
        (case, number, question)
        for case, asked in questions.items()
        for number, question in enumerate(asked)
        if question.kind == "locality" or question.foil is not None or question.compared
    ]
    rows: list[Row] = []
    for _, _, question in wanted:
        rows.append(question.row)
        if question.foil is not None:
            rows.append(question.foil)
        rows += question.choices
    answers = iter(_answers(lm, rows))
    found: dict[tuple[str, int], Before] = {}
    for case, number, question in wanted:
        nll, argmax = next(answers)
        foil_nll = next(answers)[0] if question.foil is not None else None
        others = tuple(next(answers)[0] for _ in question.choices)
        found[case, number] = Before(tuple(argmax), nll, foil_nll, others)
    return found


def _answers(lm: LM, rows: Sequence[Row]) -> list[tuple[float | None, list[int]]]:
    """Return mean NLL and argmax tokens of every row, from the cache if they are there."""
    if not rows:
        return []
    total = hashlib.sha256()
    for row in rows:
        total.update(json.dumps([row.ids, row.positions, row.labels]).encode())
    facts = f"{FORMAT} {lm.fingerprint} {lm.dtype} {lm.device.type} {total.hexdigest()}"
    name = hashlib.sha256(facts.encode()).hexdigest()[:32]
    path = cache_root() / "preedit" / f"{name}.json"
    stored = load_json(path)
    if isinstance(stored, list) and len(stored) == len(rows):
        return [(nll, argmax) for nll, argmax in stored]
    answers = [(mean_nll(score.logprobs), list(score.argmax)) for score in lm.score(rows)]
    try:
        save_json(path, answers)
    except ErrataError as error:
        log.warning("the pre-edit answers cannot be kept in %s: %s", path, error.message)
    return answers
