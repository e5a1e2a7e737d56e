"""Oracles E.2 to E.5, E.8 and E.9 for IBKE's networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.locate.samples import EDITS
from tests.nets.samples import (
    dense_gradients,
    gradients,
    group_of,
    relative,
    same_gradients,
    signals_of,
    small,
    untrained,
)
from torch import Tensor, nn

from errata.editors.ibke import Bottleneck, IbkeConfig, IbkeNetwork, divergence
from errata.model.lm import LM
from errata.model.spec import Site
from errata.nets.attention import CrossAttention
from errata.nets.capture import Factors, Signals
from errata.training.config import TrainConfig
from errata.training.objective import Objective
from errata.training.prepared import Prepared

EXACT = 1e-11
ETA = 0.3

Tiny = Callable[..., LM]
PLAIN: dict[str, Any] = {"norm": "none", "zero_residual": True, "eta": ETA}


def network_of(lm: LM, **settings: Any) -> tuple[Any, IbkeNetwork]:
    editor = small("ibke", **{"layers": (1, 2), **settings})
    network = untrained(editor, lm)
    assert isinstance(network, IbkeNetwork)
    with torch.no_grad():
        network.rates.value.fill_(network.config.eta).log_()  # in float64
    return editor, network


def noise(seed: int = 0) -> Any:
    g = torch.Generator().manual_seed(seed)
    return lambda number, shape: torch.randn(shape, generator=g)


def synthetic(tokens: Tensor, mask: Tensor) -> Signals:
    """Return signals at two matrices, 7 to 5 and 5 to 7, from `[E, T, 24]`."""
    h1, u1, h2, u2 = tokens.split((7, 5, 5, 7), -1)
    gone = ~mask[..., None]
    factors = tuple(
        Factors(h.masked_fill(gone, 0), u.masked_fill(gone, 0), mask, mask)
        for h, u in ((h1, u1), (h2, u2))
    )
    return Signals(factors, torch.arange(len(tokens)))


SITES = [(0, Site("a", 7, 5, False, False)), (1, Site("b", 5, 7, False, False))]


# ---------------------------------------------------------------------- E.2


@pytest.mark.parametrize("kind", ["gpt2", "falcon", "qwen3"])
@pytest.mark.parametrize(("scaling", "share"), [(False, 1.0), (True, 0.25)])
def test_E2_without_residual_an_edit_is_a_gradient_step(
    kind: str, scaling: bool, share: float, tiny: Tiny
) -> None:
    lm = tiny(kind)
    editor, network = network_of(lm, scaling=scaling, matrices="all", **PLAIN)
    if scaling:
        with torch.no_grad():
            for net in network.matrices:
                net.gate.weight.zero_()  # gates at one half, in both factors
    sites = editor.sites(lm)
    signals = signals_of(lm, sites)
    with torch.no_grad():
        factors = network(signals).factors([site for _, site in sites])
    wanted = dense_gradients(lm, sites, signals.rows)
    for at, (_, site) in enumerate(sites):
        A, B = factors[site.path]
        for i in range(len(signals.rows)):
            step = -ETA * share * wanted[i][at]  # what torch.optim.SGD(lr=ETA) adds
            assert relative(B[i] @ A[i], step) < EXACT


# ---------------------------------------------------------------------- E.3


def test_E3_the_divergence_in_closed_form() -> None:
    g = torch.Generator().manual_seed(0)
    mean, log_variance = (torch.randn(4, 3, 16, generator=g, dtype=torch.float64) for _ in "ab")
    normal = torch.distributions.Normal
    want = torch.distributions.kl_divergence(
        normal(mean, (log_variance / 2).exp()), normal(torch.zeros_like(mean), 1.0)
    ).sum((1, 2))
    found = divergence(mean, log_variance)
    torch.testing.assert_close(found, want, rtol=EXACT, atol=EXACT)
    assert bool((found > 0).all())
    assert not divergence(torch.zeros(2, 3, 4), torch.zeros(2, 3, 4)).any()


def test_E3_its_weight_in_the_loss(tiny: Tiny) -> None:
    """β times the divergence per edit, matrix and element of the latents."""
    lm = tiny("gpt2")
    for layers in ((1,), (1, 2)):
        editor, network = network_of(lm, beta=0.7, layers=layers)
        signals = signals_of(lm, editor.sites(lm))
        update = network(signals)
        total = torch.zeros(len(EDITS), dtype=torch.float64)
        for net, f in zip(network.matrices, signals.factors, strict=True):
            total += divergence(*net.encode(net.norm(f.h, f.u)[0], f.mask))
        assert update.penalty is not None
        want = 0.7 * total / (len(layers) * 3 * 16)
        torch.testing.assert_close(update.penalty, want, rtol=EXACT, atol=EXACT)


# ---------------------------------------------------------------------- E.4


def test_E4_noise(tiny: Tiny) -> None:
    lm = tiny("gpt2")
    editor, network = network_of(lm)
    signals = signals_of(lm, editor.sites(lm))
    with torch.no_grad():
        one, two = network(signals), network(signals)
        noisy, other, same = (network(signals, noise(seed)) for seed in (0, 1, 0))
    for a, b, c, d, e in zip(
        one.terms, two.terms, noisy.terms, other.terms, same.terms, strict=True
    ):
        assert torch.equal(a.keys, b.keys)
        assert torch.equal(a.values, b.values)
        assert not torch.equal(a.keys, c.keys)
        assert not torch.equal(c.keys, d.keys)
        assert torch.equal(c.keys, e.keys)
    patches = []
    for _ in range(2):
        editor.adopt(lm, network.requires_grad_(False).eval())
        patches.append(editor.edit_one(lm, EDITS[:1]))
    for a, b in zip(patches[0].changes, patches[1].changes, strict=True):
        assert torch.equal(a.A, b.A)
        assert torch.equal(a.B, b.B)


def test_E4_draws_have_the_mean_and_the_variance_that_were_encoded(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, count = tiny("gpt2"), 4000
    editor, network = network_of(lm, layers=(1,))
    (f,) = signals_of(lm, editor.sites(lm), EDITS[:1]).factors
    copies = Factors(*(x.expand(count, -1, -1) for x in (f.h, f.u)), f.mask.expand(count, -1))
    drawn: list[Tensor] = []
    original = Bottleneck.decode

    def decode(self: Bottleneck, *args: Any) -> Any:
        drawn.extend(x for x in args if x.shape[1:] == (3, 16))
        return original(self, *args)

    monkeypatch.setattr(Bottleneck, "decode", decode)
    with torch.no_grad():
        network(Signals((copies,), torch.arange(count)), noise())
        (net,) = network.matrices
        mean, log_variance = net.encode(net.norm(f.h, f.u)[0], f.mask)
    (z,), std = drawn, (log_variance / 2).exp()
    errors = 5 / count**0.5  # five standard errors: there are 48 elements
    assert float(((z.mean(0) - mean[0]) / std).abs().max()) < errors
    assert float((z.var(0) / std.square() - 1).abs().max()) < 2**0.5 * errors


# ---------------------------------------------------------------------- E.5


VARIANTS: list[dict[str, Any]] = [
    {},
    {"norm": "running"},
    {"norm": "none", "heads": 4},
    {"token_path": 8, "latent_layers": 1},
    {"token_path": 8, "together": "both", "tokens": "all"},
    {"rank": 2},
]


@pytest.mark.parametrize("settings", VARIANTS)
def test_E5_padding_and_order_of_tokens(settings: dict[str, Any]) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, 24, generator=g, dtype=torch.float64)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[1, 4:] = False
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        network = IbkeNetwork(IbkeConfig(d_m=16, l_m=3, **settings), SITES).double()
        network.observe(synthetic(x, mask))
        plain = network(synthetic(x, mask))
        longer = torch.cat([x, torch.full((2, 3, 24), 7.0, dtype=torch.float64)], 1)
        padded = network(synthetic(longer, nn.functional.pad(mask, (0, 3))))
        order = torch.tensor([3, 0, 5, 1, 4, 2])
        shuffled = network(synthetic(x[:, order], mask[:, order]))
    for one, more, other in zip(plain.terms, padded.terms, shuffled.terms, strict=True):
        assert relative(more.values.mT @ more.keys, one.values.mT @ one.keys) < EXACT
        if "rank" in settings:
            assert one.keys.shape[1] == 2
            assert relative(other.keys, one.keys) < EXACT
            continue
        for beyond in (more.keys, more.values, more.mask):
            assert not beyond[:, 6:].any()
        assert relative(other.keys, one.keys[:, order]) < EXACT
        assert relative(other.values, one.values[:, order]) < EXACT
    if plain.penalty is not None and padded.penalty is not None and shuffled.penalty is not None:
        assert relative(padded.penalty, plain.penalty) < EXACT
        assert relative(shuffled.penalty, plain.penalty) < EXACT


def test_an_edit_without_signal_gathers_nothing() -> None:
    attention = CrossAttention(4, 6, 8).double()
    a, b = torch.randn(2, 3, 4).double(), torch.randn(2, 5, 6).double()
    mask = torch.tensor([[True] * 5, [False] * 5])
    out = attention(a, b, mask)
    assert not out[1].any()
    assert torch.isfinite(out).all()


# ---------------------------------------------------------------------- E.8


def test_E8_ablations(tiny: Tiny) -> None:
    lm = tiny("gpt2")
    editor, network = network_of(lm, scaling=False)
    assert not any("gate" in name for name, _ in network.named_parameters())
    editor, network = network_of(lm, bottleneck=False)
    assert not any("to_log_variance" in name for name, _ in network.named_parameters())
    signals = signals_of(lm, editor.sites(lm))
    with torch.no_grad():
        plain, noisy = network(signals), network(signals, noise())
    assert plain.penalty is None
    for a, b in zip(plain.terms, noisy.terms, strict=True):
        assert torch.equal(a.keys, b.keys)
    editor, network = network_of(lm, noise=False)
    with torch.no_grad():
        plain, noisy = network(signals), network(signals, noise())
    assert plain.penalty is not None
    assert all(torch.equal(a.keys, b.keys) for a, b in zip(plain.terms, noisy.terms, strict=True))


def test_E8_the_loss_grows_with_beta_by_the_divergence(tiny: Tiny) -> None:
    lm = tiny("gpt2")
    found = []
    for beta in (0.1, 0.6):
        editor, network = network_of(lm, beta=beta)
        groups = [group_of(lm, i, [edit]) for i, edit in enumerate(EDITS)]
        prepared = Prepared(lm, editor.sites(lm), groups)
        found.append(Objective(lm, prepared, TrainConfig()).run(network, groups))
    slope = (found[1]["total"] - found[0]["total"]) / 0.5
    assert slope == pytest.approx(found[0]["divergence"], rel=1e-6)
    assert found[0]["sg"] == found[1]["sg"]


# ---------------------------------------------------------------------- E.9

MODELS = {
    "gpt2-xl": (1600, 6400),
    "gpt-j-6b": (4096, 16384),
    "qwen3-1.7b": (2048, 6144),
    "qwen3-8b": (4096, 12288),
}
COUNTS = {
    ("gpt2-xl", 256): 37_658_883, ("gpt2-xl", 512): 76_890_627,
    ("gpt2-xl", 1024): 160_072_707, ("gpt2-xl", 2048): 345_311_235,
    ("gpt-j-6b", 256): 95_166_723, ("gpt-j-6b", 512): 191_906_307,
    ("gpt-j-6b", 1024): 390_104_067, ("gpt-j-6b", 2048): 805_373_955,
    ("qwen3-1.7b", 256): 38_543_619, ("qwen3-1.7b", 512): 78_660_099,
    ("qwen3-1.7b", 1024): 163_611_651, ("qwen3-1.7b", 2048): 352_389_123,
    ("qwen3-8b", 256): 76_292_355, ("qwen3-8b", 512): 154_157_571,
    ("qwen3-8b", 1024): 314_606_595, ("qwen3-8b", 2048): 654_379_011,
}  # fmt: skip
"""Three matrices, biases left out."""


@pytest.mark.parametrize(("model", "d_m"), list(COUNTS))
def test_E9_parameters(model: str, d_m: int) -> None:
    d_out, d_in = MODELS[model]
    sites = [(layer, Site(f"{layer}", d_in, d_out, False, False)) for layer in range(3)]
    with torch.device("meta"):
        network = IbkeNetwork(IbkeConfig(d_m=d_m), sites)
    counts = {name: p.numel() for name, p in network.named_parameters()}
    biases = sum(n for name, n in counts.items() if name.endswith("bias"))
    assert sum(counts.values()) - biases == COUNTS[model, d_m]
    assert biases == 3 * (9 * d_m + d_in + d_out + 1)
    if (model, d_m) == ("gpt2-xl", 1024):
        assert sum(counts.values()) == 160_124_358


# ---------------------------------------------------------------------- batches


def test_gradients_do_not_depend_on_how_groups_are_batched(tiny: Tiny) -> None:
    """What gradient accumulation and several processes rest on."""
    lm = tiny("gpt2")
    editor, network = network_of(lm)
    groups = [group_of(lm, i, [edit]) for i, edit in enumerate(EDITS)]
    objective = Objective(lm, Prepared(lm, editor.sites(lm), groups), TrainConfig())
    counts = objective.counts(groups)

    def back(loss: Tensor) -> None:
        loss.backward()

    whole = objective.run(network, groups, backward=back)
    wanted = gradients(network)
    parts = [objective.run(network, [g], counts=counts, backward=back) for g in groups]
    assert sum(p["total"] for p in parts) == pytest.approx(whole["total"], rel=1e-9)
    same_gradients(gradients(network), wanted, 1e-9)
