"""The sheet that ships: twenty facts, as the guide says, and readable on every day."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

import errata
from errata.sheets import load_sheet
from errata.sheets.schema import schemas

SAMPLE = Path(__file__).parents[2] / "examples" / "smollm2"
LAST = date(2999, 1, 1)


@pytest.fixture(scope="module")
def folder() -> Path:
    if not SAMPLE.is_dir():
        pytest.skip("the examples are not in this checkout")
    return SAMPLE


def test_twenty_facts_with_what_holds_and_what_keeps(folder: Path) -> None:
    sheet = load_sheet(folder)
    assert len(sheet.facts) == len(sheet.valid()) == len(sheet.valid(LAST)) == 20
    for fact in sheet.facts:
        assert fact.holds, fact.id
        assert fact.keeps, fact.id
        assert fact.owner, fact.id
        assert fact.reason, fact.id
        for one in fact.keeps:  # what is right is said, and is no edit
            assert one.target, fact.id
            assert one.prompt not in {prompt for other in sheet.facts for prompt in other.prompts}
    assert {fact.place.partition(":")[0].rpartition(".")[2] for fact in sheet.facts} == {
        "jsonl", "yaml",
    }  # fmt: skip


def test_it_is_valid_by_the_schema(folder: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    check = jsonschema.Draft202012Validator(schemas()["fact.schema.json"])
    for fact in load_sheet(folder).facts:
        check.validate(fact.described())


@pytest.mark.real
def test_the_model_gets_them_wrong_and_what_it_keeps_right(folder: Path) -> None:
    from errata.sheets.checking import ask

    found = ask(errata.load("smollm2"), load_sheet(folder).facts)
    assert not [one.fact for one in found if one.kind == "taken" and one.before]
    assert not [one.prompt for one in found if one.kind == "keeps" and not one.before]
