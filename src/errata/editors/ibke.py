"""IBKE: gradient factors pass a variational bottleneck that reshapes and rescales the update."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn

from errata.case import Edit
from errata.editors.base_inside import InsideEditor
from errata.editors.base_ridge import RidgeConfig, RidgeEditor
from errata.editors.base_trained import TrainedConfig
from errata.model.lm import LM
from errata.model.spec import Site
from errata.nets.attention import AttentionScale, CrossAttention
from errata.nets.capture import Factors, Signals
from errata.nets.inside import Inside
from errata.nets.mirror import MIRROR, mirrors, turned
from errata.nets.normalise import Norm, Normaliser
from errata.nets.rates import EditRates, RateSpace
from errata.nets.update import FactorNetwork, Term, Update

Noise = Callable[[int, tuple[int, ...]], Tensor]


class BottleneckConfig(TrainedConfig):
    """Settings of IBKE's networks; `bottleneck` and `scaling` are the paper's ablations."""

    d_m: int = Field(default=1024, ge=1, description="Width of latents and attention")
    l_m: int = Field(default=10, ge=1, description="Number of latents")
    beta: float = Field(default=0.1, ge=0, description="Weight of the bottleneck's divergence")
    heads: int = Field(default=1, ge=1, description="Heads of each attention; divides d_m")
    attention_scale: AttentionScale = Field(
        default="sqrt", description="sqrt: logits over the root of the width; none: as printed"
    )
    norm: Norm = Field(
        default="unit",
        description="How signals are normalised; out of domain, unit (each token's h and u to "
        "norm one) does best",
    )
    bottleneck: bool = Field(default=True, description="False: the ablation −IB")
    noise: bool = Field(
        default=True, description="False keeps divergence and variance but draws no noise"
    )
    scaling: bool = Field(default=True, description="False: the ablation −SF, gates fixed at one")
    gate_bias: float = Field(default=0.0, description="Bias of the gates before training")
    log_variance: float = Field(default=0.0, description="Bias of the log-variance at the start")
    zero_residual: bool = Field(
        default=False, description="Start at the plain (gated) gradient step; learns slower"
    )
    token_path: int = Field(
        default=0,
        ge=0,
        description="Width of a non-linear path from each token to its residual, beside the one "
        "through the latents; 0: the paper's form",
    )
    token_latent: bool = Field(
        default=True, description="Whether what a token gathers from the latents enters that path"
    )
    tokens: Literal["signal", "all"] = Field(
        default="signal",
        description="Tokens that look and are written: signal: those with a gradient, as in the "
        "paper; all: those of the answer too, about which reversed questions ask",
    )
    mirror: bool = MIRROR
    latent_layers: int = Field(
        default=0,
        ge=0,
        le=100,
        description="Blocks of self-attention in which the latents work on",
    )
    together: Literal["none", "latents", "tokens", "both"] = Field(
        default="none",
        description="What sees the signals of all edited matrices at once instead of its own "
        "matrix' only: nothing, the latents, the token path, both",
    )
    rank: int | None = Field(
        default=None, ge=1, description="Compress each edit to this rank, learned; none: no limit"
    )
    eta: float = Field(default=1e-4, gt=0, description="Edit learning rate before calibration")
    eta_space: RateSpace = Field(
        default="log", description="log: its logarithm is learned; direct: itself, as in MEND"
    )


class IbkeConfig(BottleneckConfig, RidgeConfig):
    """Settings of IBKE: of its networks, and of how several edits are joined."""


class _Pool(nn.Module):
    """Compresses the factors of an edit to `rank` pairs, each a weighted sum over its tokens."""

    def __init__(self, rank: int, d: int) -> None:
        super().__init__()
        self.keys = nn.Linear(d, rank)
        self.values = nn.Linear(d, rank)

    def forward(
        self,
        gathered: Float[Tensor, "E T d_m"],
        h: Float[Tensor, "E T d_in"],
        u: Float[Tensor, "E T d_out"],
        mask: Bool[Tensor, "E T"],
    ) -> tuple[Float[Tensor, "E k d_in"], Float[Tensor, "E k d_out"]]:
        gone = ~mask[..., None]
        pooled = []
        for score, factor in ((self.keys(gathered), h), (self.values(gathered), u)):
            weight = score.masked_fill(gone, -torch.inf).softmax(1).nan_to_num(0.0)
            pooled.append(weight.transpose(1, 2) @ factor)
        return pooled[0], pooled[1]


class LatentBlock(nn.Module):
    """Self-attention and a small network on the latents of one edit, each as a residual."""

    def __init__(self, d: int, heads: int, scale: AttentionScale) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d)
        self.attention = CrossAttention(d, d, d, heads, scale)
        self.mix = nn.Sequential(
            nn.LayerNorm(d), nn.Linear(d, 2 * d), nn.SiLU(), nn.Linear(2 * d, d)
        )

    def forward(self, z: Float[Tensor, "E l_m d_m"]) -> Float[Tensor, "E l_m d_m"]:
        """Return the latents after the block."""
        seen = self.norm(z)
        z = z + self.attention(seen, seen)
        return z + self.mix(z)


class Bottleneck(nn.Module):
    """The network of one edited matrix (paper, eq. 26–33).

    Args:
        config: Settings.
        d_in: Input width of the matrix.
        d_out: Output width of the matrix.
        whole: Width of the signals of all matrices side by side.
    """

    def __init__(self, config: BottleneckConfig, d_in: int, d_out: int, whole: int) -> None:
        super().__init__()
        self.config = config
        width, d = d_in + d_out, config.d_m
        d_context = whole if config.together in {"latents", "both"} else width
        d_token = whole if config.together in {"tokens", "both"} else width

        def attention(d_query: int, d_key: int) -> CrossAttention:
            return CrossAttention(d_query, d_key, d, config.heads, config.attention_scale)

        self.norm = Normaliser(config.norm, d_in, d_out)
        self.latents = nn.Parameter(torch.randn(config.l_m, d))
        self.to_mean = attention(d, d_context)
        self.to_log_variance = attention(d, d_context) if config.bottleneck else None
        self.mark = nn.Parameter(torch.zeros(width)) if config.mirror else None
        self.blocks = nn.Sequential(
            *(
                LatentBlock(d, config.heads, config.attention_scale)
                for _ in range(config.latent_layers)
            )
        )
        self.gather = attention(width, d)
        self.residual = nn.Linear(d, width)
        self.gate = nn.Linear(d, 1) if config.scaling else None
        self.token_in = nn.Linear(d_token, config.token_path) if config.token_path else None
        self.token_latent = (
            nn.Linear(d, config.token_path, bias=False)
            if config.token_path and config.token_latent
            else None
        )
        self.token_out = nn.Linear(config.token_path, width) if config.token_path else None
        self.pool = _Pool(config.rank, d) if config.rank else None
        with torch.no_grad():
            if self.gate is not None:
                self.gate.bias.fill_(config.gate_bias)
            if self.to_log_variance is not None:
                self.to_log_variance.v.bias.fill_(config.log_variance)
            if config.zero_residual:
                for layer in (self.residual, self.token_out):
                    if layer is not None:
                        layer.weight.zero_()
                        layer.bias.zero_()

    def encode(
        self, context: Float[Tensor, "E K d_context"], mask: Bool[Tensor, "E K"]
    ) -> tuple[Float[Tensor, "E l_m d_m"], Float[Tensor, "E l_m d_m"] | None]:
        """Return mean and log-variance of the latents (eq. 26, 27); no variance without bottleneck.

        The log-variance is held in [−10, 10].
        """
        queries = self.latents.expand(len(context), -1, -1)
        mean = self.to_mean(queries, context, mask)
        if self.to_log_variance is None:
            return mean, None
        return mean, self.to_log_variance(queries, context, mask).clamp(-10, 10)

    def decode(
        self,
        seen: Float[Tensor, "E T D"],
        carried: Float[Tensor, "E T D"],
        mask: Bool[Tensor, "E T"],
        z: Float[Tensor, "E l_m d_m"],
        whole: Float[Tensor, "E T W"],
    ) -> tuple[Float[Tensor, "E R d_in"], Float[Tensor, "E R d_out"], Bool[Tensor, "E R"]]:
        """Return the factors of the update (eq. 30–32), before the edit learning rate."""
        gathered = self.gather(seen, self.blocks(z))
        residual = self.residual(gathered)
        if self.token_in is not None and self.token_out is not None:
            wide = self.config.together in {"tokens", "both"}
            hidden = self.token_in(whole if wide else seen)
            if self.token_latent is not None:
                hidden = hidden + self.token_latent(gathered)
            residual = residual + self.token_out(nn.functional.silu(hidden))
        scale = self.norm.scale()
        if scale is not None:
            residual = residual * scale.to(residual.dtype)
        signal = (carried + residual) * mask[..., None]
        if self.gate is not None:
            signal = signal * torch.sigmoid(self.gate(gathered))
        h, u = signal.split((self.norm.d_in, self.norm.d_out), -1)
        if self.pool is None:
            return h, u, mask
        h, u = self.pool(gathered, h, u, mask)
        return h, u, mask.any(-1, keepdim=True).expand(-1, h.shape[1])


def divergence(
    mean: Float[Tensor, "E l_m d_m"], log_variance: Float[Tensor, "E l_m d_m"]
) -> Float[Tensor, " E"]:
    """Return `KL(N(mean, exp(log_variance)) || N(0, 1))`, summed over a latent's elements (eq. 29).

    The unit is nats.
    """
    terms = log_variance.exp() + mean.square() - 1 - log_variance
    return terms.sum((-2, -1)) / 2


class IbkeNetwork(FactorNetwork):
    """One bottleneck per edited matrix."""

    def __init__(self, config: BottleneckConfig, sites: Sequence[tuple[int, Site]]) -> None:
        super().__init__()
        self.config = config
        widths = [site.d_in + site.d_out for _, site in sites]
        self.matrices = nn.ModuleList(
            Bottleneck(config, site.d_in, site.d_out, sum(widths)) for _, site in sites
        )
        self.rates = EditRates(len(sites), config.eta, config.eta_space)

    def observe(self, signals: Signals) -> None:
        """Update running statistics, if the normaliser keeps any."""
        for net, f in self._each(signals):
            net.norm.observe(f.h, f.u, f.mask)

    def _each(self, signals: Signals) -> list[tuple[Bottleneck, Factors]]:
        return list(zip(self.matrices, signals.factors, strict=True))  # type: ignore[arg-type]

    def forward(self, signals: Signals, noise: Noise | None = None) -> Update:
        """Return the update; each edit is compressed by itself, with one draw per matrix."""
        config = self.config
        views, masks, contexts, whole = self._looked(signals)
        terms = []
        penalty = views[0][0].new_zeros(len(signals.owner))
        rates = self.rates()
        for number, (net, _) in enumerate(self._each(signals)):
            z, log_variance = net.encode(*contexts[number])
            if log_variance is not None:
                penalty = penalty + divergence(z, log_variance)
                if noise is not None and config.noise:
                    draw = noise(number, tuple(z.shape)).to(z)
                    z = z + (log_variance / 2).exp() * draw
            seen, carried = views[number]
            h, u, mask = net.decode(seen, carried, masks[number], z, whole)
            terms.append(Term(rates[number] * h, u, mask, signals.owner))
        penalty = penalty / (len(terms) * config.l_m * config.d_m)
        report = {"divergence": penalty.detach().mean()} if config.bottleneck else {}
        weighted = config.beta * penalty if config.bottleneck else None
        return Update(tuple(terms), signals.groups, weighted, report)

    def _looked(self, signals: Signals) -> tuple[list[Any], list[Tensor], list[Any], Tensor]:
        """Return what each matrix' network looks at.

        That is views (seen and carried), masks, and the contexts of the latents, each per matrix;
        and the signals of all matrices side by side.
        """
        config = self.config
        views = [net.norm(f.h, f.u) for net, f in self._each(signals)]
        if config.mirror:
            views = self._marked(views, signals)
        masks = [f.tokens if config.tokens == "all" else f.mask for f in signals.factors]
        whole = views[0][0]  # looked at only if something sees all matrices
        if config.together != "none":
            whole = torch.cat([seen for seen, _ in views], -1)
        if config.together in {"latents", "both"}:
            anywhere = torch.stack(masks).any(0)
            contexts = [(whole, anywhere)] * len(views)
        else:
            contexts = [(seen, mask) for (seen, _), mask in zip(views, masks, strict=True)]
        return views, masks, contexts, whole

    def inside(self, signals: Signals) -> list[Inside]:
        """Return what each matrix' network holds of the edits, without noise."""
        views, masks, contexts, _ = self._looked(signals)
        found = []
        for (net, _), (seen, _), mask, context in zip(
            self._each(signals), views, masks, contexts, strict=True
        ):
            latents, log_variance = net.encode(*context)
            gates = None
            if net.gate is not None:
                gathered = net.gather(seen, net.blocks(latents))
                gates = torch.sigmoid(net.gate(gathered))[..., 0]
            count = mask.sum(-1, keepdim=True).clamp(min=1)
            mean = (seen * mask[..., None]).sum(1) / count
            variance = None if log_variance is None else log_variance.exp()
            found.append(Inside(mean, latents, variance, gates, mask))
        return found

    def _marked(
        self, views: list[tuple[Tensor, Tensor]], signals: Signals
    ) -> list[tuple[Tensor, Tensor]]:
        """Add a learned mark to what the attention sees of mirrored requests."""
        which = turned(signals)
        marks = [net.mark for net, _ in self._each(signals)]
        return [
            (seen + which[:, None, None] * mark, carried)
            for (seen, carried), mark in zip(views, marks, strict=True)
            if mark is not None
        ]


