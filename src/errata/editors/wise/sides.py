"""WISE's side memories: copies of one matrix that were moved by edits, and how they are merged.

A copy is held as its difference to the matrix, so that it stands on whatever an earlier patch has
made of it: where the module puts out `y` for an input `x`, the copy puts out `y + D x`.

Source: Wang et al., "WISE: Rethinking the Knowledge Memory for Lifelong Model Editing of Large
Language Models", 2024, arXiv:2405.14768.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from errata.errors import PatchError
from errata.patch import Module
from errata.store.digest import seed_of

KIND = "wise"
"""Name under which patches hold side memories."""

VERSION = 1
"""Format of side memories in a patch."""

Merge = Literal["ties", "mean", "none"]
RouteOn = Literal["prompt", "all"]


@dataclass(frozen=True)
class Margins:
    """What distances of activations are pushed to.

    Attributes:
        alpha: That of an irrelevant text stays below.
        beta: That of an edit stays above.
        gamma: By which the second exceeds the first.
    """

    alpha: float
    beta: float
    gamma: float


@dataclass(frozen=True)
class Use:
    """How side memories are used; the same for all edits of a patch.

    Attributes:
        activation: Function that outputs are compared behind; a name of transformers, or `none`.
        act_ratio: Share of the least distance of its edits from which a memory answers.
        route_on: Tokens whose distances count.
        long: A text of more tokens is as far as its farthest token.
    """

    activation: str
    act_ratio: float
    route_on: RouteOn
    long: int

    def config(self) -> dict[str, Any]:
        """Return what a patch holds of it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Use:
        """Return what a patch says."""
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Sides:
    """The memories of one patch, float32 at least; the last one may still be written to.

    Attributes:
        deltas: Difference of each copy to the matrix.
        acts: Least distance that an edit of each memory had when it was made.
        open: Edits in the last memory, which takes more; 0: all are closed.
        count: Edits so far.
    """

    deltas: Float[Tensor, "m d f"]
    acts: Float[Tensor, " m"]
    open: int = 0
    count: int = 0

    @classmethod
    def empty(cls, d: int, f: int, dtype: torch.dtype, device: torch.device) -> Sides:
        """Return no memories."""
        made = {"dtype": dtype, "device": device}
        return cls(torch.zeros(0, d, f, **made), torch.zeros(0, **made))

    def __len__(self) -> int:
        return len(self.acts)

    @property
    def nbytes(self) -> int:
        """Bytes of all memories."""
        return self.deltas.numel() * self.deltas.element_size()

    @property
    def current(self) -> Float[Tensor, "d f"]:
        """Where the next edit starts: the open memory, or the matrix itself."""
        return self.deltas[-1] if self.open else self.deltas.new_zeros(self.deltas.shape[1:])

    def written(self, delta: Float[Tensor, "d f"], act: float, save_freq: int) -> Sides:
        """Return the memories after one more edit; the one it is in closes once it holds enough.

        Args:
            delta: The copy as the edit left it.
            act: The edit's distance.
            save_freq: Edits of a memory.
        """
        least = min(act, float(self.acts[-1])) if self.open else act
        kept = len(self) - (1 if self.open else 0)
        count = self.open + 1
        return Sides(
            torch.cat([self.deltas[:kept], delta[None].to(self.deltas)]),
            torch.cat([self.acts[:kept], self.acts.new_tensor([least])]),
            0 if count >= save_freq else count,
            self.count + 1,
        )

    def merged(self, last: int, merge: Merge, density: float) -> Sides:
        """Return the memories with the last few as one."""
        kept = len(self) - last
        one = (ties if merge == "ties" else mean)(list(self.deltas[kept:]), density)
        return replace(
            self,
            deltas=torch.cat([self.deltas[:kept], one[None]]),
            acts=torch.cat([self.acts[:kept], self.acts[kept:].min()[None]]),
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> Sides:
        """Return the same on a device and in a type."""
        return replace(self, deltas=self.deltas.to(device, dtype), acts=self.acts.to(device, dtype))

    # ------------------------------------------------------------------ in patches

    def module(self, path: str, use: Use, margins: Margins) -> Module:
        """Return what a patch holds of them."""
        config = {
            "version": VERSION, "open": self.open, "count": self.count, **use.config(),
            "alpha": margins.alpha, "beta": margins.beta, "gamma": margins.gamma,
        }  # fmt: skip
        kept = {"deltas": self.deltas.detach().cpu(), "acts": self.acts.detach().cpu()}
        return Module(path, KIND, config, kept, where="both")

    @classmethod
    def restored(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: str = "this matrix"
    ) -> Sides:
        """Return the memories of a patch.

        Raises:
            PatchError: If they are of another version, or tensors are missing or do not fit.
        """
        version = config.get("version")
        if version != VERSION:
            raise PatchError(
                f"WISE's memories at {path} have format {version}; this errata reads {VERSION}",
                "Use the version of errata that patch.json names, or make the patch again.",
            )
        try:
            deltas, acts = tensors["deltas"], tensors["acts"]
        except KeyError as missing:
            raise PatchError(f"WISE's memories at {path} lack their {missing.args[0]}") from None
        if deltas.ndim != 3 or len(deltas) != len(acts):
            raise PatchError(
                f"WISE's memories at {path} are {tuple(deltas.shape)} with {len(acts)} distances; "
                "expected memories x outputs x inputs, and a distance of each"
            )
        return cls(deltas, acts, int(config["open"]), int(config["count"]))


def ties(deltas: Sequence[Float[Tensor, "d f"]], density: float) -> Float[Tensor, "d f"]:
    """Merge differences that disagree: the largest of each, where their sum has their sign.

    Each keeps its `density` largest entries; the sign of an entry is that of the sum (a sum of zero
    counts as positive), and the mean of those that have it stands for all.
    """
    kept = [_largest(delta, density) for delta in deltas]
    total = torch.stack(kept).sum(0)
    sign = torch.where(total >= 0, 1.0, -1.0).to(total)
    agree = [(one.sign() == sign).to(total) for one in kept]
    count = torch.stack(agree).sum(0)
    value = sum((one * own for one, own in zip(kept, agree, strict=True)), torch.zeros_like(total))
    return value / count.clamp(min=1)


def mean(deltas: Sequence[Float[Tensor, "d f"]], density: float) -> Float[Tensor, "d f"]:
    """Return the mean of differences; `density` has no say."""
    return torch.stack(list(deltas)).mean(0)


def _largest(delta: Float[Tensor, "d f"], density: float) -> Float[Tensor, "d f"]:
    flat = delta.reshape(-1)
    top = flat.abs().topk(int(density * flat.numel())).indices
    return torch.zeros_like(flat).index_copy(0, top, flat[top]).reshape(delta.shape)


def mask_of(
    shape: tuple[int, int], ratio: float, seed: int, number: int, *, transposed: bool, compat: bool
) -> Bool[Tensor, "d f"]:
    """Draw which entries of a memory may move.

    Args:
        shape: Outputs and inputs of the matrix.
        ratio: Share of the entries.
        seed: Of the draw.
        number: Of the memory.
        transposed: Whether the model stores the matrix the other way round.
        compat: Draw as the published code does: memories one after the other from numpy's
            generator, in the order in which the model stores the entries.
    """
    if not compat:
        generator = torch.Generator().manual_seed(seed_of(f"wise\0{seed}\0{number}"))
        return torch.rand(shape, generator=generator) < ratio
    import numpy as np

    drawn = np.random.RandomState(seed)
    for _ in range(number):
        drawn.random_sample(shape[0] * shape[1])
    values = torch.from_numpy(drawn.random_sample(shape[0] * shape[1]) < ratio)
    return values.reshape(shape[::-1]).T if transposed else values.reshape(shape)
