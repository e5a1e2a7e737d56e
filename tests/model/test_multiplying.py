"""Products by another library and of real tokens only: the same numbers, and nothing stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.nets.samples import small, untrained
from torch import nn

from errata.model import multiplying, products
from errata.model.lm import LM
from errata.model.multiplying import (
    fast_layers,
    fast_products,
    kind_for,
    quick_products,
    speed_of_onednn,
)
from errata.model.tokens import Row, positions_of

Tiny = Callable[..., LM]
ROWS = [Row((3, 5, 7, 9, 2), (1, 4), (), 5), Row((4, 6), (1,), (), 2)]

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN"
)


@pytest.fixture(autouse=True)
def _always_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take what is asked for, on whichever processor this runs."""
    monkeypatch.setattr(multiplying, "speed_of_onednn", lambda device: 2.0)


def said(lm: LM) -> torch.Tensor:
    return lm.logits(lm.batch(ROWS, [0, 1]), positions_of(ROWS, [0, 1], lm.device))


def forwards(module: nn.Module) -> list[str]:
    return [name for name, own in module.named_modules() if "forward" in vars(own)]


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "qwen3", "opt"])
def test_padding_is_left_out_without_a_trace(tiny: Tiny, name: str) -> None:
    lm = tiny(name, "float64")
    with torch.no_grad():
        before = said(lm)
        with fast_products(lm, "plain", packed=True):
            assert forwards(lm.model)
            packed = said(lm)
        torch.testing.assert_close(packed, before, rtol=1e-11, atol=1e-12)
        assert torch.equal(said(lm), before)
    assert not forwards(lm.model)


@needs_onednn
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_onednn_is_as_exact_as_torch(tiny: Tiny, name: str) -> None:
    lm, exact = tiny(name), tiny(name, "float64")
    with torch.no_grad():
        true = said(exact)
        own = float((said(lm).double() - true).norm())
        with fast_products(lm, "onednn", packed=True):
            other = float((said(lm).double() - true).norm())
    # both are float32 sums: neither may be off by more than a few times the other
    assert other <= 4 * own + 1e-6 * float(true.norm())


@needs_onednn
def test_layers_that_learn_get_the_gradients_of_plain_ones() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(24, 40), torch.randn(3, 5, 24, requires_grad=True)
    (layer(x).square().sum()).backward()
    own = [x.grad, layer.weight.grad, layer.bias.grad]
    expected = [t.clone() for t in own if t is not None]
    x.grad = layer.weight.grad = layer.bias.grad = None
    with fast_layers(layer, "onednn", packed=False):
        (layer(x).square().sum()).backward()
    for found, right in zip([x.grad, layer.weight.grad, layer.bias.grad], expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)


@needs_onednn
@pytest.mark.parametrize("name", ["ibke", "mend"])
def test_networks_do_not_see_padding(tiny: Tiny, name: str) -> None:
    from tests.nets.samples import signals_of

    lm, editor = tiny("llama"), small(name)
    network = untrained(editor, lm)
    signals = signals_of(lm, editor.sites(lm))
    with torch.no_grad():
        plain = network(signals)
        with fast_layers(network, "onednn"):
            fast = network(signals)
    for one, two in zip(plain.terms, fast.terms, strict=True):
        mask = one.mask[..., None]
        for left, right in ((one.keys, two.keys), (one.values, two.values)):
            torch.testing.assert_close(left * mask, right * mask, rtol=1e-4, atol=1e-6)
    assert not forwards(network)


def test_rounded_products_are_those_of_searches(tiny: Tiny) -> None:
    lm = tiny("llama")
    with torch.no_grad():
        with products.rounded_products(lm):
            expected = said(lm)
        with fast_products(lm, "bfloat16", packed=False):
            found = said(lm)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_small_models_are_left_alone(tiny: Tiny) -> None:
    lm = tiny("llama")
    with fast_products(lm) as kind:
        assert kind == "plain"
        assert not forwards(lm.model)


def test_the_model_says_bfloat16(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("llama")
    monkeypatch.setattr(lm, "compute", "bfloat16")
    assert kind_for(lm) == "bfloat16"


def test_it_is_undone_after_an_error(tiny: Tiny) -> None:
    lm = tiny("llama")
    with pytest.raises(RuntimeError, match="stop"), fast_products(lm, "plain", packed=True):
        raise RuntimeError("stop")
    assert not forwards(lm.model)


@pytest.fixture
def large(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LM]:
    """Return a tiny model that counts as large: its passes go by the faster library."""
    monkeypatch.setattr(multiplying, "LARGE", 1)

    def made(*given: str) -> LM:
        shared = tiny(*given)
        return LM(shared.model, shared.tokenizer)  # nothing is known of it yet

    return made


@needs_onednn
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2"])
def test_every_pass_of_a_large_model_is_quick(
    large: Tiny, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [Row(tuple(range(2, 14)), (10,), (), 12)] * 3
    places = positions_of(rows, [0, 1, 2], "cpu")
    lm, exact, products_of = large(name), large(name, "float64"), []
    own = multiplying.onednn

    def counted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        products_of.append(len(x))
        return own(x, weight)

    monkeypatch.setattr(multiplying, "onednn", counted)
    with torch.no_grad():
        true = exact.logits(exact.batch(rows, [0, 1, 2]), places)
        assert not products_of  # float64 has no second library
        found = lm.logits(lm.batch(rows, [0, 1, 2]), places)
    assert products_of
    assert min(products_of) >= multiplying.FEW
    torch.testing.assert_close(found.double(), true, rtol=1e-4, atol=1e-5)
    assert not forwards(lm.model)


@needs_onednn
def test_quick_passes_have_the_gradients_of_plain_ones(large: Tiny) -> None:
    rows = [Row(tuple(range(2, 14)), (10,), (), 12)]
    found = {}
    for dtype in ("float32", "float64"):
        lm = large("gpt2", dtype)
        down = lm.module(lm.site(0).path)
        down.weight.requires_grad_(True)
        down.bias.requires_grad_(True)
        answers = lm.logits(lm.batch(rows, [0]), positions_of(rows, [0], "cpu"))
        asked = answers.square().sum()
        found[dtype] = [g.double() for g in torch.autograd.grad(asked, [down.weight, down.bias])]
        lm.model.requires_grad_(False)
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


@needs_onednn
def test_who_multiplies_in_a_way_of_his_own_keeps_it(
    large: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = large("llama")
    module = lm.module(lm.site(0).path)

    def own(x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*x.shape[:-1], module.weight.shape[0])

    with monkeypatch.context() as patched:
        patched.setitem(vars(module), "forward", own)
        _two_passes(lm, module, own)
    assert not forwards(lm.model)


def _two_passes(lm: LM, module: nn.Module, own: Callable[..., torch.Tensor]) -> None:
    with quick_products(lm):
        assert len(forwards(lm.model)) > 1
        assert vars(module)["forward"] is own
        with quick_products(lm):  # a pass inside a pass
            pass
        assert len(forwards(lm.model)) > 1
    assert vars(module)["forward"] is own
    assert len(forwards(lm.model)) == 1


def test_the_library_is_measured_once(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path))
    measured = []
    monkeypatch.setattr(multiplying, "_measured", lambda device: measured.append(1) or 2.5)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    device = torch.device("cpu")
    assert [speed_of_onednn(device), speed_of_onednn(device)] == [2.5, 2.5]
    assert measured == [1]
    assert speed_of_onednn(torch.device("meta")) == 0.0
