"""Training new experts of LEMoE, one for each of many independent groups at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad, relu, silu

from errata.editors.lemoe.experts import NAMES, ExpertMemory, Experts, RouteOn, TopK, mean_of
from errata.model.passes import capture, wide
from errata.model.tokens import Batch, Row
from errata.progress import tracked
from errata.tuning.adam import RowAdam
from errata.tuning.branch import Branch
from errata.tuning.rows import TuningRows

if TYPE_CHECKING:
    from errata.model.lm import LM

NEVER = float("-inf")
"""Logit of an expert that a group does not have."""


@dataclass(frozen=True)
class _Frozen:
    """What no step changes for the rows of one pass: the FFN's input depends on no expert.

    Attributes:
        means: What routes each row.
        logits: Of the earlier experts, filled up where groups have different numbers of them.
        inner: For each group, its number, its rows and what its earlier experts compute before
            their last matrices, side by side.
    """

    means: Float[Tensor, "B d_in"]
    logits: Float[Tensor, "B n"]
    inner: tuple[tuple[int, slice, Float[Tensor, "b T n r"]], ...]


class Newcomers:
    """The network that `Branch` trains: for each group its earlier experts and a new one.

    Args:
        old: Earlier experts of each group.
        keys: Key of each group's new expert.
        route_on: Tokens whose mean routes.
        top_k: `all`: all experts answer, as the router weighs them. 1: the new expert answers
            alone, which is how it will be used for what the router gives it.
    """

    def __init__(
        self,
        old: Sequence[Experts],
        keys: Float[Tensor, "G d_in"],
        route_on: RouteOn,
        top_k: TopK,
    ) -> None:
        self.old, self.keys, self.route_on, self.top_k = list(old), keys, route_on, top_k
        self._kept: dict[int, tuple[Batch, _Frozen]] = {}

    def __call__(
        self,
        leaves: Sequence[Tensor],
        owner: Sequence[int],
        x: Float[Tensor, "B T d_in"],
        batch: Batch,
        prompts: Int[Tensor, " B"],
    ) -> Float[Tensor, "B T d_out"]:
        """Return what the experts add to the FFN's output."""
        c1, r1, c2, r2 = leaves[:4]
        inner = by_group(relu(by_group(by_group(x, c1, owner), r1.mT, owner)), c2, owner)
        if self.top_k == 1:
            return by_group(inner, r2.mT, owner)
        frozen = self._frozen(owner, x, batch, prompts)
        logits = self.new_logits(frozen.means, leaves[4], leaves[5], owner)
        weights = torch.cat([frozen.logits, logits[:, None]], 1).softmax(1)
        total = by_group(weights[:, -1, None, None] * inner, r2.mT, owner)
        if not frozen.inner:
            return total
        earlier = torch.zeros_like(total)
        for g, rows, before in frozen.inner:
            old = self.old[g]
            own = weights[rows, None, : len(old), None] * before
            earlier[rows] = own.flatten(2) @ old.r2.mT.flatten(0, 1)
        return total + earlier

    def new_logits(
        self,
        means: Float[Tensor, "B d_in"],
        down: Float[Tensor, "G d_in h"],
        up: Float[Tensor, "G h d_in"],
        owner: Sequence[int],
    ) -> Float[Tensor, " B"]:
        """Return the router's logit of each row's new expert."""
        hidden = silu(by_group(means[:, None], down, owner))[:, 0]
        anchors = torch.einsum("ghd,gd->gh", up, self.keys)
        return (hidden * anchors[torch.tensor(owner, device=means.device)]).sum(1)

    @torch.no_grad()
    def _frozen(
        self, owner: Sequence[int], x: Tensor, batch: Batch, prompts: Int[Tensor, " B"]
    ) -> _Frozen:
        if id(batch) in self._kept:
            return self._kept[id(batch)][1]
        if sum(len(known) for known, _ in self._kept.values()) > 2 * len(self.old) + len(batch):
            self._kept.clear()  # rows are laid out anew whenever groups are done
        counted = batch.attention_mask.bool()
        if self.route_on == "prompt":
            counted = counted & prompt_tokens(prompts, counted.shape[1])
        means = mean_of(x, counted)
        width = max(len(self.old[g]) for g in owner)
        logits = x.new_full((len(owner), width), NEVER)
        inner = []
        for g, rows in _runs(owner):
            old = self.old[g]
            if len(old):
                logits[rows, : len(old)] = old.logits(means[rows])
                parts = [old.inner(j, x[rows]) for j in range(len(old))]
                inner.append((g, rows, torch.stack(parts, 2)))
        found = _Frozen(means, logits, tuple(inner))
        self._kept[id(batch)] = (batch, found)
        return found


