"""What the unedited model says: computed once per model and data set, then kept on disk."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from errata.errors import ErrataError
from errata.evaluation.metrics import mean_nll
from errata.evaluation.questions import Question
from errata.evaluation.regimes import chunks
from errata.model.kept import Kept
from errata.progress import watched
from errata.store.cache import load_json, save_json
from errata.store.files import cache_root

if TYPE_CHECKING:
    from errata.editors.base import Editor
    from errata.model.lm import LM
    from errata.model.tokens import Row

log = logging.getLogger(__name__)
FORMAT = 1

KEPT_TOGETHER = 128
"""Rows whose answers share a file of the cache: what a kill loses, and a step of what is shown."""

T = TypeVar("T")


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


def kept_below(editor: Editor, lm: LM) -> Kept | None:
    """Return where hidden states of the unedited model are kept, for questions asked again.

    In front of the lowest block that the editor says it changes: what stands below gives the same
    under its patches. None: it does not say, or there is nothing below.
    """
    lowest = min(editor.edited_layers(lm) or (), default=0)
    return Kept(lowest - 1) if lowest > 0 else None


def _answers(lm: LM, rows: Sequence[Row]) -> list[tuple[float | None, list[int]]]:
    """Return mean NLL and argmax tokens of every row, from the cache if they are there."""

    def ask(part: Sequence[Row]) -> list[tuple[float | None, list[int]]]:
        return [(mean_nll(score.logprobs), list(score.argmax)) for score in lm.score(part)]

    return remembered(lm, f"{FORMAT}", rows, ask, "answers of the unedited model")


def remembered(
    lm: LM, how: str, rows: Sequence[Row], ask: Callable[[Sequence[Row]], list[T]], label: str
) -> list[T]:
    """Ask the unedited model, part by part; each part's answers are kept in the cache folder.

    Args:
        lm: The model without a patch.
        how: Whatever answers depend on besides the model and the rows.
        rows: What is asked.
        ask: Answers rows, with what JSON can hold.
        label: What is shown while it is asked.
    """
    found: list[T] = []
    with watched(label) as step:
        for part in chunks(rows, KEPT_TOGETHER):
            found += _part(lm, how, part, ask)
            step(len(found), len(rows))
    return found


def _part(
    lm: LM, how: str, rows: Sequence[Row], ask: Callable[[Sequence[Row]], list[T]]
) -> list[T]:
    asked = json.dumps([[row.ids, row.positions, row.labels] for row in rows])
    total = hashlib.sha256(asked.encode()).hexdigest()
    facts = f"{how} {lm.fingerprint} {lm.dtype} {lm.device.type} {total}"
    path = cache_root() / "preedit" / f"{hashlib.sha256(facts.encode()).hexdigest()[:32]}.json"
    stored = load_json(path)
    if isinstance(stored, list) and len(stored) == len(rows):
        return stored
    answers = ask(rows)
    try:
        save_json(path, answers)
    except ErrataError as error:
        log.warning("the unedited model's answers cannot be kept in %s: %s", path, error.message)
    return answers
