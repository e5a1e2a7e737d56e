"""The description of the methods names every editor and every setting."""

from __future__ import annotations

from pathlib import Path

import pytest

from errata.editors import editors

METHODS = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", list(editors.entries))
def test_every_setting_is_described(name: str) -> None:
    assert f"## `{name}`" in METHODS
    for field in editors.load(name).Config.model_fields:
        assert f"`{field}`" in METHODS, field
