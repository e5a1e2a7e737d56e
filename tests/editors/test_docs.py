"""The description of the methods names every editor and every setting."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.editors.editors_table import renewed

from errata.editors import editors
from errata.strategies import strategies

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("methods.md", "memory-editors.md")
METHODS = "\n".join((ROOT / "docs" / page).read_text(encoding="utf-8") for page in PAGES)


@pytest.mark.parametrize("name", [e.name for e in editors.entries.values() if e.is_own])
def test_every_setting_is_described(name: str) -> None:
    assert f"## `{name}`" in METHODS
    for field in editors.load(name).Config.model_fields:
        assert f"`{field}`" in METHODS, field


@pytest.mark.parametrize("name", [e.name for e in strategies.entries.values() if e.is_own])
def test_every_setting_of_a_strategy_is_described(name: str) -> None:
    assert f"## `+{name}`" in METHODS
    for field in strategies.load(name).Settings.model_fields:
        assert f"`{field}`" in METHODS, field


def test_the_readme_lists_the_editors_there_are() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "<!-- editors -->" in readme
    assert readme == renewed(readme)  # `make docs` writes it
