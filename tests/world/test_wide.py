"""Products of bfloat16 in float32: what hardware gives, up to the order of a sum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from errata.world import wide
from errata.world.wide import WideProducts, products_for

X, W = torch.randn(2, 5, 24), torch.randn(7, 24)
PRODUCTS = {
    "linear": nn.functional.linear,
    "with a bias": lambda x, w: nn.functional.linear(x, w, w[:, 0]),
    "operator": lambda x, w: x @ w.T,
    "method": lambda x, w: x.matmul(w.T),
    "function": lambda x, w: torch.matmul(x, w.T),
    "batch": lambda x, w: torch.bmm(x, x.mT),
    "added": lambda x, w: torch.baddbmm(x @ x.mT, x, x.mT, beta=0.5, alpha=2.0),
}


def exact(product, x: Tensor, w: Tensor) -> Tensor:
    return product(x.double(), w.double())


@pytest.mark.parametrize("name", list(PRODUCTS))
def test_products_are_rounded_once(name: str) -> None:
    x, w = X.bfloat16(), W.bfloat16()
    with WideProducts():
        found = PRODUCTS[name](x, w)
    assert found.dtype == torch.bfloat16
    if name != "added":  # whose first summand was rounded before
        assert torch.equal(found, exact(PRODUCTS[name], x, w).bfloat16())
    torch.testing.assert_close(found, PRODUCTS[name](x, w), rtol=2**-6, atol=2**-6)


def test_gradients_have_the_type_and_the_values() -> None:
    found = []
    for way in (WideProducts(), torch.enable_grad()):
        x, w = X.bfloat16().requires_grad_(), W.bfloat16().requires_grad_()
        with way:
            (nn.functional.linear(x, w).float() ** 2).sum().backward()
        assert x.grad is not None
        assert w.grad is not None
        assert x.grad.dtype == w.grad.dtype == torch.bfloat16
        found.append((x.grad, w.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2**-6, atol=0.1)


def test_other_types_and_functions_are_left_alone() -> None:
    with WideProducts():
        assert torch.equal(X @ W.T, torch.matmul(X, W.T))
        assert (X.double() @ W.double().T).dtype == torch.float64
        assert torch.equal(X.bfloat16() + 1, X.bfloat16().add(1))


@pytest.mark.parametrize(
    ("device", "speed", "taken"),
    [("cpu", 0.14, True), ("cpu", 0.9, False), ("cpu", 5.0, False), ("meta", 0.1, False)],
)
def test_only_where_the_processor_is_slow(monkeypatch, device, speed, taken) -> None:
    monkeypatch.setattr(wide, "speed_of", lambda dtype, device: speed)
    assert isinstance(products_for(torch.device(device)), WideProducts) is taken
