"""Worlds are built once; the test-size model is trained once per session, in under a minute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from errata import world as ew


@pytest.fixture(scope="session")
def pocket_world() -> ew.World:
    return ew.build_world("pocket")


@pytest.fixture(scope="session")
def small_world() -> ew.World:
    return ew.build_world("test")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A test-size model, trained from nothing, and its card."""
    out = tmp_path_factory.mktemp("world") / "model"
    return out, ew.build(out, scale="test", device="cpu")
