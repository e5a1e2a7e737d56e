from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from tests.tiny_models import DEVICE, TINY, tiny_tokenizer

from errata.lm import LM


@cache
def build(name: str, dtype: str = "float32", bos: bool = False) -> LM:
    """Return a tiny random model; shared, since nothing may change it."""
    import torch

    model = TINY[name]().to(DEVICE, getattr(torch, dtype))
    return LM(model, tiny_tokenizer(bos), name=f"tiny-{name}")


@pytest.fixture(scope="session")
def tiny() -> Callable[..., LM]:
    return build
