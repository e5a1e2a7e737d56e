from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.locate.samples import build

from errata.model.lm import LM


@pytest.fixture(scope="session")
def tiny() -> Callable[..., LM]:
    return build


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
