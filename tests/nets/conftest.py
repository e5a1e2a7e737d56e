from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.locate.samples import build

from errata.model.lm import LM


@pytest.fixture(scope="session")
def tiny() -> Callable[..., LM]:
    return build
