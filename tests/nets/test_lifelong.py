"""Oracles 14.1 of lifelong normalisation: statistics for any split, whitening, scale."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from errata.errors import EditError, PatchError
from errata.nets.lifelong import RowStats, wanted

EXACT = 1e-12
F, D = 5, 3
CPU = torch.device("cpu")


def rows(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = torch.logspace(-4, 2, F + D, dtype=torch.float64)
    return torch.randn(count, F + D, generator=generator, dtype=torch.float64) * scale + 3 * scale


def counted(parts: list[Tensor], *, products: bool = False, released: bool = False) -> RowStats:
    stats = RowStats.empty(F, D, products, CPU)
    for part in parts:
        stats = stats.add(part, released=released)
    return stats


@pytest.mark.parametrize("sizes", [[40], [1] * 40, [3] * 13 + [1], [7, 30, 3]])
def test_deviations_are_exact_for_any_split(sizes: list[int]) -> None:
    X = rows(40)
    stats = counted(list(X.split(sizes)), products=True)
    torch.testing.assert_close(stats.deviation(), X.std(0), rtol=EXACT, atol=0)
    torch.testing.assert_close(stats.mean, X.mean(0), rtol=EXACT, atol=0)
    centred = (X - X.mean(0))[:, F:]
    torch.testing.assert_close(stats.products, centred.T @ centred, rtol=1e-10, atol=1e-20)


def test_batches_may_come_in_any_order() -> None:
    parts = list(rows(40).split([7, 30, 3]))
    one, other = counted(parts), counted(parts[::-1])
    torch.testing.assert_close(one.deviation(), other.deviation(), rtol=EXACT, atol=0)


def test_the_released_variance_is_too_large() -> None:
    """With batches of three, deviations are 13 to 25 percent too large."""
    X = rows(300)
    stats = counted(list(X.split(3)), released=True)
    assert 1.13 < float((stats.deviation() / X.std(0)).mean()) < 1.25


def test_a_single_row_is_refused_not_nan() -> None:
    with pytest.raises(EditError, match="0/0"):
        counted([rows(1)], released=True)
    with pytest.raises(EditError, match="1 answer token"):
        counted([rows(1)]).deviation()


def test_whitened_gradients_are_uncorrelated() -> None:
    X = rows(500) @ torch.randn(F + D, F + D, generator=torch.Generator().manual_seed(1)).double()
    stats = counted([X], products=True)
    _, white = stats.standard(X[:, :F], X[:, F:], whiten=True)
    covariance = white.T @ white / len(white)
    expected = torch.eye(D, dtype=X.dtype) * (500 - D - 1) / 500
    torch.testing.assert_close(covariance, expected, rtol=1e-8, atol=1e-8)


def test_whitening_waits_for_enough_rows() -> None:
    X = rows(D + 1)
    stats = counted([X], products=True)
    plain = stats.standard(X[:, :F], X[:, F:])[1]
    assert torch.equal(stats.standard(X[:, :F], X[:, F:], whiten=True)[1], plain)


@pytest.mark.parametrize("factor", [1e-9, 1e3])
@pytest.mark.parametrize("whiten", [False, True])
def test_the_scale_of_the_loss_does_not_matter(factor: float, whiten: bool) -> None:
    X = rows(50)
    scaled = torch.cat([X[:, :F], factor * X[:, F:]], 1)
    one = counted([X], products=True).standard(X[:, :F], X[:, F:], whiten=whiten)
    other = counted([scaled], products=True).standard(scaled[:, :F], scaled[:, F:], whiten=whiten)
    torch.testing.assert_close(wanted(*one, 1.0), wanted(*other, 1.0), rtol=1e-9, atol=1e-9)


def test_released_it_does_where_gradients_are_small() -> None:
    X = rows(50).float()
    small = torch.cat([X[:, :F], 1e-6 * X[:, F:]], 1)
    one = counted([X]).standard(X[:, :F], X[:, F:], released=True)[1]
    other = counted([small]).standard(small[:, :F], small[:, F:], released=True)[1]
    assert float((one - other).norm() / one.norm()) > 1e-4


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("whiten", [False, True])
def test_zero_gradients_ask_for_nothing(released: bool, whiten: bool) -> None:
    X = torch.cat([rows(9)[:, :F], torch.zeros(9, D, dtype=torch.float64)], 1)
    stats = counted([X], products=True)
    keys, grads = stats.standard(X[:, :F], X[:, F:], whiten=whiten, released=released)
    assert torch.equal(wanted(keys, grads, 1.0), torch.zeros(9, D, dtype=torch.float64))


def test_kept_in_a_patch_they_are_the_same() -> None:
    stats = counted([rows(9)], products=True)
    none = RowStats.empty(F, D, True, CPU)
    again = RowStats.from_tensors(stats.tensors("a"), "a", none)
    assert again.count == 9
    assert all(
        torch.equal(x, y) for x, y in zip(
            stats.tensors("a").values(), again.tensors("a").values(), strict=True)
    )  # fmt: skip
    assert RowStats.from_tensors({}, "a", none) is none


def test_state_that_does_not_fit_is_refused() -> None:
    plain = counted([rows(9)]).tensors("a")
    with pytest.raises(PatchError, match="without whitening"):
        RowStats.from_tensors(plain, "a", RowStats.empty(F, D, True, CPU))
    with pytest.raises(PatchError, match="8 coordinates, not 9"):
        RowStats.from_tensors(plain, "a", RowStats.empty(F, D + 1, False, CPU))
    with pytest.raises(PatchError, match="not whole"):
        RowStats.from_tensors({"a.n": plain["a.n"]}, "a", RowStats.empty(F, D, False, CPU))
