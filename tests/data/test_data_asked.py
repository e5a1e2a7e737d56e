"""How edits and questions are asked, in files: cases, edits, patches."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from errata.case import Case, Edit, Probe, described, how_asked, in_chat
from errata.data import load_cases, load_edits, save_cases, save_edits
from errata.errors import DataError

PLAIN = Edit("法国的首都是", "罗马", subject="法国")
CHAT = Edit("Capital of France?", "Rome", chat="system+user", system="Be brief.")
EXACT = Edit("f(", "x)", joiner="")
HOP = Edit("The capital of Italy is", "Rome")
PROBE = Probe("Rome is in", "France", "generality", "hop", hops=(HOP,), joiner=" ", chat="user")


def test_edits_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "edits.jsonl"
    save_edits(path, [PLAIN, CHAT, EXACT])
    assert load_edits(path) == [PLAIN, CHAT, EXACT]
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    # only what is said is written
    assert lines[0].keys() == {"prompt", "target", "subject"}
    assert lines[1].keys() == {"prompt", "target", "chat", "system"}
    assert lines[2] == {"prompt": "f(", "target": "x)", "joiner": ""}


def test_cases_come_back_as_they_were(tmp_path: Path) -> None:
    cases = (
        Case("a", (PLAIN, CHAT), (PROBE,)),
        Case("b", (EXACT,), (PROBE,), chat="system+user", system="Be brief."),
    )
    path = tmp_path / "cases.jsonl"
    save_cases(path, cases)
    assert load_cases(str(path)).cases == cases


def test_a_case_puts_all_it_asks_into_the_chat() -> None:
    case = Case("b", (EXACT, PLAIN), (PROBE,), chat="user")
    assert [edit.chat for edit in case.edits] == ["user", "user"]
    assert case.probes == (replace(PROBE, hops=(replace(HOP, chat="user"),)),)
    assert case.edits[0].joiner == ""
    assert in_chat(CHAT, "off") == replace(CHAT, chat="off", system=None)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"chat": "usr"}, r"field 'chat' is 'usr'; expected 'off' or 'user' or 'system\+user'"),
        ({"system": "Be brief."}, r"'chat' is 'off'; expected 'system\+user', as there is a"),
        ({"joiner": 3}, "field 'joiner' is 3; expected auto or a text"),
        ({"joyner": ""}, "unknown field 'joyner'"),
    ],
)
def test_a_wrong_field_is_named_by_line(
    tmp_path: Path, entry: dict[str, object], message: str
) -> None:
    path = tmp_path / "edits.jsonl"
    path.write_text(json.dumps({"prompt": "It is", "target": "so", **entry}))
    with pytest.raises(DataError, match=rf"edits\.jsonl: line 1: .*{message}"):
        load_edits(path)


def test_what_is_not_said_is_not_shown() -> None:
    """Digests over the texts of edits stay what they were before edits could say this."""
    assert repr(HOP) == (
        "Edit(prompt='The capital of Italy is', target='Rome', subject=None, target_true=None, "
        "id=None, subject_rephrases=())"
    )
    assert "joiner=' ', chat='user')" in repr(PROBE)
    assert how_asked(HOP) == {}
    assert how_asked(CHAT) == {"chat": "system+user", "system": "Be brief."}
    assert described(EXACT) == {"prompt": "f(", "target": "x)", "joiner": ""}
    assert HOP.question != replace(HOP, chat="user").question
