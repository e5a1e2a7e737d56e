"""MALMEN: desired changes of values, token by token, joined into one shift by ridge regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from errata.editors.base_trained import TrainedConfig, TrainedEditor
from errata.errors import EditError
from errata.model.lm import LM
from errata.model.spec import Site
from errata.nets.capture import Factors, Signals
from errata.nets.normalise import Norm, Normaliser
from errata.nets.rates import EditRates, RateSpace
from errata.nets.update import FactorNetwork, Term, Update


class MalmenConfig(TrainedConfig):
    """Settings of MALMEN's networks; the defaults are those published."""

    width: int = Field(default=1920, ge=1, description="Rank of each block's matrix")
    n_blocks: int = Field(default=2, ge=1, le=100, description="Blocks of each network")
    norm: Norm = Field(default="running", description="How signals are normalised")
    token: Literal["mask", "answer"] = Field(
        default="mask",
        description="Tokens whose values are changed: mask: all; answer: those that predict the "
        "target",
    )
    eta: float = Field(default=1e-6, gt=0, description="Edit learning rate before calibration")
    eta_space: RateSpace = Field(
        default="direct", description="log: its logarithm is learned; direct: itself, as published"
    )
    log_ridge: float = Field(
        default=0.0, description="Logarithm of the ridge at the start; learned per matrix"
    )
    chunk: int = Field(
        default=1024, ge=1,
        description="Tokens that pass the network at a time; in training each chunk is computed "
        "again for its gradient, so that memory does not grow with the number of edits",
    )  # fmt: skip


