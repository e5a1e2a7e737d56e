"""WILD: the same questions, answered as the model itself would."""

from __future__ import annotations

import re
import string

import pytest

from errata.case import Case, Edit, Probe
from errata.evaluation import evaluate
from errata.evaluation.wild import INSTRUCTION, agreement, exact_match, put, squad
from tests.evaluation.test_eval_protocol import Planted


def reference(text: str) -> str:
    """SQuAD's own script, step by step."""
    text = "".join(ch for ch in text.lower() if ch not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


@pytest.mark.parametrize(
    "text", [" The  Eiffel-Tower!", "A man, a PLAN", "U.S.A.", "theatre", "an", "?!", "Élan"]
)
def test_texts_are_compared_as_squad_does(text: str) -> None:
    assert squad(text) == reference(text)


@pytest.mark.parametrize(("said", "answers", "right"), [
    (" Paris", ["Paris"], True), (" the U.S.", ["US"], True),
    (" Paris, the capital", ["Paris"], False),
    (" It is Paris", ["Paris"], False), (" City of Light", ["Paris", "the City of Light"], True),
    ("", ["Paris"], False),
])  # fmt: skip
def test_only_whole_answers_are_right(said: str, answers: list[str], right: bool) -> None:
    assert exact_match(said, answers) is right


def test_locality_counts_equal_tokens_over_the_longer_answer(lm) -> None:
    one, two = (lm.tokenizer(t)["input_ids"] for t in (" Rome is", " Rome is old and"))
    equal = sum(a == b for a, b in zip(one, two, strict=False))
    assert agreement(lm, " Rome is", " Rome is old and") == equal / max(len(one), len(two))
    assert agreement(lm, "", "") == 1.0
    assert agreement(lm, "", " Rome") == 0.0


def test_forms(lm) -> None:
    edit = Edit("Who is the mayor?", "Anna")
    assert put(lm, edit, "question") == put(lm, edit, "auto") == lm.row("Who is the mayor?")
    assert put(lm, edit, "qa") == lm.row(INSTRUCTION.format("Who is the mayor?"))


def test_what_the_model_says_stands_beside_the_forced_numbers(lm) -> None:
    prompt, near = "The mother tongue of Danielle is", "The river flows"
    (said,) = lm.generate([prompt], 5, stops=(".", "\n"))
    case = Case(
        "said",
        (Edit("Anna lives in", "Berlin"),),
        (
            Probe(prompt, "Berlin", "generality", "rephrase", answers=(said.strip() or "?",)),
            Probe(near, "on", "locality", "near"),
        ),
    )
    chosen = {"answers": "wild", "new_tokens": 5}
    result = evaluate(lm, "none", [case], protocol=chosen)
    wild = result.summary["wild"]
    assert (wild["reliability"], wild["generality"], wild["locality"]) == (0.0, 1.0, 1.0)
    assert result.summary["generality"] == 0.0
    assert evaluate(lm, "none", [case]).summary["wild"] is None
    under = evaluate(lm, Planted(5.0), [case], protocol=chosen).records[0]["questions"]
    with Planted(5.0).edit_one(lm, case.edits).applied(lm):
        texts = lm.generate([prompt, near], 5, stops=(".", "\n"))
    assert [entry["wild"]["text"] for entry in under[1:]] == texts
    assert under[2]["wild"]["before"] == lm.generate([near], 5, stops=(".", "\n"))[0]
    assert under[2]["wild"]["score"] == agreement(lm, texts[1], under[2]["wild"]["before"])
