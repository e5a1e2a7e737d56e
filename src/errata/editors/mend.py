"""MEND: networks shared by shape transform the gradient factors of each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from errata.case import Edit
from errata.editors.base_ridge import RidgeConfig, RidgeEditor
from errata.editors.base_trained import Matrices
from errata.model.lm import LM
from errata.model.spec import Site
from errata.nets.capture import Signals
from errata.nets.mirror import MIRROR, mirrors, turned
from errata.nets.normalise import Norm, Normaliser
from errata.nets.rates import EditRates, RateSpace
from errata.nets.update import FactorNetwork, Term, Update


class MendConfig(RidgeConfig):
    """Settings of MEND's networks; the defaults are those published."""

    matrices: Matrices = Field(
        default="all", description="out: the FFN's output matrix; all: its other matrices too"
    )
    width: int = Field(default=1920, ge=1, description="Rank of each layer's matrix")
    n_layers: int = Field(default=2, ge=1, le=100, description="Layers of each network")
    norm: Norm = Field(
        default="running",
        description="How signals are normalised: running statistics, as published, or unit (each "
        "token's h and u to norm one), which does far better out of domain",
    )
    shared: bool = Field(default=True, description="Whether matrices of one shape share a network")
    nonlinear: Literal["mend", "mlp"] = Field(
        default="mend",
        description="mend: clamp on every layer and no wide hidden layer, as published; mlp: two "
        "layers of `width` with SiLU and a residual, which trains faster",
    )
    mirror: bool = MIRROR
    sign: Literal["descent", "ascent"] = Field(
        default="descent", description="ascent: the released code, whose edits add α∇"
    )
    eta: float = Field(default=1e-4, gt=0, description="Edit learning rate before calibration")
    eta_space: RateSpace = Field(
        default="direct", description="log: its logarithm is learned; direct: itself, as published"
    )


class IdentityLayer(nn.Module):
    """`z + max(0, m ⊙ (U V z + b) + a)`, the identity at the start (`U = 0`).

    The clamp's gradient at zero is one, a ReLU's is zero, and would never start to learn.
    """

    def __init__(self, width: int, rank: int, modes: int) -> None:
        super().__init__()
        rank = min(rank, width)
        self.v = nn.Parameter(torch.randn(rank, width))
        self.u = nn.Parameter(torch.zeros(width, rank))
        self.bias = nn.Parameter(torch.zeros(width))
        self.mode_scale = nn.Parameter(torch.ones(modes, width))
        self.mode_shift = nn.Parameter(torch.zeros(modes, width))

    def forward(
        self, z: Float[Tensor, "*batch D"], mode: int, mark: Tensor | float = 0.0
    ) -> Float[Tensor, "*batch D"]:
        """Transform signals; `mode` is the number of the matrix among those of its shape.

        `mark` is added to what the layer looks at, not to what it carries on.
        """
        inner = (z + mark) @ self.v.T @ self.u.T + self.bias
        return z + (self.mode_scale[mode] * inner + self.mode_shift[mode]).clamp(min=0)


class MlpLayer(nn.Module):
    """`m ⊙ (z + W₂ silu(W₁ z)) + a`: a plain residual network of the same kind of size."""

    def __init__(self, width: int, hidden: int, modes: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, hidden)
        self.outer = nn.Linear(hidden, width)
        self.mode_scale = nn.Parameter(torch.ones(modes, width))
        self.mode_shift = nn.Parameter(torch.zeros(modes, width))

    def forward(
        self, z: Float[Tensor, "*batch D"], mode: int, mark: Tensor | float = 0.0
    ) -> Float[Tensor, "*batch D"]:
        """Transform signals; see `IdentityLayer`."""
        made = z + self.outer(nn.functional.silu(self.inner(z + mark)))
        return self.mode_scale[mode] * made + self.mode_shift[mode]


