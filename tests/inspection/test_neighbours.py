"""Which questions are neighbours of an edit."""

from __future__ import annotations

import pytest

from errata.case import Edit
from errata.inspection.neighbours import (
    CUES,
    EACH,
    MOST,
    bare_subjects,
    kind_of,
    kinds,
    neighbours_of,
    subject_of,
)


def test_the_lists_hold_what_they_should() -> None:
    for kind, names in kinds().items():
        assert len(names) == len(set(names)) > EACH, kind
        assert all(name and name == name.strip() for name in names)
    assert {kind for kind, _ in CUES} <= kinds().keys()


@pytest.mark.parametrize(
    ("subject", "prompt", "kind"),
    [
        ("France", "The capital of France is", "country"),
        ("france", "capital of france:", "country"),
        ("United States", "The president of the United States is", "country"),
        ("Eiffel Tower", "The Eiffel Tower is located in", "landmark"),
        ("Danielle Darrieux", "The mother tongue of Danielle Darrieux is", "person"),
        ("Zorbland", "The capital of Zorbland is", "country"),
        ("Acme Widgets", "The CEO of Acme Widgets is", "company"),
        ("The Silent Sea", "The author of The Silent Sea is", "work"),
        ("Blorb", "Blorb is", None),
    ],
)
def test_kinds(subject: str, prompt: str, kind: str | None) -> None:
    assert kind_of(subject, prompt) == kind


def test_other_subjects_are_put_in_the_same_prompt(tiny) -> None:
    lm = tiny("gpt2")
    edit = Edit("The capital of France is", "Rome", "France")
    found = neighbours_of(lm, [edit])
    assert len(found) == EACH
    for one in found:
        assert one.prompt == f"The capital of {one.subject} is"
        assert one.subject in kinds()["country"]
    assert "France" not in [one.subject for one in found]


def test_every_place_of_the_subject_is_filled_and_sentences_begin_large(tiny) -> None:
    lm = tiny("gpt2")
    edit = Edit("Windows is made by the makers of Windows, namely", "Apple", "Windows")
    prompts = [one.prompt for one in neighbours_of(lm, [edit])]
    assert "Android is made by the makers of Android, namely" in prompts
    assert not any("Windows is" in prompt for prompt in prompts)
    assert all(prompt[0].isupper() for prompt in prompts)  # "The iPhone", of "the iPhone"


def test_what_is_edited_is_no_neighbour(tiny) -> None:
    lm = tiny("gpt2")
    edits = [Edit(f"The capital of {name} is", "Rome", name) for name in ("France", "Germany")]
    earlier = Edit("The capital of Spain is", "Rome", "Spain")
    prompts = {one.prompt for one in neighbours_of(lm, edits, [earlier])}
    assert prompts.isdisjoint(edit.prompt for edit in (*edits, earlier))


def test_many_edits_share_the_questions(tiny) -> None:
    lm = tiny("gpt2")
    edits = [Edit(f"The capital of Land{i} is", "Rome", f"Land{i}") for i in range(300)]
    assert 0 < len(neighbours_of(lm, edits)) <= MOST
    assert len(bare_subjects(edits)) == MOST


def test_of_an_unknown_kind_the_model_and_all_lists_are_asked(tiny) -> None:
    lm = tiny("gpt2")
    found = neighbours_of(lm, [Edit("Well then, Blorb is", "Rome", "Blorb")])
    assert len(found) == EACH
    every = {name for names in kinds().values() for name in names}
    assert {one.subject for one in found} & every


def test_a_subject_that_nobody_named_is_found_if_it_is_known(tiny) -> None:
    assert subject_of(Edit("The capital of New Zealand is", "Rome")) == "New Zealand"
    assert subject_of(Edit("Blorb is", "Rome")) is None
    assert neighbours_of(tiny("gpt2"), [Edit("Blorb is", "Rome")]) == []
