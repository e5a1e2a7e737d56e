"""What is handed over in the place of a model."""

from __future__ import annotations

from errata.arguments import expect
from errata.model.lm import LM

LOAD = "Type: lm = errata.load(NAME), or errata.LM(model, tokenizer) for one of transformers"


def expect_model(lm: object) -> None:
    """Refuse a model's name, or a model of transformers, where a model of errata's is meant.

    Raises:
        ArgumentError: Says how one is made of it.
    """
    expect(lm, LM, "the model", "an LM, as errata.load returns it", LOAD)
