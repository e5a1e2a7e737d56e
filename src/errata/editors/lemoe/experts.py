"""LEMoE's experts beside one FFN, and the router that weighs them.

An expert is a small FFN with factored matrices. The router weighs all experts of an input once, by
the mean of what the FFN is given at the tokens of the prompt: every expert projects the mean with
its own matrices, and the product with the expert's key (an anchor, drawn once and never trained) is
the expert's logit.

Source: the port of Wang and Li, "LEMoE: Advanced Mixture of Experts Adaptor for Lifelong Model
Editing of Large Language Models", 2024, arXiv:2406.20030, in the code of Chen et al., "Lifelong
Knowledge Editing for Vision Language Models with Low-Rank Mixture-of-Experts". The paper itself was
not at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot, relu, silu

from errata.errors import PatchError
from errata.patch import Module, module_kind

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.model.passes import Pass

KIND = "lemoe"
"""Name under which patches hold experts."""

VERSION = 1
"""Format of experts in a patch."""

NAMES = ("c1", "r1", "c2", "r2", "down", "up", "keys")
"""Tensors of an expert; all but the last are trained."""

NARROWER = 4
"""Inside, the router's projection has a quarter of the width of what it reads, as in the port."""

RouteOn = Literal["prompt", "all"]
TopK = Literal["all", 1]


