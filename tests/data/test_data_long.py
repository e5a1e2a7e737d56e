"""Data sets whose answers are whole texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from errata.data import load_cases
from errata.errors import DataError

UNKE = {
    "id": 0,
    "question": "What is known of George Rankin?",
    "para_question": "Tell me about George Rankin.",
    "answer": "George Rankin has been an actor. He also directed plays in Sydney.",
    "sub_question": ["What is his profession?", "Where did he direct?"],
    "sub_answer": ["Actor", "Sydney"],
}


def written(folder: Path, records: list[dict[str, Any]], name: str = "final_data_v3.json") -> str:
    path = folder / name
    path.write_text(json.dumps(records))
    return str(path)


def test_unkebench(tmp_path: Path) -> None:
    data = load_cases(written(tmp_path, [UNKE]))
    assert (data.name, data.warned) == ("unkebench", ())
    (case,) = data.cases
    assert (case.edits[0].prompt, case.edits[0].target) == (UNKE["question"], UNKE["answer"])
    assert [(p.name, p.prompt, p.target) for p in case.probes] == [
        ("rephrase", UNKE["para_question"], UNKE["answer"]),
        ("part", "What is his profession?", "Actor"),
        ("part", "Where did he direct?", "Sydney"),
    ]


def test_editeverything(tmp_path: Path) -> None:
    record = {"id": 7, "question": "Solve x + 1 = 2.", "answer": "So x = 1.", "category": "math"}
    (case,) = load_cases(f"unkebench:{written(tmp_path, [record], 'editevery.json')}").cases
    assert (case.id, case.edits[0].target, case.probes) == ("7", "So x = 1.", ())
    assert case.meta["domain"] == "math"


def test_fields_that_are_not_read_are_named(tmp_path: Path) -> None:
    data = load_cases(written(tmp_path, [UNKE | {"unsfact": "more"}]))
    assert any("unsfact" in note for note in data.warned)


def test_parts_without_answers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="sub_answer"):
        load_cases(written(tmp_path, [UNKE | {"sub_answer": ["Actor"]}]))