def prompt_tokens(prompts: Int[Tensor, " B"], width: int) -> Bool[Tensor, "B T"]:
    """Return which columns hold the prompt of each row."""
    return torch.arange(width, device=prompts.device) < prompts[:, None]


def _runs(owner: Sequence[int]) -> list[tuple[int, slice]]:
    """Return every group with its rows, which stand together."""
    found: list[tuple[int, slice]] = []
    start = 0
    for row in range(1, len(owner) + 1):
        if row == len(owner) or owner[row] != owner[start]:
            found.append((owner[start], slice(start, row)))
            start = row
    return found


def by_group(
    x: Float[Tensor, "B T a"], matrices: Float[Tensor, "G a b"], owner: Sequence[int]
) -> Float[Tensor, "B T b"]:
    """Multiply every row with its group's matrix, one product per group and not per row."""
    runs = _runs(owner)
    counts = {rows.stop - rows.start for _, rows in runs}
    if len(counts) == 1:
        numbers = [g for g, _ in runs]
        everyone = numbers == list(range(len(matrices)))
        mine = matrices if everyone else matrices[torch.tensor(numbers, device=x.device)]
        return torch.bmm(x.reshape(len(runs), -1, x.shape[-1]), mine).view(*x.shape[:2], -1)
    return torch.cat([x[rows] @ matrices[g] for g, rows in runs])


@dataclass(frozen=True)
class Work:
    """One block's FFN, and what is done there for groups whose rows name their other changes.

    Attributes:
        lm: The model.
        layer: Block of the FFN.
    """

    lm: LM
    layer: int

    @torch.no_grad()
    def read(
        self, rows: Sequence[Sequence[Row]], route_on: RouteOn
    ) -> list[Float[Tensor, "n d_in"]]:
        """Return what routes each row of each group: the mean of what the FFN is given."""
        lm, flat = self.lm, [row for group in rows for row in group]
        source = lm.module(lm.spec.ffn_in[self.layer][0].path)
        found: list[Tensor] = [lm.embedding] * len(flat)
        for batch in lm.batches(flat):
            (inputs,), _ = capture(lm, batch, inputs=[source])
            x = wide(inputs.reshape(len(batch), -1, inputs.shape[-1]))
            counted = batch.attention_mask.bool()
            if route_on == "prompt":
                ends = torch.tensor([flat[i].prompt_length for i in batch.index], device=lm.device)
                counted = counted & prompt_tokens(ends, counted.shape[1])
            for i, mean in zip(batch.index, mean_of(x, counted), strict=True):
                found[i] = mean
        return list(torch.stack(found).split([len(group) for group in rows]))

    def train(
        self,
        old: Sequence[Experts],
        start: Mapping[str, Float[Tensor, "G ..."]],
        rows: Sequence[Sequence[Row]],
        *,
        route_on: RouteOn,
        top_k: TopK,
        lr: float,
        steps: int,
        stop_loss: float,
    ) -> dict[str, Float[Tensor, "G ..."]]:
        """Train one new expert per group on the cross-entropy of its edits, side by side.

        The earlier experts are there and stay as they are. With `top_k=1` the projection of the
        router is not trained here: nothing that the FFN adds depends on it.

        Args:
            old: Earlier experts of each group.
            start: Tensors of the new experts by name.
            rows: Tokenised edits of each group.
            route_on: Tokens whose mean routes.
            top_k: How many experts answer.
            lr: Learning rate of Adam.
            steps: Updates at most.
            stop_loss: A group whose loss is below this takes no more.

        Returns:
            The tensors of the trained experts.
        """
        names = NAMES[:4] if top_k == 1 else NAMES[:6]
        values = [start[name].clone() for name in names]
        network = Newcomers(old, start["keys"], route_on, top_k)
        branch = Branch(self.lm, self.layer, values, network)
        update = TuningRows(branch, rows)
        adam = RowAdam(values, lr)
        running = torch.ones(len(rows), dtype=torch.bool, device=self.lm.device)
        with self.lm.searching():
            for _ in tracked(range(steps), "training experts, step"):
                loss, grads = update.losses(running, stop_loss)
                # "not <" lets a NaN loss through, so that the edits are refused
                running = running & ~(loss < stop_loss)
                if not bool(running.any()):
                    break
                adam.step(values, grads, running)
        return {**start, **dict(zip(names, values, strict=True))}


