"""Moving side memories: edits of many independent groups side by side, each on its own copy."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import relu

from errata.editors.wise.route import Activation, distances, moved
from errata.editors.wise.sides import Margins, RouteOn
from errata.model.hooks import after, hooked
from errata.model.passes import capture, first, reuse_below, wide, with_first
from errata.model.spec import Site
from errata.model.tokens import Batch, Row, bucket, make_batch
from errata.progress import tracked

if TYPE_CHECKING:
    from errata.model.lm import LM

STILL = 1e-4
"""A loss that moved by no more than this since the step before stands still, as published."""

LEARNED = 0.02
"""A loss that stands still ends the edit below this, as published."""


@dataclass(frozen=True)
class Asked:
    """The rows of one edit.

    Attributes:
        rows: The edit behind every context, and one irrelevant text last; whole, the last token of
            the target included.
    """

    rows: tuple[Row, ...]

    @classmethod
    def of(cls, edits: Sequence[Row], irrelevant: Row) -> Asked:
        """Return what is trained on."""
        whole = [
            Row((*row.ids, row.labels[-1]), row.positions, row.labels, row.prompt_length,
                patch=row.patch)
            for row in edits
        ]  # fmt: skip
        return cls((*whole, irrelevant))

    @property
    def prompts(self) -> list[Row]:
        """The edit's rows up to where the answer begins."""
        return [
            Row(row.ids[: row.prompt_length], (0,), (), row.prompt_length, patch=row.patch)
            for row in self.rows[:-1]
        ]


@dataclass(frozen=True)
class Recipe:
    """How a copy is moved.

    Attributes:
        lr: Step of plain gradient descent.
        steps: Steps at most.
        decay: Weight decay: of the copy's difference; as published, of the whole copy.
        limit: Largest change of any entry.
        route_on: Tokens whose distances count.
        long: See `Use`.
        compat: As published: rows are padded on the left, positions and distances count the
            padding, the cross-entropy is divided by one token too many, and the decay pulls every
            entry of the copy towards zero.
    """

    lr: float
    steps: int
    decay: float
    limit: float
    route_on: RouteOn
    long: int
    compat: bool


@dataclass(frozen=True)
class Trained:
    """What became of one edit per group.

    Attributes:
        deltas: The copies' differences.
        acts: Mean distance of the edits' rows.
        losses: For each step the loss, that of the target, and that of the distances.
    """

    deltas: Float[Tensor, "G d f"]
    acts: Float[Tensor, " G"]
    losses: tuple[tuple[Tensor, Tensor, Tensor], ...]


