"""A subject that does not occur in its prompt: what is different, and what to write instead."""

from __future__ import annotations

import unicodedata

import pytest
from tests.tiny_models import tiny_tokenizer

from errata.errors import EditError
from errata.model.spelling import nearest
from errata.model.tokens import encode_row, find_subject

COTE = "Côte d'Ivoire"
NFC, NFD = (unicodedata.normalize(form, COTE) for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("prompt", "subject", "own", "other"),
    [
        (NFD, NFC, "composed (NFC)", "decomposed (NFD)"),
        (NFC, NFD, "decomposed (NFD)", "composed (NFC)"),
    ],
)
def test_unicode_forms_are_named(prompt: str, subject: str, own: str, other: str) -> None:
    hint = nearest(f"The capital of {prompt} is", subject)
    assert f"the subject is {own}, the prompt {other}" in hint


@pytest.mark.parametrize(
    ("there", "subject", "difference"),
    [
        ("France", "france", "upper and lower case"),
        ("FRANCE", "France", "upper and lower case"),
        ("Hauptstraße", "HAUPTSTRASSE", "upper and lower case"),
        ("İstanbul", "istanbul", "upper and lower case"),
        ("Iğdır", "IĞDIR", "upper and lower case"),
        ("ΟΔΟΣ", "οδός", "upper and lower case and accents"),
        ("Ｆｒａｎｃｅ", "France", "width of letters"),
        ("ガス", "ｶﾞｽ", "width of letters"),
        ("Côte d’Ivoire", "Côte d'Ivoire", "quotation marks, apostrophes or dashes"),
        ("Austro–Hungary", "Austro-Hungary", "quotation marks, apostrophes or dashes"),
        ("New\u00a0York", "New York", "white space"),
        ("New  York", "New York", "white space"),
        ("New York", "New\tYork", "white space"),
        ("Fran\u200bce", "France", "invisible characters"),
        ("Sao Paulo", "São Paulo", "accents"),
        ("cote d’ivoire", COTE,
         "quotation marks, apostrophes or dashes, upper and lower case and accents"),
    ],
)  # fmt: skip
def test_the_difference_is_named_and_the_prompts_spelling_offered(
    there: str, subject: str, difference: str
) -> None:
    prompt = f"The capital of {there} is"
    hint = nearest(prompt, subject)
    assert f"Did you mean {there!r}" in hint
    assert hint.endswith(f"It differs in {difference}.")
    find_subject(prompt, there)  # what is offered is found


def test_what_cannot_be_seen_has_a_name() -> None:
    assert "'New\\xa0York' (with no-break space)?" in nearest("In New\u00a0York is", "New York")
    assert "(with zero width space)" in nearest("In Fran\u200bce is", "France")


def test_other_words_are_offered_where_they_are_close() -> None:
    assert nearest("The capital of Frnace is", "France") == "Did you mean 'Frnace'?"
    assert nearest("The capital is", "Zanzibar").startswith("Write the subject exactly")
    # a part of a longer word is not what is meant
    assert "'an'" not in nearest("The capital of France is", "AN")


def test_white_space_around_a_subject_is_not_looked_for() -> None:
    assert find_subject("The capital of France is", " France ") == (15, 21)


def test_the_message_is_that_of_a_row_and_long_prompts_are_no_trouble() -> None:
    with pytest.raises(EditError, match=r"'france' does not occur.*\n.*'France'\? It differs in"):
        encode_row(tiny_tokenizer(), "The capital of France is", "Rome", "france")
    long = "It was late and nobody knew. " * 3000 + "The capital of France is"
    assert "'France'?" in nearest(long, "FRANCE")
