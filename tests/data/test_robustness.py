"""REP's file as a data set, and the built-in world's other ways to ask for a fact."""

from __future__ import annotations

import copy
import json
import re

import pytest

from errata import world as ew
from errata.case import Edit, Probe
from errata.data import load_cases
from errata.errors import DataError
from errata.world import rephrase
from errata.world.tokenizer import lexicon

REP = {
    "case_id": 3,
    "prompt": "Apple A5 was created by",
    "target_new": "Google",
    "target_true": "Apple",
    "subject": "Apple A5",
    "rephrase_prompt": ["The creek flows. Apple A5 is developed by", "", "The A5 was created by"],
    "rephrase_target": "Google",
    "locality_prompt": ["Macintosh File System, a product created by", "iPad is made by"],
    "locality_ground_truth": "Apple",
    "subject_rephrase": ["The A5", "A5 by Apple", "Apple's A5 chip"],
}


@pytest.fixture
def load(tmp_path):
    def read(*records, **more):
        path = tmp_path / "rep.json"
        path.write_text(json.dumps(list(records)), encoding="utf-8")
        return load_cases(f"rep:{path}", **more)

    return read


def test_a_record_of_rep(load):
    (case,) = load(REP).cases
    forms = tuple(REP["subject_rephrase"])
    assert case.edits == (
        Edit("Apple A5 was created by", "Google", "Apple A5", "Apple", "3", forms[:2]),
    )
    assert case.meta["subject_rephrase"] == forms
    assert case.probes == (
        Probe(REP["rephrase_prompt"][0], "Google", "generality", "rephrase", subject="Apple A5"),
        Probe(REP["rephrase_prompt"][2], "Google", "generality", "rephrase", subject="Apple A5"),
        Probe(REP["locality_prompt"][0], "Apple", "locality", "locality"),
        Probe(REP["locality_prompt"][1], "Apple", "locality", "locality"),
    )


def test_zsre_has_no_rephrased_prompts(load):
    (case,) = load({**REP, "rephrase_prompt": None, "locality_prompt": ["nq question: who"]}).cases
    assert [probe.name for probe in case.probes] == ["locality"]


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("subject", "Apple B5", "'subject' is 'Apple B5'; expected a part of the prompt"),
        ("subject_rephrase", [], "'subject_rephrase' is a list of 0; expected a list of at least"),
        ("subject_rephrase", ["a", 5], r"'subject_rephrase\[1\]' is 5"),
        ("rephrase_prompt", "one", "'rephrase_prompt' is 'one'; expected a list of texts or null"),
        ("target_true", None, "'target_true' is null"),
    ],
)
def test_a_broken_record_is_named(load, field, value, said):
    with pytest.raises(DataError, match=rf"rep.json: record 1 \(case_id 4\): field {said}"):
        load(REP, {**copy.deepcopy(REP), "case_id": 4, field: value})
    assert len(load(REP, {**REP, "case_id": 4, field: value}, skip_bad=True)) == 1


def test_the_published_file(shared):
    path = shared / "data" / "rep" / "counterfact_para_subject-valid.json"
    if not path.is_file():
        pytest.skip("needs REP's file")
    loaded = load_cases(f"rep:{path}")
    assert len(loaded) == 100
    assert loaded.version == load_cases(f"rep:{path.parent}", "valid").version
    for case in loaded.cases:
        (edit,) = case.edits
        assert len(case.meta["subject_rephrase"]) == 10
        assert edit.subject_rephrases == case.meta["subject_rephrase"][:5]
        assert len(case.of("locality")) == 10
    assert sum(len(case.of("generality")) for case in loaded.cases) == 1315


# ---------------------------------------------------------------------- the world


@pytest.fixture(scope="module")
def world() -> ew.World:
    return ew.build_world("pocket")


def words(text: str) -> set[str]:
    return {word.lower() for word in re.findall(r"[^\W_]+", text)}


def test_forms_of_a_subject_by_label_and_by_alias(world):
    france = next(e for e in world.entities.values() if e.label == "France")
    assert rephrase.subject_forms(france) == (
        "French Republic",
        "the country called France",
        "the country called French Republic",
        "France, the country,",
        "the country French Republic",
        "the country France",
        "French Republic, the country,",
        "the country named France",
    )
    behind = rephrase.subject_forms(france, "For the country ")
    assert behind == (
        "French Republic",
        "called France",
        "called French Republic",
        "France, the country,",
        "French Republic, the country,",
        "named France",
    )  # the country France is what stands there already
    assert rephrase.subject_forms(france, "The ")[1] == "country called France"
    assert rephrase.subject_forms(france, "The capital of ") == rephrase.subject_forms(france)
    peru = next(e for e in world.entities.values() if e.label == "Peru")
    assert not peru.aliases
    assert rephrase.subject_forms(peru) == tuple(
        form.format("Peru")
        for form in ("the country called {}", "{}, the country,", "the country {}",
                     "the country named {}")
    )  # fmt: skip


def test_the_text_has_every_word_of_the_rephrased_questions(world):
    known = set().union(*map(words, (*lexicon(world), *ew.texts(world, limit=2000))))
    for fact in world.facts[::37]:
        forms = rephrase.subject_forms(world.entities[fact.head])
        for text in (*forms, *rephrase.paraphrases(world, fact)):
            assert words(text) <= known, text


def test_paraphrases_are_the_held_out_templates(world):
    fact = world.facts[0]
    relation, label = world.relations[fact.relation], world.entities[fact.head].label
    found = rephrase.paraphrases(world, fact)
    assert len(found) == len(set(found)) == len(relation.heldout) == 4
    assert all(label in prompt for prompt in found)
    texts = set(ew.texts(world, limit=3000))
    answer = world.entities[fact.tail].label
    assert not {f"{prompt} {answer}." for prompt in found} & texts


def test_neighbours_are_true_and_about_others(world):
    for fact in world.facts[::501]:
        found = rephrase.neighbours(world, fact, 5)
        assert len(found) == 5
        own = world.entities[fact.head].label
        others = {
            world.entities[f.tail].label
            for f in world.by_relation[fact.relation]
            if f.head != fact.head
        }
        for prompt, answer in found:
            assert answer in others
            assert not re.search(rf"\b{re.escape(own)}\b", prompt)
        assert found == rephrase.neighbours(world, fact, 5)
        assert found != rephrase.neighbours(world, fact, 5, seed=1)


def test_what_else_is_known_of_a_subject(world):
    fact = next(f for f in world.facts if len(world.by_head[f.head]) == 4)
    found = rephrase.of_subject(world, fact)
    assert len(found) == 3
    rest = [world.entities[f.tail].label for f in world.by_head[fact.head] if f != fact]
    assert [answer for _, answer in found] == rest


def test_records_lead_back_to_their_facts(world):
    for case in load_cases("world", seed=0, limit=40).cases:
        (edit,) = case.edits
        fact = rephrase.fact_of(world, case.id, edit.subject or "")
        assert world.split_of[fact.head] == "test"
        assert world.relations[fact.relation].id == case.meta["relation"]
        assert world.entities[fact.tail].label != edit.target
    with pytest.raises(DataError, match="not one of the world of scale pocket"):
        rephrase.fact_of(world, case.id, "Somebody Else")
    with pytest.raises(DataError, match="data-set scale"):
        rephrase.fact_of(world, "art-99999999-0", edit.subject or "")
