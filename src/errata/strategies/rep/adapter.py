"""REP's adapters: small maps in front of an edited projection, one per edit, each with a gate.

An adapter moves a key `k` (`f` numbers) by a low-rank map, `k + gate(k) B A k`. In training the
gate is soft; in use it is hard: the map acts where the gate is above its threshold, and a token
whose gates are all closed is passed on bit for bit.

Source: Yan et al., "Keys to Robust Edits: from Theoretical Insights to Practical Advances".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from errata.patch import Module, Patch, module_kind

KIND = "rep"
"""Name under which patches hold these adapters."""

GATED_AT_ONCE = 2**24
"""Hidden units of gates computed together: tokens times adapters times units of each."""


@dataclass(frozen=True)
class Adapters:
    """Adapters of several edits at one projection, stacked; float32, or float64 on such a model.

    Attributes:
        A: First factor of each map.
        B: Second factor; zero at the start, so that a new adapter changes nothing.
        W1: First matrix of each gate.
        b1: Its bias.
        w2: Second matrix of each gate.
        b2: Its bias.
    """

    A: Float[Tensor, "n r f"]
    B: Float[Tensor, "n f r"]
    W1: Float[Tensor, "n g f"]
    b1: Float[Tensor, "n g"]
    w2: Float[Tensor, "n g"]
    b2: Float[Tensor, " n"]

    @classmethod
    def new(
        cls, size: int, rank: int, inner: int, generators: Sequence[torch.Generator]
    ) -> Adapters:
        """Draw one adapter per generator, as torch initialises linear layers; `B` is zero.

        Args:
            size: `f`, inputs of the projection.
            rank: `r`.
            inner: `g`, hidden units of the gate.
            generators: One on the CPU for each edit, so that what is drawn for an edit does not
                depend on the others.
        """

        def uniform(generator: torch.Generator, *shape: int, inputs: int) -> Tensor:
            bound = 1 / math.sqrt(inputs)
            return (2 * torch.rand(shape, generator=generator) - 1) * bound

        drawn = [
            (
                uniform(g, rank, size, inputs=size),
                torch.zeros(size, rank),
                uniform(g, inner, size, inputs=size),
                uniform(g, inner, inputs=size),
                uniform(g, inner, inputs=inner),
                uniform(g, 1, inputs=inner)[0],
            )
            for g in generators
        ]
        return cls(*(torch.stack(column) for column in zip(*drawn, strict=True)))

    def __len__(self) -> int:
        return len(self.A)

    def tensors(self) -> dict[str, Tensor]:
        """Return the parameters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to(self, device: torch.device, dtype: torch.dtype) -> Adapters:
        """Return the same on a device and in a type."""
        return Adapters(**{name: t.to(device, dtype) for name, t in self.tensors().items()})

    def gate(self, keys: Float[Tensor, "n b f"]) -> Float[Tensor, "n b"]:
        """Return each adapter's gate for its own keys, before the sigmoid."""
        inner = gelu(torch.baddbmm(self.b1[:, None], keys, self.W1.transpose(1, 2)))
        return torch.einsum("nbg,ng->nb", inner, self.w2) + self.b2[:, None]

    def move(
        self, keys: Float[Tensor, "n b f"], scale: float, kept: Float[Tensor, "n b f"] | None = None
    ) -> Float[Tensor, "n b f"]:
        """Return `k + gate(k) scale B A k` with the soft gate of training.

        Args:
            keys: Keys, each adapter's own.
            scale: `alpha / r`.
            kept: Factors of dropout on what the map sees (the gate sees all); None: no dropout.
        """
        seen = keys if kept is None else keys * kept
        moved = torch.bmm(torch.bmm(seen, self.A.transpose(1, 2)), self.B.transpose(1, 2))
        return keys + self.gate(keys).sigmoid()[..., None] * scale * moved

    def module(self, path: str, scale: float, threshold: float) -> Module:
        """Return what a patch holds: the scale goes into `B`, every adapter has its threshold."""
        kept = {name: tensor.detach().cpu() for name, tensor in self.tensors().items()}
        kept["B"] = kept["B"] * scale
        kept["threshold"] = torch.full((len(self),), threshold)
        return Module(path, KIND, {}, kept, where="input")


