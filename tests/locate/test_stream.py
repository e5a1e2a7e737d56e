"""Models whose FFN output is normed or scaled on its way are told apart."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch

from errata.locate.stream import added_as_it_is
from errata.model.lm import LM

Tiny = Callable[..., LM]


DTYPES = ["float64", "float32", "bfloat16"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "name",
    ["gpt2", "gptj", "gpt_neox", "opt", "bloom", "falcon", "llama", "qwen3", "phi", "cohere"],
)
def test_plain_blocks_add_what_the_matrix_says(tiny: Tiny, name: str, dtype: str) -> None:
    assert added_as_it_is(tiny(name, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["gemma2", "gemma3", "olmo2", "glm4", "granite"])
def test_norms_and_factors_are_seen(tiny: Tiny, name: str, dtype: str) -> None:
    assert not added_as_it_is(tiny(name, dtype))


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_a_vast_stream_hides_nothing_in_half_precision(tiny: Tiny, name: str) -> None:
    """What bfloat16 rounds off a large stream is more than an FFN says (SmolLM2's first token)."""
    lm = tiny(name, "bfloat16")
    model = deepcopy(lm.model)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(3000)
    assert added_as_it_is(LM(model, lm.tokenizer, name="vast")) is (name == "llama")
