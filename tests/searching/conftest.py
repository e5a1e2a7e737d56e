from __future__ import annotations

from pathlib import Path

import pytest

import errata
from errata.model.lm import LM


@pytest.fixture(scope="session")
def pocket() -> LM:
    return errata.load("pocket")


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own: what a search finds would change every later edit."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ERRATA_CACHE", str(folder))
    return folder
