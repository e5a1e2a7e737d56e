"""Perturbed subjects and contexts, by hand-made examples."""

from __future__ import annotations

from collections.abc import Callable
from math import factorial

import pytest

from errata.case import Edit
from errata.errors import DataError, EditError
from errata.locate.perturb import (
    fit_context,
    halves,
    long_contexts,
    long_texts,
    seen_subjects,
    strip_braces,
    subject_pieces,
    subject_shuffles,
    with_subject,
)
from errata.model.lm import LM

TEXTS = ["a {b} c", "d e f g", "h"]


@pytest.fixture(scope="module")
def lm(tiny: Callable[..., LM]) -> LM:
    return tiny("gpt2")


def test_the_first_half_is_the_larger_one() -> None:
    assert halves([]) == ((), ())
    assert halves(["a"]) == (("a",), ())
    assert halves("abcde") == (("a", "b", "c"), ("d", "e"))
    assert halves(list(range(10))) == ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9))


@pytest.mark.parametrize("subject", ["Paris", "Danielle Darrieux", "Zoë of Łódź", "東京 タワー"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_pieces_are_the_subject(tiny: Callable[..., LM], kind: str, subject: str) -> None:
    pieces = subject_pieces(tiny(kind), subject)
    assert "".join(pieces) == f" {subject}"
    assert all(piece.strip() for piece in pieces)


def test_two_words_have_one_permutation(lm: LM) -> None:
    assert subject_pieces(lm, "Paris Rome") == [" Paris", " Rome"]
    assert subject_shuffles(lm, "Paris Rome") == ["Rome Paris"]


def test_a_subject_of_one_token_has_none(lm: LM) -> None:
    assert subject_pieces(lm, "Paris") == [" Paris"]
    assert subject_shuffles(lm, "Paris") == []


@pytest.mark.parametrize(
    "subject", ["Paris Rome Berlin", "Paris Rome Berlin Anna", "The river of X Y Z W V"]
)
def test_permutations_are_distinct_and_exclude_the_subject(lm: LM, subject: str) -> None:
    pieces = subject_pieces(lm, subject)
    found = subject_shuffles(lm, subject)
    assert len(found) == len(set(found)) == min(10, factorial(len(pieces)) - 1)
    assert subject not in found
    joined = sorted("".join(pieces).replace(" ", ""))
    for text in found:
        assert sorted(text.replace(" ", "")) == joined
        assert all(piece.strip() in text for piece in pieces)
    assert subject_shuffles(lm, subject) == found
    assert len(subject_shuffles(lm, subject, limit=3)) == 3
    assert subject_shuffles(lm, subject, seed=1) != found


def test_repeated_tokens_leave_fewer_permutations(lm: LM) -> None:
    assert subject_shuffles(lm, "Rome Rome") == []
    assert sorted(subject_shuffles(lm, "Rome Rome Paris")) == ["Paris Rome Rome", "Rome Paris Rome"]
    # more tokens than are listed: nine orders beside the subject, and no endless search for a tenth
    many = " ".join(["Rome"] * 9 + ["Paris"])
    assert len(subject_shuffles(lm, many, limit=10)) == 9


def test_seen_subjects_are_the_given_ones_and_half_of_the_shuffles(lm: LM) -> None:
    subject = "Paris Rome Berlin"
    edit = Edit(f"The mayor of {subject} is", "Anna", subject, subject_rephrases=("Old Paris",))
    shuffles = subject_shuffles(lm, subject)
    assert len(shuffles) == 5
    assert seen_subjects(lm, edit) == ["Old Paris", *shuffles[:3]]
    assert seen_subjects(lm, Edit("The mayor is", "Anna")) == []


def test_a_form_takes_the_place_of_the_subject() -> None:
    prompt = "The {x} of Rome in Rome is"
    assert with_subject(prompt, "Rome", "old {y}") == "The {x} of Rome in old {y} is"
    assert with_subject(prompt, "Rome", "old {y}", "first") == "The {x} of old {y} in Rome is"
    assert with_subject("Rome has", "Rome", "the city") == "The city has"
    assert with_subject("rome has", "rome", "the city") == "the city has"
    with pytest.raises(EditError, match="does not occur"):
        with_subject(prompt, "Paris", "x")


def test_long_texts_run_on_and_have_no_braces() -> None:
    ring: list[str] = list("abcdefgh")
    starts = {"a", "d", "h"}
    for text in long_texts(TEXTS, 20, words=6):
        words = text.split(" ")
        at = ring.index(words[0])
        assert words[0] in starts
        assert words == [ring[(at + i) % 8] for i in range(6)]
    assert strip_braces("{a} {}") == "a "


def test_long_texts_depend_on_seed_and_key_alone() -> None:
    texts = [f"w{i} x{i}" for i in range(500)]
    one = long_contexts(texts, "prompt", words=4)
    assert one == long_contexts(texts, "prompt", words=4)
    assert len({one.unseen, *one.held}) == 6
    assert one != long_contexts(texts, "prompt", words=4, seed=1)
    assert one != long_contexts(texts, "another", words=4)


def test_too_little_text_is_refused() -> None:
    with pytest.raises(DataError, match="have 8 words; expected at least 9"):
        long_texts(TEXTS, 1, words=9)
    with pytest.raises(DataError, match="have 0 words"):
        long_texts([], 1)


def test_a_context_is_shortened_from_the_front_until_it_fits(lm: LM) -> None:
    assert lm.max_length == 256
    prompt, target = "The capital of France is", "Paris is the city"
    assert fit_context(lm, "Anna lives in Berlin.", prompt, [target]) == "Anna lives in Berlin."
    words = [f"w{i}" for i in range(400)]
    kept = fit_context(lm, " ".join(words), prompt, ["Paris", target])
    count = len(kept.split(" "))
    assert kept == " ".join(words[-count:])
    lm.row(f"{kept} {prompt}", target)  # would be refused if it were too long
    one_more = " ".join(words[-count - 1 :])
    assert len(lm.tokenizer(f"{one_more} {prompt} {target}")["input_ids"]) - 1 > 256


def test_an_edit_keeps_the_names_of_its_subject() -> None:
    names: list[str] = ["Rome", "the city"]
    edit = Edit("p", "t", "s", subject_rephrases=names)  # pyright: ignore[reportArgumentType]
    assert edit.subject_rephrases == ("Rome", "the city")
    assert hash(edit) == hash(Edit("p", "t", "s", subject_rephrases=("Rome", "the city")))
    with pytest.raises(DataError, match="subject rephrase"):
        Edit("p", "t", "s", subject_rephrases=(" ",))
