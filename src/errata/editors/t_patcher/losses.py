"""What makes T-Patcher's units fire at their edit and keep quiet in other text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

CLOSEST = 5
"""Of a unit's activations where it should fire, the worst few count (original form)."""

NEAREST = 1000
"""Of the activations on remembered states, the highest ones count (original form)."""

MARGIN = 3.0
"""By how much an activation should stay below that of the edit, and below zero (original form)."""

Penalty = Callable[[int, Float[Tensor, "G p u d"], Float[Tensor, "G p u"] | None], Tensor]
"""Further loss of every group, given the step, the keys and the biases."""


def _activations(
    keys: Float[Tensor, "G p u d"], biases: Float[Tensor, "G p u"] | None, x: Tensor
) -> Float[Tensor, "G p u t"]:
    """Return `x k + b`; `x` is `[G, t, d]` or, for all groups the same, `[t, d]`."""
    found = keys @ (x.T if x.ndim == 2 else x.transpose(1, 2)[:, None])
    return found if biases is None else found + biases[..., None]


@dataclass(frozen=True)
class TextPenalty:
    """UniEdit's losses: a unit fires at its edit's tokens and not in a paragraph.

    `w_a * mean exp(-a) + w_m * mean exp(max(0, a'))`, summed over gate and up; `a` at the tokens of
    the edit, `a'` at those of one paragraph per step.

    Attributes:
        own: The FFN's input at each group's tokens.
        mask: Which of them count.
        texts: Per paragraph its input in every model that there is, `[S, T, d]`.
        which: For each group, its model; None: there is only one.
        weights: Of activation and memory.
    """

    own: Float[Tensor, "G t d"]
    mask: Bool[Tensor, "G t"]
    texts: Sequence[Float[Tensor, "S T d"]]
    which: Int[Tensor, " G"] | None
    weights: tuple[float, float]

    @classmethod
    def of(
        cls,
        own: Sequence[Float[Tensor, "T d"]],
        counted: Sequence[Sequence[int]],
        memory: Sequence[Sequence[Float[Tensor, "T d"]]],
        which: Int[Tensor, " G"] | None,
        weights: tuple[float, float],
    ) -> TextPenalty:
        """Lay out rows of different lengths.

        Args:
            own: The FFN's input at each group's tokens.
            counted: The tokens of each group that count.
            memory: For each model that there is, the FFN's input in every paragraph.
            which: For each group, its model; None: there is only one.
            weights: Of activation and memory.
        """
        padded = pad_sequence(list(own), batch_first=True)
        mask = torch.zeros(padded.shape[:2], dtype=torch.bool, device=padded.device)
        for g, positions in enumerate(counted):
            mask[g, list(positions)] = True
        texts = [torch.stack(same).to(padded) for same in zip(*memory, strict=True)]
        return cls(padded, mask, texts, which, weights)

    def __call__(
        self, step: int, keys: Float[Tensor, "G p u d"], biases: Float[Tensor, "G p u"] | None
    ) -> Float[Tensor, " G"]:
        """Return the loss of every group."""
        mask = self.mask[:, None, None]
        fires = (-_activations(keys, biases, self.own)).exp().where(mask, torch.zeros(()).to(keys))
        fires = fires.sum(-1) / mask.sum(-1)
        text = self.texts[step % len(self.texts)]
        text = text[0] if self.which is None else text[self.which]
        quiet = _activations(keys, biases, text).clamp(min=0).exp().mean(-1)
        return (self.weights[0] * fires + self.weights[1] * quiet).sum(1).mean(-1)


@dataclass(frozen=True)
class StatesPenalty:
    """The original losses: a unit fires at its own token, and above all remembered states.

    `w_a * A + w_m * (M1 + M2)`, summed over gate and up: `A` the mean of the highest `exp(-a)`,
    `M1` and `M2` means of the highest `exp(a' - a + 3)` and `exp(a' + 3)`, over all pairs of a unit
    with a remembered state.

    Attributes:
        own: The FFN's input at the token of each unit.
        real: Which units there are.
        states: Remembered states of every model that there is.
        which: For each group, its model; None: there is only one.
        edits: Remembered states of each group's earlier edits.
        there: Which of those there are.
        weights: Of activation and memory.
    """

    own: Float[Tensor, "G u d"]
    real: Bool[Tensor, "G u"]
    states: Float[Tensor, "S m d"]
    which: Int[Tensor, " G"] | None
    edits: Float[Tensor, "G e d"]
    there: Bool[Tensor, "G e"]
    weights: tuple[float, float]

    @classmethod
    def of(
        cls,
        own: Sequence[Float[Tensor, "u d"]],
        edits: Sequence[Float[Tensor, "e d"]],
        memory: Sequence[Float[Tensor, "m d"]],
        which: Int[Tensor, " G"] | None,
        weights: tuple[float, float],
    ) -> StatesPenalty:
        """Lay out groups with different numbers of units and edits.

        Args:
            own: The FFN's input at the token of each unit, for each group.
            edits: What each group remembers of its earlier edits.
            memory: Remembered states of each model that there is.
            which: For each group, its model; None: there is only one.
            weights: Of activation and memory.
        """
        padded, real = _padded(own)
        before, there = _padded([states.to(padded) for states in edits])
        return cls(
            padded, real, torch.stack(list(memory)).to(padded), which, before, there, weights
        )

    def __call__(
        self, step: int, keys: Float[Tensor, "G p u d"], biases: Float[Tensor, "G p u"] | None
    ) -> Float[Tensor, " G"]:
        """Return the loss of every group."""
        here = _activations(keys, biases, self.own).diagonal(dim1=2, dim2=3)  # G p u
        own = self.real[:, None]
        fires = _worst((-here).exp(), own, CLOSEST)
        states = self.states[0] if self.which is None else self.states[self.which]
        base = _activations(keys, biases, states)
        edits = _activations(keys, biases, self.edits)
        memory = torch.cat([base, edits], -1)
        known = torch.ones(len(keys), base.shape[-1], dtype=torch.bool, device=keys.device)
        counts = torch.cat([known, self.there], -1)[:, None, None] & own[..., None]
        below = _worst((memory - here[..., None] + MARGIN).exp(), counts, NEAREST)
        silent = _worst((memory + MARGIN).exp(), counts, NEAREST)
        return (self.weights[0] * fires + self.weights[1] * (below + silent)).sum(1)


def _worst(
    loss: Float[Tensor, "G p *any"], counts: Bool[Tensor, "G 1 *any"], k: int
) -> Float[Tensor, "G p"]:
    """Return the mean of the `k` highest losses of each group, of all if there are fewer."""
    flat = loss.where(counts, torch.zeros(()).to(loss)).flatten(2)  # losses are above 0
    number = counts.flatten(1).sum(1).clamp(max=k)
    top = flat.topk(min(k, flat.shape[-1]), dim=-1).values
    return top.sum(-1) / number[:, None]


def _padded(
    rows: Sequence[Float[Tensor, "n d"]],
) -> tuple[Float[Tensor, "G n d"], Bool[Tensor, "G n"]]:
    """Return tensors of different lengths as one, and what of it is real."""
    real = [torch.ones(len(row), dtype=torch.bool, device=row.device) for row in rows]
    return pad_sequence(list(rows), batch_first=True), pad_sequence(real, batch_first=True)
