"""WILD: answers as the model itself writes them, beside the teacher-forced ones.

Teacher forcing shows the model the answer's content and length, word by word; four things leak
(content, length, the prompt of the edit, averages over tokens), and most published rates fall
to a fraction where the model speaks freely (Yang et al., The Mirage of Model Editing, ACL 2025,
arXiv:2502.11177). So every question is asked once more:

* only the question, or behind an instruction, or in the model's own chat;
* greedily, at most 50 new tokens, up to the first full stop, newline or end of text;
* right if the whole answer equals an accepted one, both normalised as SQuAD does;
* locality: the share of tokens that are those of the unedited model's own answer, over the longer
  of the two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from errata.case import Edit, Probe
from errata.errors import EditError, ModelError
from errata.evaluation.before import remembered
from errata.evaluation.judge import Item, Judge, squad
from errata.evaluation.questions import Question

if TYPE_CHECKING:
    from errata.evaluation.long import LongScores
    from errata.model.lm import LM
    from errata.model.tokens import Row


FORMAT = 1
STOPS = (".", "\n")
Form = Literal["auto", "question", "qa", "chat"]
"""How a question is put: as it stands, behind an instruction, as a message in the chat; auto: in
the chat if it ends in a question mark and the model has a chat template, else as it stands."""

INSTRUCTION = "Please answer the question:\n\nQ: {}\nA:"

Asked = tuple[str, int]
"""A question: the id of its case, and its number there."""


@dataclass(frozen=True)
class Free:
    """How free answers are asked for.

    Attributes:
        form: How a question is put.
        new_tokens: Most tokens of an answer.
        before: What the unedited model says to locality questions.
        judge: Judges answers beside exact match; None: nobody does.
        long: Scores long answers, which go on until the model ends them; None: they are short.
    """

    form: Form
    new_tokens: int
    before: Mapping[Asked, str]
    judge: Judge | None = None
    long: LongScores | None = None


def exact_match(said: str, answers: Iterable[str]) -> bool:
    """Return whether what is said is one of the answers, both normalised."""
    found = squad(said)
    return any(found == squad(answer) for answer in answers)


def agreement(lm: LM, said: str, before: str) -> float:
    """Return the share of equal tokens, position by position, over the longer of two texts."""
    one, two = (
        lm.tokenizer(text, add_special_tokens=False)["input_ids"] for text in (said, before)
    )
    longer = max(len(one), len(two))
    if not longer:
        return 1.0
    return sum(a == b for a, b in zip(one, two, strict=False)) / longer


def put(lm: LM, source: Edit | Probe, form: Form) -> Row:
    """Tokenise a question in a form; what its case says of a chat stays.

    Raises:
        ModelError: If the model has no chat template, or its context is too short.
    """
    if source.chat != "off":
        return lm.prompt_of(source)
    if form == "auto":
        asks = source.prompt.rstrip().endswith("?") and bool(lm.tokenizer.chat_template)
        form = "chat" if asks else "question"
    if form == "chat":
        return lm.prompt_of(replace(source, chat="user"))
    if form == "qa":
        return lm.prompt_of(replace(source, prompt=INSTRUCTION.format(source.prompt.strip())))
    return lm.prompt_of(source)


def rows_of(
    lm: LM, questions: Mapping[Asked, Question], form: Form
) -> tuple[dict[Asked, Row], dict[Asked, str]]:
    """Return the questions as rows, and why some cannot be asked."""
    rows: dict[Asked, Row] = {}
    refused: dict[Asked, str] = {}
    for which, question in questions.items():
        try:
            rows[which] = put(lm, question.source, form)
        except (EditError, ModelError) as error:
            refused[which] = error.message
    return rows, refused


def score_of(lm: LM, question: Question, said: str, before: str | None) -> float:
    """Return the score of an answer: exact match, or for locality what stayed as it was.

    Behind a negation the answer is right if it is another one, and not empty.
    """
    if question.kind == "locality":
        return agreement(lm, said, before or "")
    match = exact_match(said, question.answers or (question.target,))
    if question.kind == "negation":
        return float(bool(squad(said)) and not match)
    return float(match)


def item_of(question: Question, said: str) -> Item:
    """Return what a judge is shown of an answer."""
    return Item(question.prompt, question.answers or (question.target,), said)


def ask_before(
    lm: LM, questions: Mapping[str, Sequence[Question]], form: Form, new_tokens: int
) -> dict[Asked, str]:
    """Return what the unedited model says to all locality questions; kept in the cache folder.

    Args:
        lm: The model without a patch.
        questions: The questions of each case.
        form: How they are put.
        new_tokens: Most tokens of an answer.
    """
    wanted = {
        (case, number): question
        for case, asked in questions.items()
        for number, question in enumerate(asked)
        if question.kind == "locality"
    }
    rows, _ = rows_of(lm, wanted, form)

    def ask(part: Sequence[Row]) -> list[str]:
        return lm.generate(list(part), new_tokens, stops=STOPS)

    how = f"wild {FORMAT} {new_tokens}"
    texts = remembered(lm, how, list(rows.values()), ask, "free answers of the unedited model")
    return dict(zip(rows, texts, strict=True))
