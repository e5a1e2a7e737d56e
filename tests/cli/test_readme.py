"""The code in README.md runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import errata
from errata.editors.base import Editor
from errata.errors import DataError
from errata.model.loading import weight_fingerprint

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def block(containing: str) -> str:
    (found,) = (
        code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if containing in code
    )
    return found


def test_editor_in_one_file(model: str) -> None:
    names: dict[str, Any] = {}
    exec(block("ShiftEditor"), names)
    editor: Editor = names["ShiftEditor"]()
    lm = errata.load(model)
    before = weight_fingerprint(lm.model)
    patch = errata.edit(lm, "The capital of France is", "Rome", editor=editor)
    row = lm.row("The capital of France is", "Rome")
    plain = lm.score([row])[0].logprobs[0]
    with patch.applied(lm):
        assert lm.score([row])[0].logprobs[0] > plain
    assert weight_fingerprint(lm.model) == before


def test_python_example(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from errata.world import pocket_path

    try:
        pocket_path()
    except DataError:
        pytest.skip("the pocket model is not in this checkout")
    exec(block("errata.load(").replace("limit=20", "limit=2"), {})
    assert "Tokyo" in capsys.readouterr().out
    assert (here / "tokyo" / "patch.json").is_file()