class SidePass:
    """The rows of one edit per group, and what no step changes for them.

    Args:
        lm: The model; rows name their group's other changes.
        layer: Block of the matrix.
        site: The matrix.
        asked: Rows of each group, as many of each.
        recipe: How copies are moved.
        activation: Function that outputs are compared behind.
        columns: What each group's copy reads of the matrix' input; None: all of it.
    """

    def __init__(
        self,
        lm: LM,
        layer: int,
        site: Site,
        asked: Sequence[Asked],
        recipe: Recipe,
        activation: Activation,
        columns: Float[Tensor, "G f"] | None = None,
    ) -> None:
        self.columns = columns
        self.lm, self.layer, self.recipe, self.activation = lm, layer, recipe, activation
        self.module = lm.module(site.path)
        self.each = len(asked[0].rows)
        rows = [row for one in asked for row in one.rows]
        self.batch, shift = _laid_out(lm, rows, left=recipe.compat)
        width = self.batch.input_ids.shape[1]
        self.edits = torch.tensor([i % self.each < self.each - 1 for i in range(len(rows))])
        pairs = [
            (i, at + shift[i], label)
            for i, row in enumerate(rows)
            if self.edits[i]
            for at, label in zip(row.positions, row.labels, strict=True)
        ]
        table = torch.tensor(pairs, device=lm.device)
        self.at, self.labels = table[:, :2], table[:, 2]
        sizes = [len(row.labels) + (1 if recipe.compat else 0) for row in rows]
        self.sizes = torch.tensor(sizes, device=lm.device)
        self.counted = self._counted(rows, width)
        self.edits = self.edits.to(lm.device)
        self.size: Tensor | None = None  # of the activations that memories move
        self.hidden: Tensor | None = None
        with torch.no_grad():
            if layer > 0:
                below = lm.module(lm.spec.blocks[layer - 1])
                _, (self.hidden,) = capture(lm, self.batch, outputs=[below])

    def _counted(self, rows: Sequence[Row], width: int) -> Bool[Tensor, "B T"]:
        """Return which tokens' distances count."""
        if self.recipe.compat:
            return torch.ones(len(rows), width, dtype=torch.bool, device=self.lm.device)
        whole = self.recipe.route_on == "all"
        ends = [
            row.prompt_length if is_edit and not whole else len(row.ids)
            for row, is_edit in zip(rows, self.edits.tolist(), strict=True)
        ]
        limits = torch.tensor(ends, device=self.lm.device)[:, None]
        return torch.arange(width, device=self.lm.device)[None] < limits

    def losses(
        self, deltas: Float[Tensor, "G d f"]
    ) -> tuple[Float[Tensor, " G"], Float[Tensor, "G c"]]:
        """Return each group's cross-entropy, mean over its rows, and every row's distance."""
        lm, kept = self.lm, {}

        def add(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            y = first(output)
            rows = wide(y).reshape(len(self.batch), -1, y.shape[-1])
            x = args[0].reshape(len(self.batch), -1, args[0].shape[-1]).to(deltas.dtype)
            groups = x.reshape(len(deltas), -1, x.shape[-1])
            if self.columns is not None:
                groups = groups * self.columns[:, None]
            term = torch.bmm(groups, deltas.transpose(1, 2)).view(rows.shape)
            rows = rows.to(term.dtype)
            kept["size"] = self.activation(rows.detach()).norm(dim=-1)
            kept["far"] = moved(rows, term, self.activation)
            return with_first(output, (rows + term).reshape(y.shape).to(y.dtype))

        with ExitStack() as context:
            if self.hidden is not None:
                context.enter_context(reuse_below(lm, self.layer - 1, self.hidden))
            context.enter_context(hooked(lm, after(self.module, add)))
            logits = wide(lm.logits(self.batch, self.at))
        nll = logits.logsumexp(-1) - logits.gather(1, self.labels[:, None])[:, 0]
        per_row = nll.new_zeros(len(self.batch)).index_add(0, self.at[:, 0], nll) / self.sizes
        # as published, long rows count as short ones do while copies are moved
        long = self.counted.shape[1] if self.recipe.compat else self.recipe.long
        far = distances(kept["far"], self.counted, long)
        self.size = distances(kept["size"], self.counted, long).view(-1, self.each)
        return per_row.view(-1, self.each)[:, :-1].mean(1), far.view(-1, self.each)


def hinge(
    inside: Float[Tensor, "G c"], outside: Float[Tensor, " G"], margins: Sequence[Margins]
) -> Float[Tensor, " G"]:
    """Return the loss of distances: edits far, irrelevant text near, and a gap between them.

    Args:
        inside: Distances of each group's edit rows.
        outside: Distance of each group's irrelevant row.
        margins: Of each group.
    """
    alpha, beta, gamma = (
        inside.new_tensor([getattr(one, name) for one in margins])[:, None]
        for name in ("alpha", "beta", "gamma")
    )
    out = outside[:, None]
    return sum(
        (_mean_of_positive(part) for part in (out - inside + gamma, out - alpha, beta - inside)),
        torch.zeros_like(outside),
    )


def _mean_of_positive(values: Float[Tensor, "G c"]) -> Float[Tensor, " G"]:
    above = values > 0
    return relu(values).sum(1) / above.sum(1).clamp(min=1)


def move(
    work: SidePass,
    start: Float[Tensor, "G d f"],
    masks: Bool[Tensor, "G d f"],
    margins: Sequence[Margins] | None,
    base: Float[Tensor, "G d f"] | None,
) -> Trained:
    """Move one copy per group until its edit is learned and told apart.

    Args:
        work: The rows.
        start: The copies' differences.
        masks: Entries that may move.
        margins: Of each group; None: the loss of the edit alone.
        base: The matrix, whose entries the published decay pulls at.
    """
    recipe, deltas = work.recipe, start.clone()
    running = torch.ones(len(deltas), dtype=torch.bool, device=deltas.device)
    acts = deltas.new_zeros(len(deltas))
    last = torch.full_like(acts, float("inf"))
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    for step in tracked(range(recipe.steps), "side memories, step"):
        leaf = deltas.detach().requires_grad_()
        with torch.enable_grad():  # callers may have switched gradients off
            told, far = work.losses(leaf)
            apart = torch.zeros_like(told)
            if margins is not None:
                apart = hinge(far[:, :-1], far[:, -1], margins)
            loss = told + apart
            still = (loss.detach() - last).abs() <= STILL
            # comparisons with NaN are false: the edit goes on and is refused
            done = still & (loss.detach() <= LEARNED) if step else torch.zeros_like(running)
            acts = torch.where(running, far[:, :-1].detach().mean(1).to(acts), acts)
            history.append((loss.detach(), told.detach(), apart.detach()))
            running = running & ~done
            if not bool(running.any()):
                break
            (grad,) = torch.autograd.grad(loss.sum(), [leaf])
        last = loss.detach()
        deltas = _stepped(deltas, grad, masks, running, recipe, base)
    if not recipe.compat:
        acts = _now(work, deltas, running, acts)
    return Trained(deltas, acts, tuple(history))


def _stepped(
    deltas: Tensor,
    grad: Tensor,
    masks: Tensor,
    running: Tensor,
    recipe: Recipe,
    base: Tensor | None,
) -> Tensor:
    step = grad * masks
    if recipe.decay:
        pulled = deltas * masks if base is None else base + deltas
        step = step + recipe.decay * pulled
    new = (deltas - recipe.lr * step).clamp(-recipe.limit, recipe.limit)
    return torch.where(running[:, None, None], new, deltas)


@torch.no_grad()
def _now(work: SidePass, deltas: Tensor, running: Tensor, acts: Tensor) -> Tensor:
    """Return distances under the copies as the last step left them."""
    if not bool(running.any()):
        return acts
    _, far = work.losses(deltas)
    return torch.where(running, far[:, :-1].mean(1).to(acts), acts)


def _laid_out(lm: LM, rows: Sequence[Row], *, left: bool) -> tuple[Batch, list[int]]:
    """Return rows as one batch, and by how much each is moved to the right.

    Padded on the left, positions are the columns, as where nobody says otherwise.
    """
    batch = make_batch(rows, range(len(rows)), lm.pad_id, lm.device)
    if not left:
        return batch, [0] * len(rows)
    width = batch.input_ids.shape[1]
    shift = [width - len(row.ids) for row in rows]
    ids: Int[Tensor, "B T"] = torch.stack(
        [own.roll(by) for own, by in zip(batch.input_ids, shift, strict=True)]
    )
    mask = torch.stack([own.roll(by) for own, by in zip(batch.attention_mask, shift, strict=True)])
    # no prompts: they are not where a patch would look for them
    return Batch(ids, mask, batch.position_ids, batch.index, (), batch.patches), shift


def chunks(lm: LM, asked: Sequence[Asked], most: int) -> list[list[int]]:
    """Split edits, so that their rows make one forward pass each."""
    rows = [max(one.rows, key=lambda row: len(row.ids)) for one in asked]
    width = len(asked[0].rows)
    budget = max(1, lm.max_tokens // width)
    return [
        index[start : start + most]
        for index in bucket(rows, budget, range(len(rows)))
        for start in range(0, len(index), most)
    ]
