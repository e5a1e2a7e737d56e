"""Fixtures that every test folder shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with public benchmark files and golden outputs; absent on most machines."""
    root = Path(__file__).resolve().parents[1]
    folder = Path(os.environ.get("ERRATA_SHARED", root.parent / "shared"))
    if not folder.is_dir():
        pytest.skip("needs the folder of public benchmark files (ERRATA_SHARED)")
    return folder
