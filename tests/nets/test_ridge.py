"""The ridge that joins many edits, against closed forms and the dense system."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from errata.errors import PatchError
from errata.nets.ridge import Wanted

EXACT = 1e-10
"""Float64: systems of twenty unknowns with condition numbers of about a hundred."""

WIDE, HIGH = 12, 7


def draw(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    make = {"generator": g, "dtype": torch.float64}
    return torch.randn(count, WIDE, **make), torch.randn(count, HIGH, **make)


def moment() -> Tensor:
    keys, _ = draw(80, 5)
    return keys.T @ keys / len(keys)


def shift(wanted: Wanted, weight: float, of: Tensor | None = None) -> Tensor:
    B, A = wanted.solve(weight, of)
    assert B.shape[1] == A.shape[0] <= min(WIDE, HIGH)
    return B @ A


def test_one_key_in_closed_form() -> None:
    """`S = v hᵀ C⁻¹ / (hᵀ C⁻¹ h + λ)`, by Sherman and Morrison."""
    h, v = draw(1)
    C = moment()
    across = torch.linalg.solve(C, h[0])
    want = torch.outer(v[0], across) / (h[0] @ across + 3.0)
    found = shift(Wanted.empty().add(h, v), 3.0, C)
    torch.testing.assert_close(found, want, rtol=EXACT, atol=EXACT)
    # against the identity: the mean square of the key itself
    square = h.square().mean()
    want = torch.outer(v[0], h[0]) / (h.square().sum() + 3.0 * square)
    found = shift(Wanted.empty().add(h, v), 3.0)
    torch.testing.assert_close(found, want, rtol=EXACT, atol=EXACT)


def test_two_orthogonal_keys_do_not_meet() -> None:
    h, v = torch.zeros(2, WIDE, dtype=torch.float64), draw(2)[1]
    h[0, 0], h[1, 1] = 2.0, 2.0
    square = 8.0 / (2 * WIDE)
    found = shift(Wanted.empty().add(h, v), 5.0)
    alone = 4.0 / (4.0 + 5.0 * square)  # what is left of each wanted change at its key
    torch.testing.assert_close(found @ h.T, alone * v.T, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("count", [2, 5, 11, 12, 40])
@pytest.mark.parametrize("of", [None, moment()])
def test_few_and_many_tokens_solve_the_same_system(count: int, of: Tensor | None) -> None:
    h, v = draw(count)
    weights = torch.rand(count, generator=torch.Generator().manual_seed(1)) + 0.1
    wanted = Wanted.empty().add(h, v, weights)
    assert (wanted.gram is None) == (count < WIDE)
    W = torch.diag(weights.double())
    square = float((weights.double() @ h.square()).sum() / (weights.double().sum() * WIDE))
    C = torch.eye(WIDE, dtype=torch.float64) * square if of is None else of
    want = v.T @ W @ h @ torch.linalg.inv(h.T @ W @ h + 2.0 * C)
    torch.testing.assert_close(shift(wanted, 2.0, of), want, rtol=EXACT, atol=EXACT)


def test_the_order_leaves_no_trace() -> None:
    h, v = draw(40)
    at_once = Wanted.empty().add(h, v)
    back = torch.arange(39, -1, -1)
    one_by_one = Wanted.empty()
    for i in back.tolist():
        one_by_one = one_by_one.add(h[i : i + 1], v[i : i + 1])
    torch.testing.assert_close(shift(at_once, 2.0), shift(one_by_one, 2.0), rtol=EXACT, atol=EXACT)


def test_the_state_stops_growing_and_comes_back() -> None:
    sizes = []
    for count in (5, 40, 400):
        wanted = Wanted.empty().add(*draw(count))
        state = wanted.tensors("ibke.joint.x")
        sizes.append(sum(tensor.numel() for tensor in state.values()))
        again = Wanted.from_tensors(state, "ibke.joint.x")
        assert torch.equal(shift(again, 2.0), shift(wanted, 2.0))
    assert sizes[0] < sizes[1] == sizes[2] == 1 + WIDE * (WIDE + HIGH)
    assert Wanted.from_tensors({}, "x") == Wanted.empty()
    with pytest.raises(ValueError, match="nothing to solve"):
        Wanted.empty().solve(1.0)


@pytest.mark.parametrize("gone", ["keys", "values", "mass"])
def test_a_state_that_contradicts_itself_is_refused(gone: str) -> None:
    state = Wanted.empty().add(*draw(3)).tensors("s")
    del state[f"s.{gone}"]
    with pytest.raises(PatchError, match="contradicts itself"):
        Wanted.from_tensors(state, "s")
