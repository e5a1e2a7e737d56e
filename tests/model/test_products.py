"""Products in bfloat16: what is rounded, what is not, and that nothing of it stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import errata
from errata.errors import ConfigError
from errata.model import products
from errata.model.lm import LM
from errata.model.products import rounded_products, rounds, warn_if_slow
from errata.model.tokens import Row, positions_of
from errata.patch import LowRank, Patch

Tiny = Callable[..., LM]
ROWS = [Row((3, 5, 7, 9), (3,), (), 4), Row((4, 6, 8), (2,), (), 3)]


def said(lm: LM) -> torch.Tensor:
    with torch.no_grad():
        return lm.logits(lm.batch(ROWS, [0, 1]), positions_of(ROWS, [0, 1], lm.device))


def projections(lm: LM) -> list[nn.Module]:
    modules = [m for path in lm.spec.blocks for m in lm.module(path).modules()]
    return [m for m in modules if type(m) in (nn.Linear, Conv1D)]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_projections_multiply_in_bfloat16_and_answer_in_float32(tiny: Tiny, name: str) -> None:
    lm = tiny(name)
    x = torch.randn(2, 3, projections(lm)[0].weight.shape[0 if name == "gpt2" else 1])
    module = projections(lm)[0]
    weight = module.weight.T if isinstance(module, Conv1D) else module.weight
    bias = 0.0 if module.bias is None else module.bias
    exact = module(x)
    with rounded_products(lm):
        rough = module(x)
    expected = (x.bfloat16() @ weight.bfloat16().T).float() + bias
    assert rough.dtype == torch.float32
    # one rounding to bfloat16, 2^-8, of sums that both add up in float32 in an order of their own
    torch.testing.assert_close(rough, expected, rtol=2**-7, atol=1e-6)
    assert not torch.equal(rough, exact)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen3"])
def test_nothing_stays(tiny: Tiny, name: str) -> None:
    lm = tiny(name)
    before, digest = said(lm), lm.model.state_dict()
    kept = {key: value.clone() for key, value in digest.items()}
    with rounded_products(lm):
        rough = said(lm)
        with rounded_products(lm):
            assert torch.equal(said(lm), rough)
        assert torch.equal(said(lm), rough), "leaving the inner block ended the outer one"
    assert not torch.equal(rough, before)
    assert torch.equal(said(lm), before)
    assert all("forward" not in vars(module) for module in projections(lm))
    assert all(torch.equal(value, kept[key]) for key, value in lm.model.state_dict().items())


def test_it_is_undone_after_an_error(tiny: Tiny) -> None:
    lm = tiny("llama")
    with pytest.raises(RuntimeError, match="stop"), rounded_products(lm):
        raise RuntimeError("stop")
    assert all("forward" not in vars(module) for module in projections(lm))


def test_a_patched_row_is_moved_in_float32(tiny: Tiny) -> None:
    """What hooks add is not rounded: the difference a patch makes is as exact as without."""
    lm = tiny("llama")
    site = lm.site(1)
    A, B = torch.zeros(1, site.d_in), torch.zeros(site.d_out, 1)
    A[0, 0], B[0, 0] = 1.0, 1.0 + 2**-12  # bfloat16 has eight bits: it could not hold this
    patch = Patch.for_model(lm, [LowRank(site.path, B, A)], editor="test")
    seen: list[torch.Tensor] = []
    module = lm.module(site.path)
    x = torch.zeros(2, 1, site.d_in)
    x[:, 0, 0] = 1.0
    with errata.Stack(lm, [patch]) as stack, rounded_products(lm):
        stack.route([0, -1])
        seen.append(module(x))
    moved = seen[0][0] - seen[0][1]
    assert moved[0, 0] == pytest.approx(1.0 + 2**-12, abs=2**-18)


def test_gradients_are_those_of_the_rounded_product(tiny: Tiny) -> None:
    module = projections(tiny("llama"))[0]
    x = torch.randn(1, 2, module.weight.shape[1], requires_grad=True)
    with rounded_products(tiny("llama")):
        module(x).sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
    expected = module.weight.detach().bfloat16().float().sum(0).expand_as(x)
    torch.testing.assert_close(x.grad, expected, rtol=2**-7, atol=1e-4)


def test_other_types_are_left_alone(tiny: Tiny) -> None:
    lm = tiny("llama", "float64")
    before = said(lm)
    with rounded_products(lm):
        assert torch.equal(said(lm), before)
    assert not rounds(lm, "bfloat16")


def test_auto_asks_size_and_machine(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("llama")
    monkeypatch.setattr(products, "speed_of", lambda dtype, device: 4.0)
    assert not rounds(lm, "auto"), "a small model spends its time elsewhere"
    monkeypatch.setattr(products, "LARGE", 1)
    assert rounds(lm, "auto")
    monkeypatch.setattr(products, "speed_of", lambda dtype, device: 1.2)
    assert not rounds(lm, "auto")
    assert rounds(lm, "bfloat16")
    assert not rounds(lm, "float32")


@pytest.mark.parametrize(
    ("dtype", "speed", "said"),
    [("bfloat16", 0.14, "bfloat16 7.1 times slower"), ("bfloat16", 0.9, ""), ("bfloat16", 3.0, ""),
     ("float16", 0.5, "float16 2.0 times slower"), ("float32", 0.1, "")],
)  # fmt: skip
def test_a_type_that_is_slow_here_is_told(tiny: Tiny, monkeypatch, caplog, dtype, speed, said):
    lm = tiny("llama", dtype)
    monkeypatch.setattr(products, "speed_of", lambda dtype, device: speed)
    warn_if_slow(lm)
    assert not caplog.records, "a small model spends its time elsewhere"
    monkeypatch.setattr(products, "LARGE", 1)
    warn_if_slow(lm)
    assert [said in record.message for record in caplog.records] == ([True] if said else [])


def test_an_unknown_name_is_refused_before_the_weights_are_read() -> None:
    with pytest.raises(ConfigError, match="float12"):
        errata.load("pocket", compute="float12")  # pyright: ignore[reportArgumentType]
