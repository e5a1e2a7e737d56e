"""Training T-Patcher's units: one edit of each of many groups at once, each beside its own FFN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from errata.editors._t_patcher_memory import inputs_of
from errata.editors._t_patcher_units import Units, stacked
from errata.locate.adam import RowAdam
from errata.locate.branch import Branch
from errata.locate.tuning import TuningRows
from errata.nets.ffn import FfnForm
from errata.tokens import Batch, Row, bucket, positions_of

if TYPE_CHECKING:
    from errata.apply import Stack
    from errata.lm import LM

CLOSEST = 5
"""Of a unit's activations where it should fire, the worst few count (original form)."""

NEAREST = 1000
"""Of the activations on remembered states, the highest ones count (original form)."""

MARGIN = 3.0
"""By how much an activation should stay below that of the edit, and below zero (original form)."""

Penalty = Callable[[int, Float[Tensor, "G p u d"], Float[Tensor, "G p u"] | None], Tensor]
"""Further loss of every group, given the step, the keys and the biases."""


@dataclass(frozen=True)
class Schedule:
    """How units are trained.

    Attributes:
        steps: Updates.
        lr: Learning rate of Adam.
        weight_decay: L2 term.
        stop_loss: A group whose loss is below this takes no more steps.
        stop_after: Steps before which none stops.
    """

    steps: int
    lr: float
    weight_decay: float
    stop_loss: float
    stop_after: int


@dataclass(frozen=True)
class Start:
    """Where new units start, padded to as many for each group.

    Attributes:
        keys: Keys.
        values: Values.
        biases: Biases; None: units without.
        scale: Trained along with the values, which it multiplies; None: 1 throughout.
        real: Which units there are.
    """

    keys: Float[Tensor, "G p u d"]
    values: Float[Tensor, "G u d_out"]
    biases: Float[Tensor, "G p u"] | None
    scale: Float[Tensor, "G u d_out"] | None
    real: Bool[Tensor, "G u"]


@dataclass(frozen=True)
class Work:
    """Rows of several groups, one each, under the groups' other changes."""

    lm: LM
    layer: int
    form: FfnForm
    stack: Stack | None
    routes: Sequence[int]

    def inputs(self, rows: Sequence[Row]) -> list[Float[Tensor, "T d"]]:
        """Return the FFN's input at all tokens of each row."""
        return inputs_of(self.lm, self.layer, rows, self.stack, self.routes)

    @torch.no_grad()
    def wrong(self, rows: Sequence[Row], frozen: Sequence[Units]) -> list[list[int]]:
        """Return for each row the positions at which the model does not predict its label."""
        found: list[list[int]] = [[] for _ in rows]
        for index in bucket(rows, self.lm.max_tokens):
            batch = self.lm.batch(rows, index)
            if self.stack is not None:
                self.stack.route([self.routes[i] for i in index])
            branch = Branch(self.lm, self.layer, [], _network(self.form, frozen, None))
            at = positions_of(rows, index, self.lm.device)
            prompts = torch.tensor([rows[i].prompt_length for i in index])
            like = [frozen[0].values]
            with branch.installed(index, like, batch, prompts):
                best = self.lm.logits(batch, at).argmax(-1).tolist()
            asked = [(i, p, n) for i in index
                     for p, n in zip(rows[i].positions, rows[i].labels, strict=True)]  # fmt: skip
            for (i, position, label), token in zip(asked, best, strict=True):
                if token != label:
                    found[i].append(position)
        return found

    def train(
        self,
        rows: Sequence[Row],
        frozen: Sequence[Units],
        start: Start,
        penalty: Penalty,
        schedule: Schedule,
    ) -> list[Units]:
        """Train each group's new units on its row; return them without the frozen ones.

        Args:
            rows: One row per group.
            frozen: Units that each group has already; they are at work in training.
            start: Where the new ones start.
            penalty: Loss of activations, added to the cross-entropy of the target.
            schedule: Steps and learning rate.
        """
        values = [start.keys.clone(), start.values.clone()]
        if start.biases is not None:
            values.append(start.biases.clone())
        if start.scale is not None:
            values.append(start.scale.clone())
        step = 0

        def unpacked(leaves: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor | None]:
            biases = leaves[2] if start.biases is not None else None
            value = leaves[1] if start.scale is None else leaves[1] * leaves[-1]
            return leaves[0], value * start.real[..., None], biases

        def extra(leaves: Sequence[Tensor]) -> Float[Tensor, " G"]:
            keys, _, biases = unpacked(leaves)
            return penalty(step, keys, biases)

        network = _network(self.form, frozen, unpacked)
        branch = Branch(self.lm, self.layer, values, network)
        tuning = TuningRows(branch, [[row] for row in rows], self.stack, self.routes, extra)
        adam = RowAdam(values, schedule.lr, schedule.weight_decay)
        running = torch.ones(len(rows), dtype=torch.bool, device=values[0].device)
        for step in range(schedule.steps):
            stop = schedule.stop_loss if step >= schedule.stop_after else 0.0
            loss, grads = tuning.losses(running, stop)
            # "not <" lets a NaN loss through, so that the edit is refused
            running = running & ~(loss < stop)
            if not bool(running.any()):
                break
            adam.step(values, grads, running)
        keys, value, biases = unpacked(values)
        return [
            Units(keys[g][:, own], value[g][own], None if biases is None else biases[g][:, own])
            for g, own in enumerate(start.real)
        ]


def _network(
    form: FfnForm,
    frozen: Sequence[Units],
    unpacked: Callable[[Sequence[Tensor]], tuple[Tensor, Tensor, Tensor | None]] | None,
) -> Callable[..., Tensor]:
    """Return what a branch computes: frozen units of each row's group, and those in training."""
    old_keys, old_biases, old_values = stacked(frozen)

    def network(
        leaves: Sequence[Tensor], owner: Sequence[int], x: Tensor, batch: Batch, prompts: Tensor
    ) -> Float[Tensor, "B T d_out"]:
        mine = torch.tensor(owner, device=x.device)
        keys, biases, values = old_keys[mine], old_biases[mine], old_values[mine]
        if unpacked is not None:
            new_keys, new_values, new_biases = unpacked(leaves)
            if new_biases is None:
                new_biases = new_keys.new_zeros(new_keys.shape[:3])
            keys = torch.cat([keys, new_keys[mine]], 2)
            biases = torch.cat([biases, new_biases[mine]], 2)
            values = torch.cat([values, new_values[mine]], 1)
        parts = torch.einsum("btd,bpnd->btpn", x, keys) + biases[:, None]
        return form.inner(parts) @ values

    return network


# ---------------------------------------------------------------------- losses of activations


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