@dataclass(frozen=True)
class Experts:
    """Experts in the order in which they were added, float32 at least.

    Attributes:
        c1: With `r1` the first matrix, `C1 R1^T`.
        r1: See `c1`.
        c2: With `r2` the second matrix, `C2 R2^T`.
        r2: See `c2`.
        down: First matrix of the router's projection.
        up: Its second matrix.
        keys: What the projection is multiplied with.
    """

    c1: Float[Tensor, "n d_in r"]
    r1: Float[Tensor, "n f r"]
    c2: Float[Tensor, "n f r"]
    r2: Float[Tensor, "n d_out r"]
    down: Float[Tensor, "n d_in h"]
    up: Float[Tensor, "n h d_in"]
    keys: Float[Tensor, "n d_in"]

    @classmethod
    def empty(
        cls, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, device: torch.device
    ) -> Experts:
        """Return no experts, of given shapes."""
        return cls(**{n: torch.zeros(0, *s, dtype=dtype, device=device) for n, s in shapes.items()})

    def __len__(self) -> int:
        return len(self.keys)

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        return {name: getattr(self, name) for name in NAMES}

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors().values())

    def added(self, one: Mapping[str, Tensor]) -> Experts:
        """Return the experts with one more; the earlier ones keep their bits."""
        return Experts(**{n: torch.cat([t, one[n][None].to(t)]) for n, t in self.tensors().items()})

    def routed(self, down: Float[Tensor, "d_in h"], up: Float[Tensor, "h d_in"]) -> Experts:
        """Return the same with another projection of the last expert."""
        return replace(
            self,
            down=torch.cat([self.down[:-1], down[None]]),
            up=torch.cat([self.up[:-1], up[None]]),
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> Experts:
        """Return the same on a device and in a type."""
        return Experts(**{name: t.to(device, dtype) for name, t in self.tensors().items()})

    # ------------------------------------------------------------------ at work

    def logits(self, means: Float[Tensor, "b d_in"]) -> Float[Tensor, "b n"]:
        """Return the router's logits of every input."""
        # k . (s up) = s . (up k), which needs no projected vector per input and expert
        anchors = torch.einsum("nhd,nd->nh", self.up, self.keys)
        return torch.einsum(
            "bnh,nh->bn", silu(torch.einsum("bd,ndh->bnh", means, self.down)), anchors
        )

    def weights(self, means: Float[Tensor, "b d_in"], top_k: TopK) -> Float[Tensor, "b n"]:
        """Return how much every expert counts for every input; each row sums to one."""
        logits = self.logits(means)
        if top_k == 1:
            return one_hot(logits.argmax(1), len(self)).to(logits)
        return logits.softmax(1)

    def inner(self, expert: int, x: Float[Tensor, "b t d_in"]) -> Float[Tensor, "b t r"]:
        """Return what an expert computes before its last matrix."""
        c1, r1, c2 = self.c1[expert], self.r1[expert], self.c2[expert]
        return relu((x @ c1) @ r1.T) @ c2

    def mixed(
        self, x: Float[Tensor, "b t d_in"], weights: Float[Tensor, "b n"]
    ) -> Float[Tensor, "b t d_out"]:
        """Return the weighted sum of what the experts answer; one without weight is not run."""
        total = x.new_zeros(*x.shape[:2], self.r2.shape[1])
        for expert in range(len(self)):
            rows = weights[:, expert].nonzero()[:, 0]
            if not len(rows):
                continue
            everyone = len(rows) == len(x)
            inner = self.inner(expert, x if everyone else x[rows])
            own = weights[:, expert] if everyone else weights[rows, expert]
            term = (own[:, None, None] * inner) @ self.r2[expert].T
            total = total + term if everyone else total.index_add(0, rows, term)
        return total

    # ------------------------------------------------------------------ in patches

    def module(self, path: str, source: str, route_on: RouteOn, top_k: TopK) -> Module:
        """Return what a patch holds of them."""
        config = {"version": VERSION, "route_on": route_on, "top_k": top_k}
        kept = {name: t.detach().cpu() for name, t in self.tensors().items()}
        return Module(path, KIND, config, kept, where="both", source=source)

    @classmethod
    def restored(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: str = "this FFN"
    ) -> Experts:
        """Return the experts of a patch.

        Raises:
            PatchError: If they are of another version, or tensors are missing or do not fit.
        """
        version = config.get("version")
        if version != VERSION:
            raise PatchError(
                f"LEMoE's experts at {path} have format {version}; this errata reads {VERSION}",
                "Use the version of errata that patch.json names, or make the patch again.",
            )
        missing = [name for name in NAMES if name not in tensors]
        if missing:
            raise PatchError(f"LEMoE's experts at {path} lack their {', '.join(missing)}")
        counts = sorted({len(tensors[name]) for name in NAMES})
        if len(counts) > 1:
            raise PatchError(
                f"LEMoE's experts at {path} have tensors for {' and '.join(map(str, counts))} "
                "experts; expected as many of each"
            )
        return cls(**{name: tensors[name] for name in NAMES})


@dataclass(frozen=True)
class ExpertMemory:
    """What a patch of LEMoE holds: experts, and with `top_k=1` what their router was taught.

    Attributes:
        experts: The experts.
        means: What routes each edit so far; empty unless `top_k=1`.
        owner: The expert that each of these edits was given to.
    """

    experts: Experts
    means: Float[Tensor, "m d_in"]
    owner: Int[Tensor, " m"]

    @classmethod
    def empty(
        cls, shapes: Mapping[str, tuple[int, ...]], dtype: torch.dtype, device: torch.device
    ) -> ExpertMemory:
        """Return a memory without experts."""
        means = torch.zeros(0, *shapes["keys"], dtype=dtype, device=device)
        owner = torch.zeros(0, dtype=torch.long, device=device)
        return cls(Experts.empty(shapes, dtype, device), means, owner)

    def added(
        self, one: Mapping[str, Tensor], means: Float[Tensor, "b d_in"] | None = None
    ) -> ExpertMemory:
        """Return the memory with one more expert, and with what routes its edits."""
        experts = self.experts.added(one)
        if means is None:
            return replace(self, experts=experts)
        owner = self.owner.new_full((len(means),), len(self.experts))
        return ExpertMemory(
            experts, torch.cat([self.means, means.to(self.means)]), torch.cat([self.owner, owner])
        )

    def state(self) -> dict[str, Tensor]:
        """Return what a patch holds of it for the next edit."""
        if not len(self.means):
            return {}
        return {"lemoe.means": self.means.cpu(), "lemoe.owner": self.owner.cpu()}

    @classmethod
    def restored(cls, module: Module, state: Mapping[str, Any], top_k: TopK) -> ExpertMemory:
        """Return the memory of a patch.

        Raises:
            PatchError: If it is of another version, or `top_k` needs edits that it does not name.
        """
        experts = Experts.restored(module.config, module.weights, module.path)
        if top_k == "all":
            return cls(experts, experts.keys[:0], torch.zeros(0, dtype=torch.long))
        means, owner = state.get("lemoe.means"), state.get("lemoe.owner")
        if (
            not isinstance(means, Tensor)
            or not isinstance(owner, Tensor)
            or len(means) != len(owner)
            or sorted(set(owner.tolist())) != list(range(len(experts)))
        ):
            raise PatchError(
                f"the patch holds LEMoE's experts at {module.path} without what routes their edits",
                "It can be applied, but not extended; make it again with --editor lemoe.",
            )
        return cls(experts, means, owner)

    def to(self, device: torch.device, dtype: torch.dtype) -> ExpertMemory:
        """Return the same on a device and in a type."""
        return ExpertMemory(
            self.experts.to(device, dtype), self.means.to(device, dtype), self.owner.to(device)
        )


def shapes_of(d_in: int, f: int, d_out: int, rank: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of one expert's tensors by name."""
    narrow = max(1, d_in // NARROWER)
    return {
        "c1": (d_in, rank), "r1": (f, rank), "c2": (f, rank), "r2": (d_out, rank),
        "down": (d_in, narrow), "up": (narrow, d_in), "keys": (d_in,),
    }  # fmt: skip


def dtype_of(lm: LM) -> torch.dtype:
    """Return the type of experts: float32, or float64 on such a model."""
    return torch.float64 if lm.dtype == torch.float64 else torch.float32


def mean_of(x: Float[Tensor, "b t d_in"], counted: Bool[Tensor, "b t"]) -> Float[Tensor, "b d_in"]:
    """Return the mean over the tokens that count; padding never does."""
    some = counted[..., None].to(x.dtype)
    return (x * some).sum(1) / some.sum(1).clamp(min=1)


@module_kind(KIND)
class Mixture(nn.Module):
    """Experts at work beside an FFN: what they answer, weighed by the router, is added.

    Args:
        config: `version`, `route_on` and `top_k`.
        tensors: Those of [`Experts`][errata.editors.lemoe.experts.Experts].

    Raises:
        PatchError: If they are of another version, or do not fit together.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.route_on: RouteOn = config.get("route_on", "prompt")
        self.top_k: TopK = config.get("top_k", "all")
        for name, tensor in Experts.restored(config, tensors).tensors().items():
            self.register_buffer(name, tensor, persistent=False)

    @property
    def sees_pass(self) -> bool:
        """Whether it has to be told where prompts end; one expert always has the weight one."""
        return len(self.experts) > 1

    @property
    def experts(self) -> Experts:
        """The experts, where the network lies."""
        return Experts(**{name: self.get_buffer(name) for name in NAMES})

    def forward(
        self,
        given: Float[Tensor, "*batch d_in"],
        output: Float[Tensor, "*batch d_out"],
        seen: Pass | None = None,
    ) -> Float[Tensor, "*batch d_out"]:
        """Return `output` with the experts' answer added, rounded once."""
        experts = self.experts
        if seen is None:
            x = given.reshape(1, -1, given.shape[-1]).to(experts.c1)
            weights = x.new_ones(1, 1)
        else:
            counted = seen.prompt_mask if self.route_on == "prompt" else seen.mask
            x = given.reshape(len(counted), -1, given.shape[-1]).to(experts.c1)
            weights = experts.weights(mean_of(x, counted), self.top_k)
        term = experts.mixed(x, weights)
        return (output.to(term.dtype) + term.reshape(output.shape)).to(output.dtype)