@module_kind(KIND)
class GatedAdapters(nn.Module):
    """Adapters in use: per token, the one whose gate is open widest moves the key; or none does.

    Args:
        config: Unused.
        tensors: The parameters of [`Adapters`][errata.strategies.rep.adapter.Adapters], and
            `threshold` of shape `[n]`: a gate is open if it is above its threshold. Of equal gates
            the earliest edit's wins.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)

    @property
    def count(self) -> int:
        """Number of adapters."""
        return len(self.get_buffer("A"))

    def gates(self, keys: Float[Tensor, "t f"]) -> Float[Tensor, "t n"]:
        """Return every adapter's gate for every key, before the sigmoid."""
        W1, b1, w2, b2 = (self.get_buffer(name).to(keys) for name in ("W1", "b1", "w2", "b2"))
        n, g, _ = W1.shape
        step = max(1, GATED_AT_ONCE // max(1, len(keys) * g))
        parts = []
        for start in range(0, n, step):
            some = slice(start, min(n, start + step))
            inner = gelu(keys @ W1[some].flatten(0, 1).T + b1[some].flatten())
            inner = inner.view(len(keys), -1, g)
            parts.append(torch.einsum("tng,ng->tn", inner, w2[some]) + b2[some])
        return torch.cat(parts, 1)

    def chosen(self, keys: Float[Tensor, "t f"]) -> Int[Tensor, " t"]:
        """Return for each key the number of the adapter that moves it; -1: none."""
        gates = self.gates(keys)
        # compared before the sigmoid, which rounds all wide-open gates to the same number
        limit = torch.logit(self.get_buffer("threshold").double()).to(gates)
        closed = torch.full_like(gates, -math.inf)
        width, best = torch.where(gates > limit, gates, closed).max(dim=1)
        return torch.where(width > -math.inf, best, -1)

    def forward(self, hidden: Float[Tensor, "*batch f"]) -> Float[Tensor, "*batch f"]:
        """Return `k + B A k` where a gate is open, computed in float32 at least, else `k`."""
        keys = hidden.reshape(-1, hidden.shape[-1])
        wide = keys.to(torch.promote_types(keys.dtype, torch.float32))
        chosen = self.chosen(wide)
        if not bool((chosen >= 0).any()):
            return hidden
        moved = keys
        for number in chosen[chosen >= 0].unique().tolist():
            at = (chosen == number).nonzero()[:, 0]
            A, B = (self.get_buffer(name)[number].to(wide) for name in ("A", "B"))
            new = wide[at] + (wide[at] @ A.T) @ B.T
            moved = moved.index_copy(0, at, new.to(keys.dtype))
        return moved.reshape(hidden.shape)


def split(patch: Patch) -> tuple[Patch, tuple[Module, ...]]:
    """Return a patch without its adapters, and the adapters."""
    rest, own = patch.split(KIND, Module)
    return rest, tuple(own)


def merge(modules: Sequence[Module]) -> tuple[Module, ...]:
    """Join adapters of the same projection, in order, so that their gates are compared.

    Ranks and gate widths may differ: what is missing is filled up with zeros, which add nothing.
    """
    by_path: dict[str, list[Module]] = {}
    for module in modules:
        by_path.setdefault(module.path, []).append(module)
    return tuple(
        group[0] if len(group) == 1 else replace(group[0], weights=_stacked(group))
        for group in by_path.values()
    )


def _stacked(modules: Sequence[Module]) -> dict[str, Tensor]:
    stacked = {}
    for name in modules[0].weights:
        parts = [module.weights[name] for module in modules]
        size = [max(lengths) for lengths in zip(*(part.shape[1:] for part in parts), strict=True)]
        stacked[name] = torch.cat([_filled(part, size) for part in parts])
    return stacked


def _filled(tensor: Tensor, size: Sequence[int]) -> Tensor:
    missing = [want - have for want, have in zip(size, tensor.shape[1:], strict=True)]
    return pad(tensor, [n for extra in reversed(missing) for n in (0, extra)])
