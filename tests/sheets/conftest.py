"""Sheets in a folder, on a tiny random model whose edits take milliseconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from errata.sheets import Sheet, load_sheet

FAST: dict[str, Any] = {"mom2_adjustment": False, "steps": 2, "contexts": "bare"}
"""Settings with which ROME needs no text."""

Write = Callable[..., Path]


def fact(name: str, target: str = "Rome", **more: Any) -> dict[str, Any]:
    return {
        "id": name.lower(),
        "prompt": f"The capital of {name} is",
        "subject": name,
        "target": target,
        **more,
    }


def toml(editor: str | Sequence[str] = "rome", more: str = "", **settings: Any) -> str:
    lines = [f"{key} = {json.dumps(value)}" for key, value in {**FAST, **settings}.items()]
    names = json.dumps(editor if isinstance(editor, str) else list(editor))
    settings_ = "\n".join(["[settings]", *lines])
    return f'name = "sheet"\nmodel = "tiny"\neditor = {names}\n{settings_}\n{more}\n'


def write_sheet(folder: Path, facts: Sequence[Any], text: str | None = None) -> Path:
    (folder / "facts").mkdir(parents=True, exist_ok=True)
    (folder / "errata.toml").write_text(toml() if text is None else text, encoding="utf-8")
    lines = [one if isinstance(one, str) else json.dumps(one) for one in facts]
    (folder / "facts" / "a.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("ERRATA_CACHE", str(folder))
    return folder


@pytest.fixture
def sheet(tmp_path: Path) -> Callable[..., Sheet]:
    """Write a sheet and read it."""

    def make(facts: Sequence[Any], text: str | None = None, name: str = "sheet") -> Sheet:
        return load_sheet(write_sheet(tmp_path / name, facts, text))

    return make
