"""The trained editors that come with the pocket model."""

from __future__ import annotations

import pytest

import errata
from errata.editors import get_editor
from errata.model.lm import LM
from errata.nets.weights import SHIPPED, read_config


@pytest.fixture(scope="module")
def pocket() -> LM:
    return errata.load("pocket")


def test_they_are_small_and_say_where_they_come_from() -> None:
    folders = sorted(path.name for path in SHIPPED.iterdir())
    assert folders == ["ibke", "mend", "serac"]
    files = [path for path in SHIPPED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 22e6
    for name in folders:
        config = read_config(SHIPPED / name)
        assert config["editor"] == name
        assert config["data"][0]["version"]
        card = (SHIPPED / name / "README.md").read_text()
        assert "studies.pocket run" in card or f"errata train {name}" in card


@pytest.mark.slow
def test_ibke_generalises_better_than_direct_editing(pocket: LM) -> None:
    """Facts of entities that no training has seen; questions that pocket can answer at all."""
    cases = errata.load_cases("world", split="test", limit=120, seed=0)
    found = {}
    for name in ("ibke", "mend", "ft"):
        result = errata.evaluate(pocket, get_editor(name, model="pocket"), cases)
        asked = [
            question
            for record in result.records
            for question in record["questions"]
            if "SER" not in question.get("criteria", ())
        ]
        found[name] = {
            kind: sum(q["top1"] for q in asked if q["kind"] == kind)
            / sum(q["kind"] == kind for q in asked)
            for kind in ("reliability", "generality", "locality")
        }
    assert found["ibke"]["reliability"] > 0.95
    assert found["ibke"]["locality"] > 0.9
    assert found["ibke"]["generality"] > found["ft"]["generality"] + 0.03
    assert found["mend"]["generality"] > found["ft"]["generality"]
    reversed_questions = [
        question["top1"]
        for record in errata.evaluate(
            pocket,
            get_editor("ibke", model="pocket"),
            errata.load_cases("world", split="test_domains"),
        ).records
        for question in record["questions"]
        if question["kind"] == "generality" and question.get("criteria") == ["RR"]
    ]
    assert sum(reversed_questions) / len(reversed_questions) > 0.25  # without mirror: a tenth


def test_serac_answers_its_edits_and_leaves_the_rest_to_the_model(pocket: LM) -> None:
    """Facts of entities that no training has seen, by the prompts alone."""
    cases = errata.load_cases("world", split="test", limit=120, seed=0)
    result = errata.evaluate(pocket, get_editor("serac", model="pocket"), cases)
    asked = [question for record in result.records for question in record["questions"]]
    rates = {
        kind: sum(q["top1"] for q in own) / len(own)
        for kind in ("reliability", "locality")
        for own in [[q for q in asked if q["kind"] == kind]]
    }
    rephrased = [q["top1"] for q in asked if q.get("criteria") == ["Rep"]]
    assert rates["reliability"] > 0.9
    assert rates["locality"] > 0.9
    assert sum(rephrased) / len(rephrased) > 0.8
