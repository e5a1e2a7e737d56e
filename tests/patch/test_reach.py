"""Where patches begin to act."""

from __future__ import annotations

import torch

from errata.patch import Context, Dense, LowRank, Patch
from errata.patch.reach import first_changed
from errata.testing.models import tiny_lm


def low_rank(lm, layer: int) -> LowRank:
    site = lm.site(layer)
    return LowRank(site.path, torch.ones(site.d_out, 1), torch.ones(1, site.d_in))


def test_the_lowest_block_that_a_patch_changes() -> None:
    lm = tiny_lm("gpt2", "float64")
    top, low = Patch((low_rank(lm, 1),)), Patch((low_rank(lm, 1), low_rank(lm, 0)))
    assert first_changed(lm, [top]) == 1
    assert first_changed(lm, [top, None, low]) == 0
    assert first_changed(lm, [None, Patch()]) == lm.n_layers


def test_what_is_no_change_of_a_blocks_weights_can_be_anywhere() -> None:
    lm = tiny_lm("gpt2", "float64")
    embedding = Dense("transformer.wte.weight", torch.zeros_like(lm.embedding))
    for other in (embedding, Context(torch.tensor([1, 2]), "It is")):
        assert first_changed(lm, [Patch((low_rank(lm, 1), other))]) is None
