"""Training T-Patcher's units: one edit of each of many groups at once, each beside its own FFN."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from errata.editors.t_patcher.losses import Penalty
from errata.editors.t_patcher.memory import inputs_of
from errata.editors.t_patcher.units import Units, stacked
from errata.model.tokens import Batch, Row, bucket, positions_of
from errata.nets.ffn import FfnForm
from errata.progress import tracked
from errata.tuning.adam import RowAdam
from errata.tuning.branch import Branch
from errata.tuning.rows import TuningRows

if TYPE_CHECKING:
    from errata.model.lm import LM


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
    """A block's FFN and rows of several groups, one each, which name their other changes."""

    lm: LM
    layer: int
    form: FfnForm

    def inputs(self, rows: Sequence[Row]) -> list[Float[Tensor, "T d"]]:
        """Return the FFN's input at all tokens of each row."""
        return inputs_of(self.lm, self.layer, rows)

    @torch.no_grad()
    def wrong(self, rows: Sequence[Row], frozen: Sequence[Units]) -> list[list[int]]:
        """Return for each row the positions at which the model does not predict its label."""
        found: list[list[int]] = [[] for _ in rows]
        for index in bucket(rows, self.lm.max_tokens):
            batch = self.lm.batch(rows, index)
            branch = Branch(self.lm, self.layer, [], _network(self.form, frozen, None))
            at = positions_of(rows, index, self.lm.device)
            prompts = torch.tensor([rows[i].prompt_length for i in index])
            like = [frozen[0].values]
            with branch.installed(index, like, batch, prompts):
                best = self.lm.logits(batch, at).argmax(-1).tolist()
            wanted = [(i, p, n) for i in index
                      for p, n in zip(rows[i].positions, rows[i].labels, strict=True)]  # fmt: skip
            for (i, position, label), token in zip(wanted, best, strict=True):
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
        tuning = TuningRows(branch, [[row] for row in rows], extra)
        adam = RowAdam(values, schedule.lr, schedule.weight_decay)
        running = torch.ones(len(rows), dtype=torch.bool, device=values[0].device)
        with self.lm.searching():
            for step in tracked(range(schedule.steps), "training units, step"):
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
