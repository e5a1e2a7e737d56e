"""Parameters of networks: the published table, and modules that are really built."""

from __future__ import annotations

from typing import Any

import pytest

from errata.sweeping.backbones import KNOWN, Backbone
from errata.sweeping.counts import ibke_matrix, ke_networks, network_parameters

# l_m = 10, no biases, three matrices: GPT2-XL, GPT-J, Qwen3-1.7B, Qwen3-8B
TABLE = {
    "gpt2-xl": (37_658_883, 76_890_627, 160_072_707, 345_311_235),
    "gpt-j-6b": (95_166_723, 191_906_307, 390_104_067, 805_373_955),
    "qwen3-1.7b": (38_543_619, 78_660_099, 163_611_651, 352_389_123),
    "qwen3-8b": (76_292_355, 154_157_571, 314_606_595, 654_379_011),
}
WIDTHS = (256, 512, 1024, 2048)


@pytest.mark.parametrize("name", TABLE)
def test_ibke_matches_the_published_formula(name: str) -> None:
    d = KNOWN[name].signal
    for d_m, expected in zip(WIDTHS, TABLE[name], strict=True):
        settings = {"d_m": d_m, "l_m": 10}
        assert 3 * ibke_matrix(d, settings, biases=False) == expected
        assert ibke_matrix(d, settings) == expected // 3 + 9 * d_m + d + 1


def test_published_sizes() -> None:
    assert network_parameters("ibke", {}, KNOWN["gpt2-xl"]) == 160_124_358
    # EasyEdit's MEND for GPT2-XL: 123.1 M
    assert network_parameters("mend", {}, KNOWN["gpt2-xl"]) == pytest.approx(123.1e6, rel=1e-3)
    assert network_parameters("rome", {}, KNOWN["gpt2-xl"]) == 0


def count(module: Any) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def site(d_in: int, d_out: int) -> Any:
    from errata.model.spec import Site

    fields = {name: None for name in Site.__dataclass_fields__}
    return Site(**{**fields, "d_in": d_in, "d_out": d_out})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bottleneck": False},
        {"scaling": False},
        {"bottleneck": False, "scaling": False},
        {"l_m": 1},
        {"token_path": 7},
        {"token_path": 7, "token_latent": False},
        {"token_path": 7, "together": "tokens", "mirror": True, "tokens": "all"},
        {"together": "latents", "latent_layers": 2},
        {"token_path": 7, "together": "both", "rank": 3},
    ],
)
def test_ibke_matches_built_networks(settings: dict[str, Any]) -> None:
    from errata.editors.ibke import IbkeConfig, IbkeNetwork

    settings = {"d_m": 16, **settings}
    model = Backbone(1e6, 4, 12, 20, True)
    sites = [(layer, site(20, 12)) for layer in (1, 2)]
    network = IbkeNetwork(IbkeConfig(**settings), sites)
    wanted = {**settings, "layers": (1, 2)}
    assert network_parameters("ibke", wanted, model) == count(network)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"shared": False},
        {"n_layers": 1},
        {"nonlinear": "mlp"},
        {"matrices": "out"},
        {"mirror": True},
    ],
)
@pytest.mark.parametrize("gated", [False, True])
def test_mend_matches_built_networks(settings: dict[str, Any], gated: bool) -> None:
    from errata.editors.mend import MendConfig, MendNetwork

    settings = {"width": 9, **settings}
    model = Backbone(1e6, 4, 12, 20, gated)
    into = 0 if settings.get("matrices") == "out" else 1 + gated
    sites = [(layer, found) for layer in (1, 2) for found in (*[site(12, 20)] * into, site(20, 12))]
    network = MendNetwork(MendConfig(**settings), sites)
    wanted = {**settings, "layers": (1, 2)}
    assert network_parameters("mend", wanted, model) == count(network)


def test_ke_matches_built_networks() -> None:
    from torch import nn

    from errata.editors.ke import Conditioner, Encoder

    settings = {"lstm": 5, "condition": 6, "width": 7}
    network = nn.ModuleList([Encoder(12, 5, 6), *(Conditioner(6, 7, 20, 12) for _ in range(3))])
    assert ke_networks(32, 3, 12, settings) == count(network)
