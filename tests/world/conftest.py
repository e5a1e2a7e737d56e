"""Worlds are built once."""

from __future__ import annotations

import pytest

from errata import world as ew


@pytest.fixture(scope="session")
def pocket_world() -> ew.World:
    return ew.build_world("pocket")


@pytest.fixture(scope="session")
def small_world() -> ew.World:
    return ew.build_world("test")
