"""Rows in one line of tokens give what they give by themselves, where the model allows it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.locate.samples import build

from errata.model.lm import LM
from errata.model.packing import Lanes, Line, packs, packs_exactly
from errata.model.tokens import Row

Tiny = Callable[..., LM]
ROWS = [
    Row((3, 5, 7), (0, 2), (), 3),
    Row((4, 6), (1,), (), 2),
    Row((4, 6, 8, 1, 2), (2, 4), (), 5),
]


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("max_padding", [0, 64])
def test_a_line_says_what_each_row_says_alone(name: str, max_padding: int) -> None:
    lm = build(name)
    assert packs_exactly(lm)
    line = Line(ROWS, lm.device, max_padding)
    with torch.no_grad():
        with line.attending():
            together = lm.logits(line.batch, line.at)
        alone = [
            lm.logits(lm.batch([row], [0]), torch.tensor([(0, p) for p in row.positions]))
            for row in ROWS
        ]
        after = lm.logits(line.batch, line.at)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-10, atol=1e-11)
    assert not torch.allclose(after, together), "nothing of it may stay"


def test_a_model_whose_attention_is_its_own_is_not_packed(tiny: Tiny) -> None:
    """BLOOM's positions are part of its attention, and it does not ask transformers for one."""
    lm = tiny("bloom", "float64")
    assert not packs_exactly(lm)


def test_small_models_are_left_alone(tiny: Tiny) -> None:
    assert not packs(tiny("llama"))


def test_lanes_there_and_back() -> None:
    line = torch.randn(10, 4, dtype=torch.float64, requires_grad=True)
    lanes = Lanes([3, 2, 5], [1, 0, 1], "cpu")
    spread = lanes.spread(line)
    assert spread.shape == (2, 8, 4)
    assert torch.equal(spread[1], torch.cat([line[:3], line[5:]]))
    assert torch.equal(spread[0, :2], line[3:5])
    assert not spread[0, 2:].any()
    assert torch.equal(lanes.pick(spread), line)
    assert torch.autograd.gradcheck(lambda x: lanes.pick(lanes.spread(x).sin()), line)
