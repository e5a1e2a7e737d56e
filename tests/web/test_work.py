"""Which questions are asked besides the edit, and which editors are offered."""

from __future__ import annotations

import pytest

from errata.case import Edit
from errata.editors import editors
from errata.web.work import _in_other_words, editors_for, example, world_paraphrases
from errata.world import build_world, demo_case
from errata.world.rephrase import paraphrases
from tests.web.conftest import wish


def test_questions_of_the_world_are_known_in_other_words():
    world = build_world()
    berlin = next(e for e in world.entities.values() if e.label == "Germany")
    fact = next(
        f for f in world.by_head[berlin.id] if world.relations[f.relation].label == "capital"
    )
    asked = Edit("The capital of Germany is the city named", "Oslo", "Germany")
    assert world_paraphrases("pocket", asked) == list(paraphrases(world, fact))
    assert world_paraphrases("smollm2", asked) == []
    assert world_paraphrases("pocket", Edit("Who rules Germany? It is", "Oslo", "Germany")) == []
    assert world_paraphrases("pocket", Edit(asked.prompt, "Oslo")) == []


def test_what_is_typed_replaces_what_is_known(lm):
    typed = wish(others=("Its capital is", " "))
    assert [one.prompt for one in _in_other_words(lm, typed, typed.edit())] == ["Its capital is"]

    class Named:
        name = "pocket"
        row_of = staticmethod(lm.row_of)

    known = example("pocket")
    found = _in_other_words(Named, known, known.edit())  # type: ignore[arg-type]
    assert [one.prompt for one in found] == demo_case()["paraphrases"]
    assert {one.target for one in found} == {"Tokyo"}


@pytest.mark.parametrize(("model", "trained"), [("pocket", True), ("smollm2", False)])
def test_editors_that_need_no_training_are_offered_and_those_that_ship(model: str, trained: bool):
    offered = [name for _, name in editors_for(model)]
    assert "rome" in offered
    assert "none" not in offered
    for name, entry in editors.entries.items():
        if "training" not in entry.facts["needs"] and name != "none":
            assert name in offered
    assert ("ibke" in offered) is trained
    assert "malmen" not in offered
