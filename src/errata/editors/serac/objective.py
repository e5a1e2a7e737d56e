"""What SERAC's networks learn: answers given an edit, old answers elsewhere, and what belongs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from errata.editors.serac.network import (
    Asked,
    Work,
    full_text,
    read_out,
    shown_text,
    stored_text,
)
from errata.model.passes import wide
from errata.model.tokens import Row
from errata.nets.scope import scope_loss
from errata.training.objective import Counts, Objective

if TYPE_CHECKING:
    from errata.editors.serac.editor import SeracConfig
    from errata.model.lm import LM
    from errata.training.config import TrainConfig
    from errata.training.groups import Group
    from errata.training.prepared import Prepared


class SeracObjective(Objective):
    """Cross-entropy of edits and of generality questions, divergence at others, and the router's.

    The first two are means over their own tokens, so that edits weigh as much as questions. A
    group's questions are asked under one of its main edits each: one is all that is retrieved.
    """

    def __init__(
        self, lm: LM, prepared: Prepared, config: TrainConfig, settings: SeracConfig
    ) -> None:
        super().__init__(lm, prepared, config)
        self.settings = settings

    def start(self, network: Any, groups: Sequence[Group], mine: Sequence[Group]) -> None:
        """Nothing is measured before the first step."""

    @torch.no_grad()
    def is_finite(self, network: Any, group: Group) -> bool:
        """Whether a group by itself gives a finite loss."""
        return math.isfinite(self.run(network, [group])["total"])

    def counts(self, groups: Sequence[Group]) -> Counts:
        """Return the denominators: tokens of generality and locality questions, and edits."""
        found = super().counts(groups)
        gens = self._tokens([row for g in groups for row in g.gens])
        return Counts(gens, found.loc, sum(g.main for g in groups))

    def _tokens(self, rows: Sequence[Row]) -> int:
        by_token = self.config.reduction == "token_mean"
        return sum(len(row.labels) if by_token else 1 for row in rows)

    def run(
        self,
        network: Callable[..., Any],
        groups: Sequence[Group],
        *,
        counts: Counts | None = None,
        noise: Any = None,
        backward: Callable[[Tensor], None] | None = None,
        share: float = 1.0,
        observe: Callable[..., None] | None = None,
    ) -> dict[str, float]:
        """Return the losses of these groups, and let their gradients flow into the networks.

        Args:
            network: The networks.
            groups: Training groups; their main edits are the router's keys.
            counts: Denominators; default: those of `groups`.
            noise: Unused.
            backward: Takes a scalar whose gradient is the total loss'; None: no gradient.
            share: Factor of that gradient.
            observe: Unused.

        Returns:
            `total`, `sg` (edits and generality), `il` (locality), `penalty` (the router's).
        """
        counts = counts or self.counts(groups)
        batch = _Batch(groups)
        work = batch.work(self.settings.route_on)
        with torch.set_grad_enabled(backward is not None):
            keys, queries, vectors = network(self.lm, work)
            logits = read_out(self.lm, vectors)
            logits = wide(logits)
            sg, il = self._answers(batch, logits.log_softmax(-1), counts)
            penalty = logits.new_zeros(())
            if keys is not None and queries is not None:
                penalty = self._scope(batch, work, keys, queries, counts)
            total = sg + il + penalty
        if backward is not None:
            backward(total * share)
        names = ("total", "sg", "il", "penalty")
        return {n: float(x.detach()) for n, x in zip(names, (total, sg, il, penalty), strict=True)}

    def _answers(
        self, batch: _Batch, logprobs: Float[Tensor, "N V"], counts: Counts
    ) -> tuple[Tensor, Tensor]:
        """Return the shares of these questions in the losses of answers."""
        parts = logprobs.split([len(row.labels) for row in batch.rows])
        edits, gens = batch.sizes[0], sum(batch.sizes[:2])
        known = logprobs.new_zeros(())
        sums = [known, known]
        for number, (row, part) in enumerate(zip(batch.rows[:gens], parts[:gens], strict=True)):
            labels = torch.tensor(row.labels, device=part.device)
            kind = int(number >= edits)
            sums[kind] = sums[kind] - part.gather(1, labels[:, None]).sum()
        # edits are counted by group, so that the number over all processes need not be known
        sg = sums[1] / max(counts.gen, 1)
        if self.config.include_edit:
            mean = self._tokens(batch.rows[:edits]) / max(edits, 1)
            sg = sg + sums[0] / (mean * max(counts.edits, 1))
        locs = batch.rows[gens:]
        il = known
        if locs and self.config.il_weight:
            base = torch.cat(self.prepared.answers_of(locs)).to(logprobs)
            edited = torch.cat(parts[gens:])
            p, q = (edited, base) if self.config.kl == "edited_first" else (base, edited)
            il = self.divergence(p, q, locs) * (self.config.il_weight / max(counts.loc, 1))
        return sg * self.config.sg_weight, il

    def _scope(
        self, batch: _Batch, work: Work, keys: Tensor, queries: Tensor, counts: Counts
    ) -> Tensor:
        """Return the router's loss: the means over edits, questions in scope and others, added."""
        texts = {text: number for number, text in reversed(list(enumerate(work.keys)))}
        kind = torch.tensor([texts[text] for text in work.keys], device=keys.device)
        label = torch.tensor(batch.labels, device=keys.device)
        own = kind[label.clamp(min=0)]
        numbers = torch.arange(len(kind), device=keys.device)
        same = (kind == own[:, None]) & (label >= 0)[:, None] & (numbers != label[:, None])
        losses = scope_loss(
            queries @ keys.T, label, self.settings.threshold, same,
            self.settings.router_loss == "released",
        )  # fmt: skip
        parts = losses.split(batch.sizes)
        share = batch.sizes[0] / max(counts.edits, 1)
        found = [part.mean() for part in parts if len(part)]
        return torch.stack(found).sum() * share if found else losses.sum()


class _Batch:
    """The questions of some groups: the edits themselves, generality, locality, in this order."""

    def __init__(self, groups: Sequence[Group]) -> None:
        self.edits = [row for g in groups for row in g.edit_rows[: g.main]]
        starts = [0]
        for g in groups:
            starts.append(starts[-1] + g.main)
        own = list(range(len(self.edits)))
        gens = [(start + i % g.main, row) for g, start in zip(groups, starts, strict=False)
                for i, row in enumerate(g.gens)]  # fmt: skip
        locs = [(start + i % g.main, row) for g, start in zip(groups, starts, strict=False)
                for i, row in enumerate(g.locs)]  # fmt: skip
        self.sizes = [len(own), len(gens), len(locs)]
        self.owners = [*own, *(i for i, _ in gens), *(i for i, _ in locs)]
        self.labels = [*own, *(i for i, _ in gens), *(-1 for _ in locs)]
        self.rows = [*self.edits, *(row for _, row in gens), *(row for _, row in locs)]

    def work(self, route_on: str) -> Work:
        """Return what the networks are asked."""
        return Work(
            [stored_text(row, route_on) for row in self.edits],
            [shown_text(row, route_on) for row in self.rows],
            [
                Asked(full_text(self.edits[owner]), row.ids, row.positions)
                for owner, row in zip(self.owners, self.rows, strict=True)
            ],
        )