class BottleneckEditor(InsideEditor):
    """What editors with IBKE's networks share."""

    Config: ClassVar[type[BottleneckConfig]] = BottleneckConfig
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "gpt2-xl": {"layers": (15, 16, 17), "norm": "running", "d_m": 1024},
        "gpt-j-6b": {"layers": (6, 7, 8), "norm": "running", "d_m": 1024},
        "qwen3-1.7b": {"layers": (6, 7, 8), "norm": "running", "d_m": 1024},
        "qwen3-8b": {"layers": (6, 7, 8), "norm": "running", "d_m": 1024},
    }  # fmt: skip
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "pocket": {
            "layers": (3, 4, 5), "norm": "unit", "d_m": 192, "token_path": 200, "tokens": "all",
            "together": "tokens", "mirror": True,
        },
    }  # fmt: skip
    defaults: ClassVar[Mapping[str, Any]] = {"pocket": {"lr": 7e-4, "hops": "unknown"}}

    def also(self, edit: Edit) -> list[Edit]:
        """Return the request turned round, if the settings say so."""
        assert isinstance(self.config, BottleneckConfig)
        return mirrors(edit) if self.config.mirror else []

    def build(self, sites: Sequence[tuple[int, Site]], lm: LM) -> IbkeNetwork:
        """Return untrained networks for these matrices."""
        assert isinstance(self.config, BottleneckConfig)
        return IbkeNetwork(self.config, sites)


class Ibke(RidgeEditor, BottleneckEditor):
    """Information bottleneck knowledge editor: gradient factors, compressed, reshaped, rescaled."""

    name: ClassVar[str] = "ibke"
    title: ClassVar[str] = "IBKE"
    paper: ClassVar[str] = "Information Bottleneck Knowledge Editor"
    needs: ClassVar[tuple[str, ...]] = ("training",)
    weights: ClassVar[bool] = True
    batch: ClassVar[str] = "joint"
    sequence: ClassVar[str] = "adds"
    sequential: ClassVar[bool] = True
    exports: ClassVar[tuple[str, ...]] = ("lora", "merged")
    Config: ClassVar[type[IbkeConfig]] = IbkeConfig