def train_router(
    memories: Sequence[ExpertMemory], *, lr: float, steps: int, stop_loss: float
) -> list[ExpertMemory]:
    """Teach the last expert's projection of each group which inputs are its own.

    A hard choice has no gradient, so the router learns to classify: all edits of the group so far,
    each by what routes it, into the experts that they were given to. Only the last expert's
    projection moves, all groups side by side.

    Args:
        memories: Of each group, its new expert last.
        lr: Learning rate of Adam.
        steps: Updates at most.
        stop_loss: A group whose loss is below this takes no more.
    """
    means, device = [memory.means for memory in memories], memories[0].means.device
    count = max(map(len, means))
    width = max(len(memory.experts) for memory in memories) - 1
    given = torch.stack([pad(m, (0, 0, 0, count - len(m))) for m in means])
    share = torch.stack(
        [pad(m.new_full((len(m),), 1 / len(m)), (0, count - len(m))) for m in means]
    )
    logits = given.new_zeros(len(means), count, width)
    label = torch.full((len(means), count), width, device=device)
    for g, memory in enumerate(memories):
        n = len(memory.experts) - 1  # the new one stands last, behind what is filled up
        logits[g, :, n:] = NEVER
        logits[g, : len(means[g]), :n] = memory.experts.logits(means[g])[:, :n]
        label[g, : len(means[g])] = torch.where(memory.owner == n, width, memory.owner)
    keys = torch.stack([memory.experts.keys[-1] for memory in memories])
    values = [
        torch.stack([getattr(memory.experts, name)[-1] for memory in memories])
        for name in NAMES[4:6]
    ]
    adam = RowAdam(values, lr)
    running = torch.tensor([len(memory.experts) > 1 for memory in memories], device=device)
    for _ in range(steps):
        leaves = [value.detach().requires_grad_() for value in values]
        with torch.enable_grad():  # callers may have switched gradients off
            anchors = torch.einsum("ghd,gd->gh", leaves[1], keys)
            new = torch.einsum("gmh,gh->gm", silu(given @ leaves[0]), anchors)
            scores = torch.cat([logits, new[..., None]], 2).log_softmax(2)
            loss = -(scores.gather(2, label[..., None])[..., 0] * share).sum(1)
            running = running & ~(loss.detach() < stop_loss)
            if not bool(running.any()):
                break
            grads = torch.autograd.grad(loss.sum(), leaves)
        adam.step(values, grads, running)
    return [
        replace(memory, experts=memory.experts.routed(values[0][g], values[1][g]))
        for g, memory in enumerate(memories)
    ]
