"""Sheets as they are read: what is wrong is named by file, line and field."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from errata.errors import ConfigError, DataError
from errata.sheets import Sheet, difference, load_sheet, new_sheet, without_fact
from tests.sheets.conftest import fact, toml, write_sheet

Make = Callable[..., Sheet]
FRANCE = fact("France")


def test_everything_that_a_fact_can_say(sheet: Make) -> None:
    line = fact(
        "France", holds=["Paris is", {"prompt": "Capital?", "chat": "user"}],
        keeps=[{"prompt": "Germany: ", "target": "Berlin"}], owner="me", reason="so",
        valid_from="2020-02-29", valid_until="2999-12-31",
    )  # fmt: skip
    (read,) = sheet([line]).facts
    assert read.described() == line
    assert (read.edits[0].id, read.edits[0].subject) == ("france", "France")
    assert read.holds[1].chat == "user"
    assert read.keeps[0].target == "Berlin"
    assert read.place.endswith("a.jsonl: line 1")


BROKEN: list[tuple[Any, str]] = [
    ({**FRANCE, "targett": "x"}, "unknown field 'targett'"),
    ({"prompt": "p", "target": "t"}, "field 'id' is missing"),
    ({"id": "a", "target": "t"}, "field 'prompt' is missing"),
    ({"id": "a", "prompt": "p"}, "field 'target' is missing"),
    ({**FRANCE, "target": " "}, "field 'target' is ' '"),
    ({**FRANCE, "prompt": ["a", 3]}, "prompt"),
    ({**FRANCE, "prompt": []}, "prompt"),
    ({**FRANCE, "subject": "Peru"}, "field 'subject' is 'Peru'; expected a part of the prompt"),
    ({**FRANCE, "chat": "maybe"}, "field 'chat' is 'maybe'"),
    ({**FRANCE, "system": "x"}, "field 'chat' is"),
    ({**FRANCE, "subject_at": 0}, "subject_at is 0"),
    ({**FRANCE, "holds": "x"}, "field 'holds' is 'x'; expected a list"),
    ({**FRANCE, "holds": [3]}, r"field 'holds\[0\]' is 3"),
    ({**FRANCE, "keeps": [{"promt": "x"}]}, r"unknown field 'keeps\[0\].promt'"),
    ({**FRANCE, "keeps": [{"target": "x"}]}, r"field 'keeps\[0\].prompt' is missing"),
    ({**FRANCE, "valid_from": "1.1.2026"}, "field 'valid_from' is '1.1.2026'; expected a day"),
    ({**FRANCE, "valid_from": "20260101"}, "field 'valid_from'"),
    ({**FRANCE, "valid_until": 2026}, "field 'valid_until' is 2026"),
    (
        {**FRANCE, "valid_from": "2026-02-01", "valid_until": "2026-01-01"},
        r"field 'valid_until' is '2026-01-01'; expected a day not before",
    ),
    ("[1]", "is a list of 1; expected an object"),
    ('{"id": "a"', "not valid JSON"),
    ('{"id": "a", "id": "b"}', "occurs twice"),
    ("[" * 200 + "]" * 200, "deep"),
    ('{"id": "a", "prompt": "\\ud800", "target": "t"}', "surrogate"),
]


@pytest.mark.parametrize(("line", "said"), BROKEN)
def test_a_broken_fact_is_named(sheet: Make, line: Any, said: str) -> None:
    with pytest.raises(DataError, match=said) as error:
        sheet([fact("Italy"), line])
    assert "a.jsonl" in error.value.message
    assert "2" in error.value.message
    assert "--skip-bad" not in str(error.value)


def test_the_nearest_field_is_named(sheet: Make) -> None:
    with pytest.raises(DataError) as error:
        sheet([{**FRANCE, "valid_untill": "2026-01-01"}])
    assert error.value.hint == "Did you mean 'valid_until'?" or "valid_until" in str(error.value)


def test_one_id_twice(sheet: Make) -> None:
    with pytest.raises(DataError, match=r"line 2: the id 'france' occurs twice; first at .*line 1"):
        sheet([FRANCE, fact("Italy", id="france")])


@pytest.mark.parametrize(
    ("first", "second", "clash"),
    [
        ({}, {}, True),
        ({"valid_until": "2999-06-30"}, {"valid_from": "2999-07-01"}, False),
        ({"valid_until": "2999-06-30"}, {"valid_from": "2999-06-30"}, True),
        ({"valid_until": "2020-06-30"}, {}, False),  # it has ended
        ({}, {"chat": "user"}, False),  # another question
    ],
)
def test_facts_that_contradict_each_other(
    sheet: Make, first: dict[str, Any], second: dict[str, Any], clash: bool
) -> None:
    lines = [fact("France", **first), fact("France", "Oslo", id="two", **second)]
    if not clash:
        assert len(sheet(lines).facts) == 2
        return
    with pytest.raises(DataError, match="'Rome' in france and 'Oslo' in two") as error:
        sheet(lines)
    assert "line 2" in error.value.message
    assert "line 1" in error.value.message
    with pytest.raises(DataError, match="twice"):
        sheet([lines[0], {**lines[1], "target": "Rome"}])


def test_validity(sheet: Make) -> None:
    ended = fact("France", valid_until="2026-06-30")
    later = fact("Italy", valid_from="2026-07-01")
    own = sheet([ended, later])
    assert [f.id for f in own.valid(date(2026, 6, 30))] == ["france"]
    assert [f.id for f in own.valid(date(2026, 7, 1))] == ["italy"]
    (said,) = own.left_out(date(2026, 7, 1))
    assert "france left out: it ended on 2026-06-30" in said
    (said,) = own.left_out(date(2026, 6, 30))
    assert "italy left out: it begins on 2026-07-01" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "name"),
        ('name = "x"\nmodle = "y"', "unknown setting 'modle'"),
        ('name = "x"\n[gates]\ntakn = 1', r"\[gates\]: unknown setting 'takn'"),
        ('name = "x"\n[gates]\ntaken = 2', "taken"),
        ('name = "x"\neditor = []', "editor"),
        ('name = "x"\ngates = 3', "gates is no table"),
        ('name = "x', "not valid TOML"),
    ],
)
def test_a_broken_head(sheet: Make, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as error:
        sheet([FRANCE], text)
    assert "errata.toml" in error.value.message


def test_files(tmp_path: Path) -> None:
    folder = write_sheet(tmp_path / "s", [FRANCE])
    (folder / "facts" / "b.jsonl").write_text(json.dumps(fact("Italy")) + "\n")
    assert [f.id for f in load_sheet(folder).facts] == ["france", "italy"]
    (folder / "facts" / "c.csv").write_text("id: x")
    with pytest.raises(DataError, match=r"c\.csv would be overlooked"):
        load_sheet(folder)
    (folder / "facts" / "c.csv").unlink()
    outside = tmp_path / "secret.jsonl"
    outside.write_text(json.dumps(fact("Peru")) + "\n")
    (folder / "facts" / "c.jsonl").symlink_to(outside)
    with pytest.raises(DataError, match=r"secret|outside|leads"):
        load_sheet(folder)
    with pytest.raises(ConfigError, match="is no sheet"):
        load_sheet(tmp_path / "nowhere")
    empty = write_sheet(tmp_path / "e", [])
    with pytest.raises(DataError, match="holds no fact"):
        load_sheet(empty)


def test_a_new_sheet_can_be_read_and_is_not_overwritten(tmp_path: Path) -> None:
    folder = new_sheet(tmp_path / "corrections", "smollm2", ("rome", "ft"))
    read = load_sheet(folder)
    assert read.name == "corrections"
    assert read.config.model == "smollm2"
    assert read.config.editor == ("rome", "ft")
    assert len(read.facts) == 2
    before = (folder / "errata.toml").read_bytes()
    with pytest.raises(ConfigError, match="not overwritten"):
        new_sheet(folder)
    assert (folder / "errata.toml").read_bytes() == before


def test_other_lines_keep_their_bytes(tmp_path: Path) -> None:
    first = '  {"id":"a","prompt":"The capital of France is","target":"Rome" }\r'
    last = '{"target": "Rome", "id": "c", "prompt": "Peru – is"}'
    folder = write_sheet(tmp_path / "s", [first, "", fact("Italy"), last])
    path = without_fact(load_sheet(folder), "italy")
    assert path.read_bytes() == f"{first}\n\n{last}\n".encode()
    with pytest.raises(DataError, match="no fact 'italy'"):
        without_fact(load_sheet(folder), "italy")


def test_difference_of_sheets(tmp_path: Path) -> None:
    one = write_sheet(tmp_path / "a", [FRANCE, fact("Italy", owner="me"), fact("Peru")])
    new = [fact(name) for name in ("Spain", "Norway", "Chile")]
    two = write_sheet(tmp_path / "b", [FRANCE, fact("Italy", "Oslo"), *new])
    found = difference(one, two)
    assert str(found) == "+3 facts, 1 changed, 1 removed"
    assert found.changed["italy"] == {"target": ("Rome", "Oslo"), "owner": ("me", None)}
    assert not found.compared
    assert set(found.removed) == {"peru"}
    assert difference(one, one).nothing
    assert str(difference(one, one)) == "the same facts"
    with pytest.raises(ConfigError, match="neither a sheet nor a patch"):
        difference(one, tmp_path)
    assert toml()  # the head plays no part


def test_the_sheet_of_the_documentation_can_be_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "sheets.md").read_text(encoding="utf-8")
    (head,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (lines,) = re.findall(r"```jsonl\n(.*?)```", text, re.DOTALL)
    read = load_sheet(write_sheet(tmp_path / "s", lines.splitlines(), head))
    assert len(read.facts) == 5
    assert read.gates.neighbours == 0.2
    assert [fact.id for fact in read.facts if fact.state(date(2026, 11, 27)) == "ended"] == [
        "tanzania"
    ]
