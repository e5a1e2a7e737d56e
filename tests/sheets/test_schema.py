"""The schemas that ship are those of the models, and agree with what reads a sheet."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, get_args

import pytest

from errata.case import Chat
from errata.errors import DataError
from errata.sheets import Sheet
from errata.sheets.fact import ASKED, FIELDS
from errata.sheets.schema import SHIPPED, FactLine, Question, schemas, text_of
from errata.sheets.sheet import TABLES, Gates, SheetConfig
from tests.sheets.conftest import fact

Make = Callable[..., Sheet]


@pytest.mark.parametrize("name", schemas())
def test_what_ships_is_what_the_models_say(name: str) -> None:
    text = (SHIPPED / name).read_text(encoding="utf-8")
    assert text == text_of(schemas()[name]), f"errata sheet schema --out {SHIPPED} writes it anew"


def test_the_fields_are_those_that_are_read() -> None:
    assert set(FactLine.model_fields) == set(FIELDS)
    assert set(Question.model_fields) == set(ASKED)
    whole = schemas()["errata.schema.json"]
    assert set(whole["properties"]) == {*SheetConfig.model_fields, *TABLES}
    assert set(whole["$defs"]["Gates"]["properties"]) == set(Gates.model_fields)
    assert schemas()["fact.schema.json"]["properties"]["chat"]["enum"] == list(get_args(Chat))


RIGHT: list[dict[str, Any]] = [
    fact("France"),
    fact("France", id=7, prompt=["France is", "In France"], subject_at=1),
    fact(
        "France", holds=["a", {"prompt": "b", "chat": "user"}], keeps=[], owner="me", reason=None,
        valid_from="2026-01-01", valid_until="2999-12-31", joiner="", chat="system+user",
        system="s",
    ),
]  # fmt: skip
WRONG: list[Any] = [
    {**fact("France"), "targett": "x"},
    {"prompt": "p", "target": "t"},
    {"id": "a", "target": "t"},
    {**fact("France"), "target": " "},
    {**fact("France"), "prompt": ["a", 3]},
    {**fact("France"), "prompt": []},
    {**fact("France"), "chat": "maybe"},
    {**fact("France"), "subject_at": 0},
    {**fact("France"), "holds": "x"},
    {**fact("France"), "keeps": [{"promt": "x"}]},
    {**fact("France"), "valid_from": "1.1.2026"},
    {**fact("France"), "valid_until": 2026},
    [1],
]


def checked(name: str, value: Any) -> bool:
    jsonschema = pytest.importorskip("jsonschema")
    schema = schemas()[name]
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema).is_valid(value)


@pytest.mark.parametrize("line", RIGHT)
def test_what_is_read_is_valid(sheet: Make, line: Any) -> None:
    assert sheet([line]).facts
    assert checked("fact.schema.json", line)
    assert checked("facts.schema.json", [line, line])


@pytest.mark.parametrize("line", WRONG)
def test_what_is_refused_is_not(sheet: Make, line: Any) -> None:
    with pytest.raises(DataError):
        sheet([line])
    assert not checked("fact.schema.json", line)
    assert not checked("facts.schema.json", [line])


@pytest.mark.parametrize(
    ("document", "right"),
    [
        ({"name": "a"}, True),
        ({"name": "a", "editor": "rome", "gates": {"taken": 0.9}, "settings": {"layer": 3}}, True),
        ({"name": "a", "editor": ["rome", "ft"], "model": "smollm2"}, True),
        ({}, False),
        ({"name": "a", "editor": []}, False),
        ({"name": "a", "gate": {}}, False),
        ({"name": "a", "gates": {"taken": 2}}, False),
        ({"name": "a", "gates": {"takn": 1}}, False),
        ({"name": ""}, False),
    ],
)
def test_errata_toml(document: dict[str, Any], right: bool) -> None:
    assert checked("errata.schema.json", document) is right
    assert json.dumps(schemas()["errata.schema.json"])