class Block(nn.Module):
    """`z + m ⊙ max(0, z A B + b) + a`; unlike MEND's layer the scale stands outside the clamp.

    The clamp's gradient at zero is one, a ReLU's is zero, and would never start to learn.
    """

    def __init__(self, width: int, rank: int, modes: int) -> None:
        super().__init__()
        rank = min(rank, width)
        self.a = nn.Parameter(torch.randn(width, rank))
        self.b = nn.Parameter(torch.zeros(rank, width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.mode_scale = nn.Parameter(torch.ones(modes, width))
        self.mode_shift = nn.Parameter(torch.zeros(modes, width))

    def forward(self, z: Float[Tensor, "*batch D"], mode: int) -> Float[Tensor, "*batch D"]:
        """Transform signals; `mode` is the number of the matrix among those of its shape."""
        inner = (z @ self.a @ self.b + self.bias).clamp(min=0)
        return z + self.mode_scale[mode] * inner + self.mode_shift[mode]


class _Solve(torch.autograd.Function):
    """`(Q + e^λ I)^{-1} R` from the Cholesky factor of the matrix, `Q` being a constant.

    The backward pass is one more solve with the same factor: with `P` the solution for the
    incoming gradient, `dR = P` and `dλ = −e^λ ⟨P, X⟩`.
    """

    @staticmethod
    def forward(
        context: Any,
        right: Float[Tensor, "G n d"],
        log_ridge: Float[Tensor, ""],
        factor: Float[Tensor, "G n n"],
    ) -> Float[Tensor, "G n d"]:
        found = torch.cholesky_solve(right.to(factor.dtype), factor)
        context.save_for_backward(found, log_ridge, factor)
        context.kind = right.dtype
        return found.to(right.dtype)

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        found, log_ridge, factor = context.saved_tensors
        back = torch.cholesky_solve(grads[0].to(factor.dtype), factor)
        slope = -log_ridge.exp() * (back * found).sum().to(log_ridge.dtype)
        return back.to(context.kind), slope, None


def ridge_shift(
    keys: Float[Tensor, "G N d_in"],
    changes: Float[Tensor, "G N d_out"],
    log_ridge: Float[Tensor, ""],
    *,
    name: str = "this matrix",
    primal: bool | None = None,
) -> tuple[Float[Tensor, "G r d_in"], Float[Tensor, "G r d_out"]]:
    """Return factors of `S = (KᵀK + e^λ I)^{-1} Kᵀ D`, as `S = keysᵀ values`.

    By the push-through identity `S = Kᵀ (K Kᵀ + e^λ I)^{-1} D`: with few tokens the system has one
    row per token and the factors are `K` and its solution. With more tokens than inputs the form
    above is solved, as published: the system then has one row per input, whatever the number of
    edits. The factors never have more rows than `min(d_in, d_out)`; beyond it one of them is the
    identity. Gradients flow to `changes` and `log_ridge`, not to `keys`.

    Args:
        keys: `K` of each group, padded with zero rows.
        changes: `D`, wanted changes of the outputs, padded with zero rows.
        log_ridge: `λ`.
        name: Of the matrix, for messages.
        primal: Solve with one row per input; default: if there are more tokens than inputs.

    Raises:
        EditError: If the system is singular in float64, or not finite.
    """
    count, d_in = keys.shape[1:]
    d_out = changes.shape[-1]
    if primal is None:
        primal = count > d_in
    with torch.autocast(keys.device.type, enabled=False):
        changes = changes.to(keys.dtype)
        factor = _factor(keys, log_ridge, primal, name)
        if primal:
            dense = _Solve.apply(keys.mT @ changes, log_ridge, factor)
        else:
            solved = _Solve.apply(changes, log_ridge, factor)
            if count <= min(d_in, d_out):
                return keys, solved
            dense = keys.mT @ solved
    eye = torch.eye(min(d_in, d_out), dtype=dense.dtype, device=dense.device)
    eye = eye.expand(len(dense), -1, -1)
    return (eye, dense) if d_in <= d_out else (dense.mT, eye)


@torch.no_grad()
def _factor(
    keys: Float[Tensor, "G N d_in"], log_ridge: Float[Tensor, ""], primal: bool, name: str
) -> Float[Tensor, "G n n"]:
    """Return the Cholesky factor of `KᵀK + e^λ I` or of `K Kᵀ + e^λ I`."""
    exact = keys.double()
    gram = exact.mT @ exact if primal else exact @ exact.mT
    gram.diagonal(dim1=-2, dim2=-1).add_(log_ridge.double().exp())
    factor, info = torch.linalg.cholesky_ex(gram)
    if bool(info.any()):
        raise EditError(
            f"MALMEN cannot solve for {name}: its keys are linearly dependent or not finite, "
            f"and the ridge exp({float(log_ridge):.3g}) is too small",
            "Train with a larger log_ridge, or a smaller learning rate.",
        )
    return factor


def pack(
    owner: Int[Tensor, " E"], mask: Bool[Tensor, "E T"], groups: int
) -> tuple[Int[Tensor, " n"], int]:
    """Return where each of the `n` tokens of `mask` stands if groups are lists of tokens.

    Returns:
        Its place in a `[groups · N]` list, and `N`, the most tokens of any group.
    """
    of = owner[mask.nonzero()[:, 0]]
    sizes = torch.bincount(of, minlength=groups)
    most = max(int(sizes.max()), 1)
    order = torch.argsort(of, stable=True)
    start = torch.cumsum(sizes, 0) - sizes
    slot = torch.empty_like(order)
    slot[order] = torch.arange(len(of), device=of.device) - start[of[order]]
    return of * most + slot, most


class MalmenNetwork(FactorNetwork):
    """One stack of blocks per shape of matrix; a rate and a ridge per matrix.

    The losses' gradient reaches the networks through the factors of the update alone, which
    `errata.training.objective` takes first; the networks are then run again chunk by chunk. This is
    the published decoupling of the two passes, and exact.
    """

    def __init__(self, config: MalmenConfig, sites: Sequence[tuple[int, Site]]) -> None:
        super().__init__()
        self.config = config
        self.paths = [site.path for _, site in sites]
        self.keys = [f"{site.d_in}x{site.d_out}" for _, site in sites]
        self.modes = [self.keys[:number].count(key) for number, key in enumerate(self.keys)]
        self.nets = nn.ModuleDict()
        self.norms = nn.ModuleDict()
        for key, (_, site) in zip(self.keys, sites, strict=True):
            if key in self.nets:
                continue
            width, modes = site.d_in + site.d_out, self.keys.count(key)
            self.nets[key] = nn.ModuleList(
                Block(width, config.width, modes) for _ in range(config.n_blocks)
            )
            self.norms[key] = Normaliser(config.norm, site.d_in, site.d_out)
        self.rates = EditRates(len(sites), config.eta, config.eta_space)
        self.log_ridge = nn.Parameter(torch.full((len(sites),), float(config.log_ridge)))

    def tokens(self, signals: Signals, f: Factors) -> Bool[Tensor, "E T"]:
        """Return the tokens whose values are to change.

        With `token="mask"` those with a zero gradient too, as published: normalised, a gradient of
        zero is not zero.
        """
        if self.config.token == "mask":
            return f.tokens
        wanted = torch.zeros_like(f.mask)
        for at, row in enumerate(signals.rows):
            wanted[at, list(row.positions)] = True
        return wanted

    def observe(self, signals: Signals) -> None:
        """Update running statistics, if the normaliser keeps any."""
        for key, f in zip(self.keys, signals.factors, strict=True):
            norm: Any = self.norms[key]
            norm.observe(f.h, f.u, self.tokens(signals, f))

    def changes(
        self, number: int, h: Float[Tensor, "n d_in"], u: Float[Tensor, "n d_out"]
    ) -> Float[Tensor, "n d_out"]:
        """Return the wanted change of the output at each token: `−η (h·h̃) ũ`."""
        net: Any = self.nets[self.keys[number]]
        norm: Any = self.norms[self.keys[number]]
        rate = self.rates()[number]

        def wanted(h: Tensor, u: Tensor) -> Tensor:
            signal = norm(h, u)[1]
            for block in net:
                signal = block(signal, self.modes[number])
            key, value = signal.split((norm.d_in, norm.d_out), -1)
            return -rate * (h * key).sum(-1, keepdim=True) * value

        again = torch.is_grad_enabled() and len(h) > self.config.chunk
        made = []
        for some in zip(h.split(self.config.chunk), u.split(self.config.chunk), strict=True):
            if again:
                made.append(
                    checkpoint(wanted, *some, use_reentrant=False, preserve_rng_state=False)
                )
            else:
                made.append(wanted(*some))
        return torch.cat(made)

    def forward(self, signals: Signals, noise: Any = None) -> Update:
        """Return the update, joint over the edits of each group."""
        groups = signals.groups
        owner = torch.arange(groups, device=signals.owner.device)
        terms = []
        for number, f in enumerate(signals.factors):
            mask = self.tokens(signals, f)
            place, most = pack(signals.owner, mask, groups)
            h, u = f.h[mask], f.u[mask]

            def listed(x: Tensor, place: Tensor = place, most: int = most) -> Tensor:
                empty = x.new_zeros(groups * most, x.shape[-1])
                return empty.index_copy(0, place, x).view(groups, most, -1)

            keys, values = ridge_shift(
                listed(h), listed(self.changes(number, h, u)), self.log_ridge[number],
                name=self.paths[number],
            )  # fmt: skip
            used = (keys != 0).any(-1) & (values != 0).any(-1)
            terms.append(Term(keys, -values, used, owner))
        return Update(tuple(terms), groups)


class Malmen(TrainedEditor):
    """Massive language model editing network: per-token changes, joined by ridge regression."""

    name: ClassVar[str] = "malmen"
    title: ClassVar[str] = "MALMEN"
    paper: ClassVar[str] = (
        "Tan et al., Massive Editing for Large Language Models via Meta Learning, arXiv:2311.04661"
    )
    needs: ClassVar[tuple[str, ...]] = ("training",)
    weights: ClassVar[bool] = True
    batch: ClassVar[str] = "joint"
    sequence: ClassVar[str] = "adds"
    exports: ClassVar[tuple[str, ...]] = ("lora", "merged")
    Config: ClassVar[type[MalmenConfig]] = MalmenConfig
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "gpt2-xl": {"layers": (42, 43, 44, 45, 46, 47)},
        "gpt-j-6b": {"layers": (22, 23, 24, 25, 26, 27)},
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "pocket": {"layers": (3, 4, 5), "norm": "unit"},
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        "lr": 1e-5, "rate_lr": 1e-5, "clip": 1.0, "calibrate": None, "kl": "original_first",
        "pocket": {
            "lr": 1e-3, "rate_lr": None, "calibrate": 0.1, "kl": "edited_first", "hops": "unknown",
        },
    }  # fmt: skip

    def automatic_layers(self, lm: LM) -> tuple[int, ...]:
        """Return the last six blocks, as published for every model."""
        return tuple(range(max(0, lm.n_layers - 6), lm.n_layers))

    def rule_of(self, lm: LM) -> str:
        """Say which blocks these are."""
        return "rule: the last six blocks"

    def build(self, sites: Sequence[tuple[int, Site]], lm: LM) -> MalmenNetwork:
        """Return untrained networks for these matrices."""
        assert isinstance(self.config, MalmenConfig)
        return MalmenNetwork(self.config, sites)
