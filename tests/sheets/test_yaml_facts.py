"""Facts in YAML: the same facts as in JSONL, and the same refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from errata.errors import DataError
from errata.sheets import load_sheet, without_fact
from tests.sheets.conftest import fact, write_sheet

FACTS = [
    fact("France", owner="me", valid_from="2026-01-01", keeps=[{"prompt": "x", "target": "y"}]),
    fact("Italy", "Paris", holds=["Paris is"], subject_at=1),
]


def as_yaml(folder: Path, facts: list, name: str = "b.yaml") -> Path:
    write_sheet(folder, [fact("Berlin")])
    path = folder / "facts" / name
    path.write_text(yaml.safe_dump(facts, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["b.yaml", "b.yml"])
def test_both_ways_of_writing_say_the_same(tmp_path: Path, name: str) -> None:
    one = load_sheet(as_yaml(tmp_path / "one", FACTS, name))
    two = load_sheet(write_sheet(tmp_path / "two", [fact("Berlin"), *FACTS]))
    assert [f.described() for f in one.facts] == [f.described() for f in two.facts]
    assert one.facts[1].place.endswith(f"{name}: line 1")


def test_days_stand_without_quotes(tmp_path: Path) -> None:
    folder = write_sheet(tmp_path / "s", [fact("Berlin")])
    text = "- id: a\n  prompt: p\n  target: t\n  valid_until: 2999-12-31\n"
    (folder / "facts" / "b.yaml").write_text(text)
    assert str(load_sheet(folder).find("a").valid_until) == "2999-12-31"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- id: a\n  prompt: p\n  target: 1912\n", "line 1: field 'target' is 1912"),
        ("- id: a\n  prompt: p\n  target: t\n  owner: true\n", "field 'owner' is true"),
        ("- id: a\n  prompt: p\n  targett: t\n", "unknown field 'targett'"),
        ("- [a]\n", "is a list of 1; expected an object"),
        ("- id: berlin\n  prompt: p\n  target: t\n", "the id 'berlin' occurs twice"),
        ("- id: a\n  id: b\n", "occurs twice in one object"),
        ("- id: &x a\n  prompt: *x\n", "aliases"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, said: str) -> None:
    folder = write_sheet(tmp_path / "s", [fact("Berlin")])
    (folder / "facts" / "b.yaml").write_text(text)
    with pytest.raises(DataError, match=said) as error:
        load_sheet(folder)
    assert "b.yaml" in error.value.message
    if "1912" in said or "owner" in said:
        assert "quotes" in str(error.value.hint)


def test_a_fact_is_taken_out(tmp_path: Path) -> None:
    folder = as_yaml(tmp_path / "s", FACTS)
    path = without_fact(load_sheet(folder), "france")
    assert path.name == "b.yaml"
    left = load_sheet(folder)
    assert [f.id for f in left.facts] == ["berlin", "italy"]
    assert left.find("italy").described() == json.loads(json.dumps(FACTS[1]))