class MendNetwork(FactorNetwork):
    """One stack of layers per shape of matrix, or per matrix."""

    def __init__(self, config: MendConfig, sites: Sequence[tuple[int, Site]]) -> None:
        super().__init__()
        self.config = config
        self.keys: list[str] = []
        self.modes: list[int] = []
        shapes: dict[str, Site] = {}
        for number, (_, site) in enumerate(sites):
            key = f"{site.d_in}x{site.d_out}" + ("" if config.shared else f"_{number}")
            shapes[key] = site
            self.modes.append(self.keys.count(key))
            self.keys.append(key)
        self.nets = nn.ModuleDict()
        self.norms = nn.ModuleDict()
        for key, site in shapes.items():
            width, modes = site.d_in + site.d_out, self.keys.count(key)
            if config.nonlinear == "mend":
                layers = [IdentityLayer(width, config.width, modes) for _ in range(config.n_layers)]
            else:
                layers = [MlpLayer(width, config.width, modes)]
            self.nets[key] = nn.ModuleList(layers)
            self.norms[key] = Normaliser(config.norm, site.d_in, site.d_out)
        marks = [nn.Parameter(torch.zeros(site.d_in + site.d_out)) for _, site in sites]
        self.marks = nn.ParameterList(marks if config.mirror else [])
        self.rates = EditRates(len(sites), config.eta, config.eta_space)

    def observe(self, signals: Signals) -> None:
        """Update running statistics, if the normaliser keeps any."""
        for key, f in zip(self.keys, signals.factors, strict=True):
            norm: Any = self.norms[key]
            norm.observe(f.h, f.u, f.mask)

    def forward(self, signals: Signals, noise: Any = None) -> Update:
        """Return the update: the sum over tokens of transformed factors."""
        sign = 1.0 if self.config.sign == "descent" else -1.0
        rates = self.rates()
        which = turned(signals) if self.config.mirror else None
        terms = []
        for number, (key, mode, f) in enumerate(
            zip(self.keys, self.modes, signals.factors, strict=True)
        ):
            norm: Any = self.norms[key]
            layers: Any = self.nets[key]
            # a token without a gradient changes nothing; in the last block most of them have none
            edit, token = f.mask.nonzero(as_tuple=True)
            signal = norm(f.h, f.u)[1][edit, token]
            mark = which[edit, None] * self.marks[number] if which is not None else 0.0
            for layer in layers:
                signal = layer(signal, mode, mark)
            empty = signal.new_zeros(*f.mask.shape, signal.shape[-1])
            h, u = empty.index_put((edit, token), signal).split((norm.d_in, norm.d_out), -1)
            terms.append(Term(sign * rates[number] * h, u, f.mask, signals.owner))
        return Update(tuple(terms), signals.groups)


class Mend(RidgeEditor):
    """Model editor networks: gradient factors transformed token by token."""

    name: ClassVar[str] = "mend"
    title: ClassVar[str] = "MEND"
    paper: ClassVar[str] = "Mitchell et al., Fast Model Editing at Scale, arXiv:2110.11309"
    needs: ClassVar[tuple[str, ...]] = ("training",)
    weights: ClassVar[bool] = True
    batch: ClassVar[str] = "joint"
    sequence: ClassVar[str] = "adds"
    sequential: ClassVar[bool] = True
    exports: ClassVar[tuple[str, ...]] = ("lora", "merged")
    Config: ClassVar[type[MendConfig]] = MendConfig
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "gpt2-xl": {"layers": (45, 46, 47)},
        "gpt-j-6b": {"layers": (25, 26, 27)},
        "qwen3-1.7b": {"layers": (25, 26, 27)},
        "qwen3-8b": {"layers": (33, 34, 35)},
    }  # fmt: skip
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "pocket": {
            "layers": (3, 4, 5), "matrices": "out", "norm": "unit", "eta_space": "log",
            "nonlinear": "mlp", "shared": False, "width": 640,
        },
    }  # fmt: skip
    defaults: ClassVar[Mapping[str, Any]] = {
        "lr": 1e-6, "rate_lr": 1e-4, "clip": 100.0, "calibrate": None,
        "sg_weight": 0.1, "kl": "original_first",
        "pocket": {
            "lr": 2e-3, "rate_lr": None, "clip": 1.0, "calibrate": 0.1,
            "sg_weight": 1.0, "kl": "edited_first", "hops": "unknown",
        },
    }  # fmt: skip

    def automatic_layers(self, lm: LM) -> tuple[int, ...]:
        """Return the last three blocks, as published for every model."""
        return tuple(range(max(0, lm.n_layers - 3), lm.n_layers))

    def rule_of(self, lm: LM) -> str:
        """Say which blocks these are."""
        return "rule: the last three blocks"

    def also(self, edit: Edit) -> list[Edit]:
        """Return the request turned round, if the settings say so."""
        assert isinstance(self.config, MendConfig)
        return mirrors(edit) if self.config.mirror else []

    def build(self, sites: Sequence[tuple[int, Site]], lm: LM) -> MendNetwork:
        """Return untrained networks for these matrices."""
        assert isinstance(self.config, MendConfig)
        return MendNetwork(self.config, sites)
