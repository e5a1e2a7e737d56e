"""WISE at work: the memory that moves a question's activations most answers it, if it does enough.

Where no memory does, the module's own output is passed on bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from errata.editors.wise.sides import KIND, Sides, Use
from errata.errors import ModelError
from errata.model.passes import Pass, wide
from errata.patch import module_kind

Activation = Callable[[Tensor], Tensor]


def activation_of(name: str) -> Activation:
    """Return an activation function by the name that transformers has for it; `none`: no function.

    Raises:
        ModelError: If there is none of that name.
    """
    from transformers.activations import ACT2FN

    if name == "none":
        return lambda x: x
    try:
        return ACT2FN[name]
    except KeyError:
        raise ModelError(
            f"unknown activation function {name!r}",
            "Give one that transformers knows: --set activation=gelu (or silu, relu, none)",
        ) from None


def moved(
    y: Float[Tensor, "B T d"], term: Float[Tensor, "B T d"], activation: Activation
) -> Float[Tensor, "B T"]:
    """Return how far a memory moves each token's activations."""
    return (activation(y + term) - activation(y)).norm(dim=-1)


def distances(
    far: Float[Tensor, "B T"], counted: Bool[Tensor, "B T"], long: int
) -> Float[Tensor, " B"]:
    """Return each row's distance: the mean over the tokens that count, of many the largest."""
    own = counted.to(far)
    mean = (far * own).sum(1) / own.sum(1).clamp(min=1)
    return torch.where(counted.sum(1) > long, (far * own).amax(1), mean)


@module_kind(KIND)
class SideRoute(nn.Module):
    """Side memories at work behind a matrix.

    Args:
        config: What [`Sides.module`][errata.editors.wise.sides.Sides.module] wrote.
        tensors: The memories.

    Raises:
        PatchError: If they are of another version.
    """

    sees_pass = True

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.use = Use.of(config)
        self.activation = activation_of(self.use.activation)
        self.open = int(config["open"])
        sides = Sides.restored(config, tensors)
        self.register_buffer("deltas", sides.deltas, persistent=False)
        self.register_buffer("acts", sides.acts, persistent=False)

    def forward(
        self,
        given: Float[Tensor, "B T f"],
        output: Float[Tensor, "B T d"],
        seen: Pass,
    ) -> Float[Tensor, "B T d"]:
        """Return `output`, in the rows that a memory answers as the memory has it."""
        chosen = self.chosen(given, output, seen)
        deltas = self.get_buffer("deltas")
        for memory in sorted(set(chosen.tolist()) - {-1}):
            rows = (chosen == memory).nonzero()[:, 0]
            x, y = given[rows].to(deltas), wide(output[rows]).to(deltas.dtype)
            new = (y + x @ deltas[memory].T).to(output.dtype)
            output = output.index_copy(0, rows, new)
        return output

    @torch.no_grad()
    def chosen(
        self, given: Float[Tensor, "B T f"], output: Float[Tensor, "B T d"], seen: Pass
    ) -> Int[Tensor, " B"]:
        """Return the memory that answers each row, -1: none.

        The one that is still written to is asked first, then all others in the order in which they
        were closed: each has to move the row farther than the open one or the one chosen so far.
        """
        far = self.distances(given, output, seen)
        chosen = torch.full((len(given),), -1, device=given.device)
        if not len(far):
            return chosen
        passes = far > self.use.act_ratio * self.get_buffer("acts")[:, None]
        farthest = torch.zeros_like(far[0])
        order = list(range(len(far)))
        if self.open:
            last = order.pop()
            at_least = far[last] >= self.use.act_ratio * self.get_buffer("acts")[last]
            chosen = torch.where(at_least, last, chosen)
            farthest = far[last]
        for memory in order:
            takes = passes[memory] & (far[memory] > farthest)
            chosen = torch.where(takes, memory, chosen)
            farthest = torch.where(takes, far[memory], farthest)
        return chosen

    @torch.no_grad()
    def distances(
        self, given: Float[Tensor, "B T f"], output: Float[Tensor, "B T d"], seen: Pass
    ) -> Float[Tensor, "m B"]:
        """Return how far each memory moves each row."""
        deltas = self.get_buffer("deltas")
        counted = seen.prompt_mask if self.use.route_on == "prompt" else seen.mask
        x, y = given.to(deltas), output.to(deltas)
        found = [
            distances(moved(y, x @ delta.T, self.activation), counted, self.use.long)
            for delta in deltas
        ]
        return torch.stack(found) if found else x.new_zeros(0, len(x))
