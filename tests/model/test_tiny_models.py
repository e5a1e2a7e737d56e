"""The models and tokenizers that other tests build on are what they say."""

from __future__ import annotations

import pytest
import torch
from tests.tiny_models import TINY, VOCAB, tiny_tokenizer


@pytest.mark.parametrize("bos", [False, True])
def test_tokenizer(bos: bool):
    tokenizer = tiny_tokenizer(bos)
    assert 256 < len(tokenizer) <= 400 < VOCAB
    text = "The capital of France is Zürich 🦊\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert (ids[0] == tokenizer.bos_token_id) is bos
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    longer = tokenizer(text + " and more")["input_ids"]
    assert longer[: len(ids)] == ids


def test_models_are_the_same_each_time_and_leave_the_random_state():
    before = torch.random.get_rng_state()
    first, second = TINY["gpt2"](), TINY["gpt2"]()
    assert torch.equal(before, torch.random.get_rng_state())
    for one, two in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)
    assert not first.training
