"""Oracle E.11 and what is MEND's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.locate.samples import EDITS
from tests.nets.samples import (
    dense_gradients,
    group_of,
    relative,
    signals_of,
    small,
    untrained,
)
from torch import Tensor

from errata.editors.mend import IdentityLayer, MendNetwork
from errata.model.lm import LM
from errata.training.config import TrainConfig
from errata.training.objective import Objective
from errata.training.prepared import Prepared

EXACT = 1e-11
ETA = 0.3

Tiny = Callable[..., LM]


def network_of(lm: LM, **settings: Any) -> tuple[Any, MendNetwork]:
    editor = small("mend", **{"layers": (1, 2), "eta": ETA, **settings})
    network = untrained(editor, lm)
    assert isinstance(network, MendNetwork)
    with torch.no_grad():
        network.rates.value.fill_(ETA)  # in float64
    return editor, network


def test_E11_it_starts_as_the_identity() -> None:
    torch.manual_seed(0)
    layer = IdentityLayer(12, 4, 2)
    z = torch.randn(5, 12)
    for mode in range(2):
        assert torch.equal(layer(z, mode), z)


@pytest.mark.parametrize("kind", ["gpt2", "falcon", "qwen3"])
def test_E11_without_normalisation_an_edit_is_a_gradient_step(kind: str, tiny: Tiny) -> None:
    lm = tiny(kind)
    for sign, factor in (("descent", -ETA), ("ascent", ETA)):
        editor, network = network_of(lm, norm="none", sign=sign)
        sites = editor.sites(lm)
        signals = signals_of(lm, sites)
        with torch.no_grad():
            factors = network(signals).factors([site for _, site in sites])
        wanted = dense_gradients(lm, sites, signals.rows)
        for at, (_, site) in enumerate(sites):
            A, B = factors[site.path]
            for i in range(len(EDITS)):
                assert relative(B[i] @ A[i], factor * wanted[i][at]) < EXACT


def test_E11_with_it_an_edit_is_the_product_of_standardised_factors(tiny: Tiny) -> None:
    lm = tiny("gpt2")
    editor, network = network_of(lm, norm="running")
    sites = editor.sites(lm)
    signals = signals_of(lm, sites)
    network.observe(signals)
    with torch.no_grad():
        factors = network(signals).factors([site for _, site in sites])
    shapes: dict[tuple[int, int], list[Tensor]] = {}
    for (_, site), f in zip(sites, signals.factors, strict=True):
        tokens = torch.cat([f.h[f.mask], f.u[f.mask]], -1)
        shapes.setdefault((site.d_in, site.d_out), []).append(tokens)
    for (_, site), f in zip(sites, signals.factors, strict=True):
        seen = torch.cat(shapes[site.d_in, site.d_out])  # shared by the matrices of a shape
        mean, std = seen.mean(0), seen.std(0) + 1e-7
        A, B = factors[site.path]
        for i in range(len(EDITS)):
            tokens = torch.cat([f.h[i], f.u[i]], -1)[f.mask[i]]
            h, u = ((tokens - mean) / std).split((site.d_in, site.d_out), -1)
            assert relative(B[i] @ A[i], -ETA * u.T @ h) < 1e-9


def test_E11_the_clamp_learns_from_the_start(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `U = 0` every pre-activation is zero, where a ReLU has no gradient."""
    lm = tiny("gpt2")

    def moved() -> dict[str, float]:
        editor, network = network_of(lm, norm="unit")
        groups = [group_of(lm, i, [edit]) for i, edit in enumerate(EDITS)]
        objective = Objective(lm, Prepared(lm, editor.sites(lm), groups), TrainConfig())
        objective.run(network, groups, backward=lambda loss: loss.backward())
        return {
            n: float(p.grad.norm()) for n, p in network.named_parameters() if p.grad is not None
        }

    with_clamp = moved()
    monkeypatch.setattr(torch.Tensor, "clamp", lambda self, min=None, max=None: self.relu())
    with_relu = moved()
    for name, norm in with_clamp.items():
        if name.endswith(("0.u", "0.bias", "1.u", "1.bias")):
            assert norm > 0
            assert with_relu.get(name, 0.0) == 0


def test_matrices_of_a_shape_share_a_network(tiny: Tiny) -> None:
    lm = tiny("qwen3")
    editor, network = network_of(lm)
    assert [site.path.rpartition(".")[2] for _, site in editor.sites(lm)] == [
        "gate_proj", "up_proj", "down_proj"
    ] * 2  # fmt: skip
    assert sorted(network.nets) == ["32x80", "80x32"]
    assert network.modes == [0, 1, 0, 2, 3, 1]
    apart = network_of(lm, shared=False)[1]
    assert len(apart.nets) == 6
    assert apart.modes == [0] * 6


def test_gpt2_xl_has_as_many_parameters_as_published() -> None:
    """123.1 million in EasyEdit's configuration."""
    from errata.editors.mend import MendConfig
    from errata.model.spec import Site

    sites = [
        (layer, Site(f"{layer}.{d_in}", d_in, d_out, True, True))
        for layer in (45, 46, 47)
        for d_in, d_out in ((1600, 6400), (6400, 1600))
    ]
    with torch.device("meta"):
        network = MendNetwork(MendConfig(), sites)
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(123.1e6, rel=1e-3)
