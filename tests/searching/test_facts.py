"""What settings are tried on: known facts only, held-out ones apart, neighbours that can stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from errata.errors import ConfigError, DataError
from errata.model.lm import LM
from errata.searching.facts import FEWEST, Relation, deal, of_file, put, shipped


def test_the_shipped_relations_are_well_formed() -> None:
    relations = shipped()
    assert len(relations) >= 10
    assert len({relation.name for relation in relations}) == len(relations)
    for relation in relations:
        assert len(relation.prompts) == 3
        assert all(prompt.count("{}") == 1 for prompt in relation.prompts)
        subjects = [subject for subject, _ in relation.facts]
        assert len(set(subjects)) == len(subjects) >= 10
        assert all(subject and answer for subject, answer in relation.facts)
        assert len({answer for _, answer in relation.facts}) > 2


def test_subjects_are_put_as_one_writes_them() -> None:
    assert put("The capital of {} is", "France") == "The capital of France is"
    assert put("{} is located in", "The Louvre") == "The Louvre is located in"
    assert put("To see {}, tourists go to", "The Louvre") == "To see the Louvre, tourists go to"
    assert put("{} is a metal", "iron") == "Iron is a metal"


def test_a_deal_holds_known_facts_and_none_twice(pocket: LM) -> None:
    dealt = deal(pocket, shipped(), "shipped", search=10, held=8)
    assert (len(dealt.search), len(dealt.held)) == (10, 8)
    every = [*dealt.search, *dealt.held]
    assert len({trial.edit.prompt for trial in every}) == len(every)
    for trial in every:
        edit = trial.edit
        assert edit.subject is not None
        assert edit.subject in edit.prompt
        assert edit.target != edit.target_true
        # the model's own greedy answers, asked one by one
        for prompt, answer in [
            (edit.prompt, edit.target_true),
            *((n.prompt, n.target) for n in trial.neighbours),
        ]:
            assert answer is not None
            assert pocket.generate([prompt], 6)[0].strip().startswith(answer)
        assert trial.neighbours
        assert all(n.prompt != edit.prompt for n in trial.neighbours)
        assert all(n.target != edit.target for n in trial.neighbours)
    for prompt in dealt.unknown[:5]:
        answers = {put(r.prompts[0], s): a for r in shipped() for s, a in r.facts}
        assert not pocket.generate([prompt], 6)[0].strip().startswith(answers[prompt])
    known, asked = dealt.known["continent"]
    assert known < FEWEST < asked  # the built-in world has other continents
    assert "continent" in dealt.left_out


def test_the_seed_decides_who_is_dealt(pocket: LM) -> None:
    one, same, other = (
        deal(pocket, shipped(), "shipped", search=6, held=6, seed=seed) for seed in (0, 0, 1)
    )
    assert one.id == same.id != other.id


def test_a_small_set_is_shared_between_search_and_held_out(pocket: LM) -> None:
    capital = shipped()[:1]
    few = (Relation("few", capital[0].prompts, capital[0].facts[:9]),)
    dealt = deal(pocket, few, "few", search=16, held=24)
    assert dealt.known == {"few": (8, 9)}
    assert (len(dealt.held), len(dealt.search)) == (4, 4)


def test_too_few_known_facts_are_refused_with_what_to_do(pocket: LM) -> None:
    wrong = Relation("wrong", ("The capital of {} is",), (("France", "Zanzibar"),) * 5)
    with pytest.raises(DataError, match="pocket knows too few facts of nonsense: 0") as error:
        deal(pocket, [wrong], "nonsense", search=4, held=4)
    assert "--facts FILE" in str(error.value.hint)


def test_facts_of_a_file_are_grouped_by_their_prompt(tmp_path: Path, pocket: LM) -> None:
    path = tmp_path / "facts.json"
    records = [
        {"subject": subject, "prompt": f"The capital of {subject} is", "attribute": answer}
        for subject, answer in shipped()[0].facts
    ]
    records.append({"subject": "Bach", "prompt": "Bach was born in", "attribute": "Eisenach"})
    path.write_text(json.dumps(records))
    one, two = sorted(of_file(path), key=lambda relation: -len(relation.facts))
    assert one.prompts[0] == "The capital of {} is"
    assert one.prompts[1] == "It is well known that The capital of {} is"
    assert len(one.facts) == len(records) - 1
    assert two.facts == (("Bach", "Eisenach"),)
    dealt = deal(pocket, of_file(path), "file", search=8, held=8)
    assert dealt.left_out == ("{} was born in",)


@pytest.mark.parametrize(
    ("body", "said"),
    [("{not json", "not valid JSON"), ("[]", "no fact"), ('[{"a": 1}]', "subject")],
)
def test_a_broken_file_is_refused(tmp_path: Path, body: str, said: str) -> None:
    path = tmp_path / "facts.json"
    path.write_text(body)
    with pytest.raises(DataError, match=said):
        of_file(path)
    with pytest.raises((DataError, ConfigError)):
        of_file(tmp_path / "absent.json")
