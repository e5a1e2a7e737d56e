"""Rows of one optimiser against torch.optim, each row alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from errata.tuning.adam import RowAdam

TOLERANCE = 1e-14  # float64: the same operations in the same order


def run_torch(value: Tensor, grads: Tensor, decay: float, decoupled: bool) -> Tensor:
    leaf = value.clone().requires_grad_()
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    optimiser = kind([leaf], lr=0.1, weight_decay=decay)
    for grad in grads:
        leaf.grad = grad.clone()
        optimiser.step()
    return leaf.detach()


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_rows_follow_torch_and_stop_on_their_own(decoupled: bool, decay: float) -> None:
    g = torch.Generator().manual_seed(0)
    start = torch.randn(3, 4, 2, generator=g, dtype=torch.float64)
    grads = torch.randn(6, 3, 4, 2, generator=g, dtype=torch.float64)
    steps = [6, 2, 0]  # row 1 stops after two steps, row 2 never starts
    value = start.clone()
    adam = RowAdam([value], 0.1, decay, decoupled)
    for t in range(6):
        active = torch.tensor([t < n for n in steps])
        adam.step([value], [grads[t]], active)
    for row, n in enumerate(steps):
        expected = run_torch(start[row], grads[:n, row], decay, decoupled)
        torch.testing.assert_close(value[row], expected, rtol=TOLERANCE, atol=TOLERANCE)
    assert adam.count.tolist() == steps


def test_a_paused_row_keeps_its_moments() -> None:
    g = torch.Generator().manual_seed(0)
    value = torch.randn(2, 3, generator=g, dtype=torch.float64)
    grads = torch.randn(5, 2, 3, generator=g, dtype=torch.float64)
    start, seen = value.clone(), [0, 2, 3]
    adam = RowAdam([value], 0.1)
    for t in range(5):
        adam.step([value], [grads[t]], torch.tensor([True, t in seen]))
    expected = run_torch(start[1], grads[seen, 1], 0.0, False)
    torch.testing.assert_close(value[1], expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_rows_can_be_dropped() -> None:
    g = torch.Generator().manual_seed(0)
    value = torch.randn(3, 2, generator=g, dtype=torch.float64)
    grads = torch.randn(4, 3, 2, generator=g, dtype=torch.float64)
    start, everyone = value.clone(), torch.ones(3, dtype=torch.bool)
    adam = RowAdam([value], 0.1)
    adam.step([value], [grads[0]], everyone)
    keep = torch.tensor([0, 2])
    adam.keep(keep)
    rest = value[keep]
    for t in range(1, 4):
        adam.step([rest], [grads[t, keep]], everyone[:2])
    torch.testing.assert_close(
        rest[1], run_torch(start[2], grads[:, 2], 0.0, False), rtol=TOLERANCE, atol=TOLERANCE
    )


def test_decay_acts_on_the_complete_weight_of_a_difference() -> None:
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 3, generator=g, dtype=torch.float64)
    grads = torch.randn(4, 1, 3, generator=g, dtype=torch.float64)
    for decoupled in (False, True):
        delta = torch.zeros_like(weight)
        adam = RowAdam([delta], 0.1, 0.2, decoupled)
        for t in range(4):
            adam.step([delta], [grads[t]], torch.tensor([True]), [weight + delta])
        expected = run_torch(weight[0], grads[:, 0], 0.2, decoupled)
        torch.testing.assert_close(weight[0] + delta[0], expected, rtol=1e-13, atol=1e-13)
