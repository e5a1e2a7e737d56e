"""Models and edits that the tests of editors share."""

from __future__ import annotations

from functools import cache

from tests.tiny_models import TINY, tiny_tokenizer

from errata.model.lm import LM
from errata.testing.models import EDITS, MODELS, tiny_lm, widened

__all__ = ["EDITS", "build"]


@cache
def build(name: str, dtype: str = "float64", bos: bool = False) -> LM:
    """Return a tiny random model; shared, since nothing may change it."""
    if name in MODELS and not bos:
        return tiny_lm(name, dtype)
    return LM(widened(TINY[name](), name, dtype), tiny_tokenizer(bos), name=f"tiny-{name}")
