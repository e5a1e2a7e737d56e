"""Scores of long answers: by hand, as two libraries count them, and in an evaluation."""

from __future__ import annotations

import math

import pytest

from errata.case import Case, Edit, Probe
from errata.errors import ConfigError
from errata.evaluation import evaluate
from errata.evaluation.long import bleu, overlaps, rouge, rouge_l, words
from errata.evaluation.protocol import Protocol
from tests.evaluation.test_eval_protocol import Planted

WANTED = "The cat sat on the mat, and the dog slept by the door."
SAID = "The dog slept on the mat; the cat by the door sat and slept."


def test_rouge_by_hand() -> None:
    wanted, said = "a b c d".split(), "a c b d d".split()
    assert rouge(wanted, said, 1) == 1.0
    assert rouge(wanted, said, 2) == 0.0  # ab, bc, cd against ac, cb, bd, dd
    assert rouge_l(wanted, said) == 0.75  # a b d
    assert rouge("a a b".split(), "a b b".split(), 1) == pytest.approx(2 / 3)  # clipped
    assert rouge([], said, 1) == rouge_l([], said) == rouge_l(wanted, []) == 0.0


def test_bleu_by_hand() -> None:
    wanted, said = "a b c d e".split(), "a b c d".split()
    assert bleu(wanted, wanted) == 1.0
    assert bleu(wanted, said) == pytest.approx(math.exp(1 - 5 / 4))  # all right, but too short
    longer = "a b c d e f".split()
    assert bleu(wanted, longer) == pytest.approx((5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25)
    assert bleu(wanted, "e d c b a".split()) == bleu(wanted, []) == 0.0


NAMES = ("rouge1", "rouge2", "rougeL", "bleu", "bleu_char")
ANNA = "Anna Schmidt was born in Oslo in 1931 and moved to Rome."
LONGER = "Anna Schmidt was born in Oslo in 1931 and then moved on to Rome, where she died."
LIBRARIES = [
    (WANTED, SAID, (1.0, 7 / 12, 8 / 13, 0.0, 0.8034140020387888)),
    (ANNA, LONGER, (1.0, 9 / 11, 1.0, 0.5043545474510804, 0.6677762830024636)),
    (
        "f(x) = x^2 + 3*x - 1 has two roots",
        "f(x) = x^2 + 3*x - 1 has one root",
        (0.8, 7 / 9, 0.8, 0.7598356856515925, 0.8360435933102724),
    ),
    ("a short text of words", "other things", (0.0,) * 5),
]
"""What rouge_score 0.1.2 (no stemmer) and nltk 3.10 (`sentence_bleu` of lists of words, and of raw
strings as the published tables have it) say; nltk's 1e-155 for no match is 0 here."""


@pytest.mark.parametrize("case", LIBRARIES)
def test_as_the_libraries_count(case: tuple[str, str, tuple[float, ...]]) -> None:
    wanted, said, scores = case
    assert overlaps(wanted, said) == pytest.approx(dict(zip(NAMES, scores, strict=True)), abs=1e-12)


def test_words() -> None:
    assert words("It's 3.5 km (Ünder_scored)") == ["it", "s", "3", "5", "km", "ünder", "scored"]


def case() -> Case:
    return Case(
        "1",
        (Edit("The capital of France is", "a quiet town by the river"),),
        (
            Probe("The capital city of France is", "a quiet town", "generality", "rephrase"),
            Probe("The capital of Italy is", "Rome", "locality", "near"),
        ),
    )


def test_an_evaluation_asks_for_long_answers(lm) -> None:
    result = evaluate(lm, Planted(5.0), [case()], protocol={"answers": "long", "new_tokens": 8})
    edit, rephrase, near = result.records[0]["questions"]
    with Planted(5.0).edit_one(lm, case().edits).applied(lm):
        texts = lm.generate([edit["prompt"], rephrase["prompt"]], 8)
    assert [edit["long"]["text"], rephrase["long"]["text"]] == texts
    for entry in (edit, rephrase):
        told = {name: value for name, value in entry["long"].items() if name != "text"}
        assert told == overlaps(entry["target"], entry["long"]["text"])
    assert "long" not in near
    summary = result.summary["long"]
    assert summary["reliability"]["rouge1"] == edit["long"]["rouge1"]
    assert "ROUGE-L, generality" in result.table()
    assert "long" not in evaluate(lm, "none", [case()]).summary


def test_similarity(lm) -> None:
    chosen = {"answers": "long", "new_tokens": 4, "similarity": "lexical"}
    (record,) = evaluate(lm, "none", [case()], protocol=chosen).records
    assert 0.0 <= record["questions"][0]["long"]["similarity"] <= 1.0


def test_protocols() -> None:
    assert Protocol(answers="long").new_tokens == 512
    assert Protocol(answers="long", new_tokens=9).new_tokens == 9
    assert Protocol(answers="wild").new_tokens == Protocol().new_tokens == 50
    with pytest.raises(ConfigError, match="similarity compares long answers"):
        Protocol(similarity="lexical")
    with pytest.raises(ConfigError, match="reads free answers"):
        Protocol(answers="long", judge="http://localhost:1/v1", judge_model="x")


def test_a_text_beyond_the_context_is_named_and_nothing_is_lost(lm) -> None:
    text = Case("long", (Edit("The capital of France is", "a quiet town " * 200),))
    result = evaluate(
        lm, Planted(5.0), [text, case()], protocol={"answers": "long", "new_tokens": 4}
    )
    refused, scored = result.records
    assert "the model's context holds" in refused["error"]
    assert "The capital of France is" in refused["error"]
    assert "long" in scored["questions"][0]
    assert (result.summary["failed"], result.summary["cases"]) == (1, 2)
