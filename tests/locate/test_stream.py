"""Models whose FFN output is normed or scaled on its way are told apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from errata.locate.stream import added_as_it_is
from errata.model.lm import LM

Tiny = Callable[..., LM]


@pytest.mark.parametrize(
    "name",
    ["gpt2", "gptj", "gpt_neox", "opt", "bloom", "falcon", "llama", "qwen3", "phi", "cohere"],
)
def test_plain_blocks_add_what_the_matrix_says(tiny: Tiny, name: str) -> None:
    assert added_as_it_is(tiny(name, "float64"))


@pytest.mark.parametrize("name", ["gemma2", "gemma3", "olmo2", "glm4", "granite"])
def test_norms_and_factors_are_seen(tiny: Tiny, name: str) -> None:
    assert not added_as_it_is(tiny(name, "float64"))
