"""Oracle E.10, and what each normaliser shows to the attention and to the residual path."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from errata.nets.normalise import Normaliser, Running
from errata.nets.rates import EditRates

EXACT = 1e-12
D_IN, D_OUT = 5, 3


def signals(count: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    h = 3 + 2 * torch.randn(count, D_IN, generator=g, dtype=torch.float64)
    return h, 1e-4 * torch.randn(count, D_OUT, generator=g, dtype=torch.float64)


def test_E10_chunks_are_one_shot() -> None:
    values = torch.cat(signals(), -1)
    running = Running(D_IN + D_OUT)
    for part in values.split([1, 7, 0, 20, 12]):
        running.observe(part)
    assert float(running.n) == len(values)
    torch.testing.assert_close(running.mean, values.mean(0), rtol=EXACT, atol=EXACT)
    std = (running.m2 / (running.n - 1)).sqrt()
    torch.testing.assert_close(std, values.std(0), rtol=EXACT, atol=0)
    wanted = (values - values.mean(0)) / (values.std(0) + running.eps)
    torch.testing.assert_close(running(values), wanted, rtol=1e-9, atol=1e-9)


def test_E10_frozen_where_nothing_is_observed() -> None:
    h, u = (x[None] for x in signals())
    norm = Normaliser("running", D_IN, D_OUT)
    norm.observe(h, u, torch.ones(h.shape[:2], dtype=torch.bool))
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    norm.eval()
    norm(h, u)
    norm.train()
    norm(h, u)
    assert all(torch.equal(before[k], v) for k, v in norm.state_dict().items())


def test_nothing_is_changed_until_two_tokens_were_seen() -> None:
    values = torch.cat(signals(), -1)
    running = Running(D_IN + D_OUT)
    running.observe(values[:1])
    assert torch.equal(running(values), values)


def test_masked_tokens_are_not_observed() -> None:
    h, u = (x[None] for x in signals())
    mask = torch.zeros(h.shape[:2], dtype=torch.bool)
    mask[0, :10] = True
    some, all_of_them = (Normaliser("running", D_IN, D_OUT) for _ in range(2))
    some.observe(h, u, mask)
    all_of_them.observe(h[:, :10], u[:, :10], mask[:, :10])
    assert some.running is not None
    assert all_of_them.running is not None
    assert torch.equal(some.running.mean, all_of_them.running.mean)
    assert float(some.running.n) == 10


def test_views() -> None:
    h, u = (x[None] for x in signals())
    raw = torch.cat([h, u], -1)
    mask = torch.ones(h.shape[:2], dtype=torch.bool)
    ln = torch.nn.functional.layer_norm
    for kind in ("none", "ln", "unit", "running", "running_res", "running_ln"):
        norm = Normaliser(kind, D_IN, D_OUT).double()
        norm.observe(h, u, mask)
        seen, carried = norm(h, u)
        if kind == "unit":
            for part, width in zip(seen.split((D_IN, D_OUT), -1), (D_IN, D_OUT), strict=True):
                torch.testing.assert_close(
                    part.norm(dim=-1), torch.full_like(h[..., 0], width**0.5)
                )
            assert torch.equal(seen, carried)
            zero = norm(h, torch.zeros_like(u))[0]
            assert not zero[..., D_IN:].any()
            continue
        standard = norm.running(raw) if norm.running is not None else raw
        wanted = ln(standard, raw.shape[-1:]) if kind.endswith("ln") else standard
        torch.testing.assert_close(seen, wanted, rtol=1e-9, atol=1e-9)
        assert torch.equal(carried, raw if norm.raw else standard)
        scale = norm.scale()
        assert (scale is None) == (kind != "running_res")
        if scale is not None:
            torch.testing.assert_close(scale, raw[0].std(0), rtol=1e-9, atol=0)


@pytest.mark.parametrize("space", ["log", "direct"])
def test_rates(space: str) -> None:
    rates = EditRates(3, 0.1, space).double()  # type: ignore[arg-type]
    torch.testing.assert_close(rates(), torch.full((3,), 0.1).double(), rtol=1e-6, atol=0)
    rates.multiply([1.0, 2.0, 0.5])
    torch.testing.assert_close(rates(), torch.tensor([0.1, 0.2, 0.05]).double(), rtol=1e-6, atol=0)
