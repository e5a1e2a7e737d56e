"""The losses of trained editors, for many edit groups in one stacked pass.

Generality (eq. 34): negative log-likelihood of the new answers. Locality (eq. 35): divergence
between the edited and the unedited model on other questions. Edited weights are never formed: the
low-rank factors go into the forward pass, and only their gradients come back to the networks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from errata.model.passes import wide
from errata.model.tokens import Row, bucket, patched, positions_of
from errata.nets.capture import Signals
from errata.nets.update import Update
from errata.patch.stack import Stack
from errata.training.calibrate import calibrate
from errata.training.config import TrainConfig
from errata.training.groups import Group
from errata.training.lines import line_logits, may_share_a_line
from errata.training.prepared import Prepared

if TYPE_CHECKING:
    from errata.model.lm import LM


@dataclass(frozen=True)
class Counts:
    """What the losses are divided by: numbers over all processes of a step.

    Attributes:
        gen: Tokens (or answers) of generality questions.
        loc: Tokens of locality questions (or questions).
        edits: Edits.
    """

    gen: int
    loc: int
    edits: int


@dataclass(frozen=True)
class _Question:
    row: Row
    group: int
    base: Tensor | None  # log-probabilities of the unedited model: a locality question


class Objective:
    """Losses of a batch of groups and their gradients.

    Args:
        lm: The frozen model.
        prepared: What was computed beforehand.
        config: Weights, reductions and directions.

    Attributes:
        packed: Whether questions run one behind the other, without padding; the losses are the
            same. Ask `errata.model.packing.packs` whether the model allows it.
    """

    def __init__(self, lm: LM, prepared: Prepared, config: TrainConfig) -> None:
        self.lm, self.prepared, self.config = lm, prepared, config
        self.packed = False
        self._sites = [site for _, site in prepared.sites]

    def start(self, network: Any, groups: Sequence[Group], mine: Sequence[Group]) -> None:
        """Get new networks ready before the first step.

        Args:
            network: The networks.
            groups: Groups that the edit learning rates are calibrated on.
            mine: Those of them whose signals this process takes in.
        """
        network.observe(self.prepared.signals_of(mine))
        if self.config.calibrate is not None:
            calibrate(self.lm, self.prepared.sites, network, groups, self.config.calibrate)

    @torch.no_grad()
    def is_finite(self, network: Any, group: Group) -> bool:
        """Whether a group by itself gives a finite loss."""
        signals = self.prepared.signals_of([group])
        if not all(bool(f.h.isfinite().all() and f.u.isfinite().all()) for f in signals.factors):
            return False
        return math.isfinite(self.run(network, [group])["total"])

    def gens(self, group: Group) -> tuple[Row, ...]:
        """Return the rows of a group that count as generality questions."""
        own = group.edit_rows[: group.main] if self.config.include_edit else ()
        return (*own, *group.gens)

    def counts(self, groups: Sequence[Group]) -> Counts:
        """Return the denominators of these groups."""
        by_token = self.config.reduction == "token_mean"
        gens = [row for g in groups for row in self.gens(g)]
        return Counts(
            sum(len(row.labels) if by_token else 1 for row in gens),
            sum(len(row.labels) if self.config.il_mean == "token" else 1
                for g in groups for row in g.locs),
            sum(len(g.edits) for g in groups),
        )  # fmt: skip

    def divergence(
        self, p: Float[Tensor, "n V"], q: Float[Tensor, "n V"], rows: Sequence[Row]
    ) -> Tensor:
        """Return the sum of `KL(p || q)` over the tokens of locality questions, or over questions.

        Args:
            p: Log-probabilities at the tokens of `rows`, in order.
            q: Likewise.
            rows: The questions; where they are counted, each is the mean over its answer's tokens.
        """
        terms = p.exp() * (p - q)
        if self.config.il_mean == "token":
            return terms.sum()
        sizes = [len(row.labels) for row in rows]
        shares = [1 / size for size in sizes for _ in range(size)]
        return (terms.sum(-1) * p.new_tensor(shares)).sum()

    def run(
        self,
        network: Callable[..., Update],
        groups: Sequence[Group],
        *,
        counts: Counts | None = None,
        noise: Any = None,
        backward: Callable[[Tensor], None] | None = None,
        share: float = 1.0,
        observe: Callable[[Signals], None] | None = None,
    ) -> dict[str, float]:
        """Return the losses of these groups, and let their gradients flow into the networks.

        Args:
            network: Signals and noise in, update out.
            groups: Groups edited independently.
            counts: Denominators; default: those of `groups`.
            noise: Draws for the bottleneck; None: none.
            backward: Takes a scalar whose gradient is the total loss'; None: no gradient.
            share: Factor of that gradient (the number of processes, where they are averaged).
            observe: Called with the signals before the networks are.

        Returns:
            `total`, `sg`, `il`, `penalty` and what the network reports. Terms without data are
            zero.
        """
        counts = counts or self.counts(groups)
        prepared = self.prepared.of(groups)
        signals = prepared.signals_of(groups)
        if observe is not None:
            observe(signals)
        with torch.set_grad_enabled(backward is not None):
            update = network(signals, noise)
            made = update.factors(self._sites)
        leaves = {
            path: tuple(t.detach().requires_grad_(backward is not None) for t in pair)
            for path, pair in made.items()
        }
        sg, il = self._ask(prepared, groups, leaves, counts, backward is not None)
        penalty = update.penalty
        total_penalty = penalty.sum() / max(counts.edits, 1) if penalty is not None else None
        if backward is not None:
            # also without any question: other processes wait for this one's gradients
            grads = [
                (t * (torch.zeros_like(leaf) if leaf.grad is None else leaf.grad)).sum()
                for path, pair in made.items()
                for t, leaf in zip(pair, leaves[path], strict=True)
            ]
            if total_penalty is not None:
                grads.append(total_penalty)
            backward(torch.stack(grads).sum() * share)
        extra = float(total_penalty.detach()) if total_penalty is not None else 0.0
        found = {"total": float(sg + il) + extra, "sg": float(sg), "il": float(il)}
        found["penalty"] = extra
        return found | {name: float(value) for name, value in (update.report or {}).items()}

    def _questions(self, prepared: Prepared, groups: Sequence[Group]) -> list[_Question]:
        asked = []
        if self.config.sg_weight:
            asked += [_Question(r, at, None) for at, g in enumerate(groups) for r in self.gens(g)]
        if self.config.il_weight:
            locs = [(at, row) for at, g in enumerate(groups) for row in g.locs]
            answers = prepared.answers_of([row for _, row in locs])
            asked += [_Question(r, at, a) for (at, r), a in zip(locs, answers, strict=True)]
        return asked

    def _ask(
        self,
        prepared: Prepared,
        groups: Sequence[Group],
        leaves: dict[str, tuple[Tensor, ...]],
        counts: Counts,
        learn: bool,
    ) -> tuple[Tensor, Tensor]:
        """Run all questions under their group's update; gradients are added up in the leaves."""
        questions = self._questions(prepared, groups)
        rows = patched([q.row for q in questions], [q.group for q in questions])
        sg, il = (torch.zeros((), device=self.lm.device) for _ in range(2))
        if not questions:
            return sg, il
        factors = {path: (a, b) for path, (a, b) in leaves.items()}
        if self.packed and may_share_a_line(self.lm, rows):
            for index in bucket(rows, self.lm.max_tokens):
                some, owner = [rows[i] for i in index], [questions[i].group for i in index]
                with torch.set_grad_enabled(learn):
                    logits = line_logits(self.lm, prepared, some, owner, factors)
                    gen, loc = self._loss([questions[i] for i in index], logits, counts)
                    if learn:
                        (gen + loc).backward()
                sg, il = sg + gen.detach(), il + loc.detach()
            return sg, il
        with Stack.of_factors(self.lm, factors), torch.set_grad_enabled(learn):
            for index in bucket(rows, self.lm.max_tokens, max_padding=self.lm.pass_cost):
                batch = self.lm.batch(rows, index)
                with prepared.below(rows, batch):
                    logits = self.lm.logits(batch, positions_of(rows, index, self.lm.device))
                    gen, loc = self._loss([questions[i] for i in index], logits, counts)
                    if learn:
                        (gen + loc).backward()
                sg, il = sg + gen.detach(), il + loc.detach()
        return sg, il

    def _loss(
        self, questions: Sequence[_Question], logits: Float[Tensor, "N V"], counts: Counts
    ) -> tuple[Tensor, Tensor]:
        """Return the shares of these questions in the generality and the locality loss."""
        logprobs = wide(logits).log_softmax(-1)
        gens, locs, labels, start = [], [], [], 0
        for q in questions:
            end = start + len(q.row.labels)
            (gens if q.base is None else locs).extend(range(start, end))
            if q.base is None:
                labels += q.row.labels
            start = end
        device = logprobs.device
        gen = loc = logprobs.new_zeros(())
        if gens:
            picked = logprobs[
                torch.tensor(gens, device=device), torch.tensor(labels, device=device)
            ]
            gen = -picked.sum() * (self.config.sg_weight / max(counts.gen, 1))
        if locs:
            base = torch.cat([q.base for q in questions if q.base is not None]).to(logprobs)
            edited = logprobs[torch.tensor(locs, device=device)]
            p, q = (edited, base) if self.config.kl == "edited_first" else (base, edited)
            asked = [question.row for question in questions if question.base is not None]
            loc = self.divergence(p, q, asked) * (self.config.il_weight / max(counts.loc, 1))
        return gen, loc
