"""Target values `v*`: what the projection should answer so that the model says the new target.

One vector per edit is added to the output at the subject's last token, in every context at once,
and found by Adam (Meng et al. 2022, section 3.1; the exact recipe is that of the published code):

```
NLL  = mean over contexts of mean over target tokens of -log p(token)
KL   = KL(p_delta || p_0) at the subject's last token of "{subject} is a"
loss = NLL + kl_factor * KL + weight_decay * ||delta|| / ||v_0||^2
```

Many edits are optimised together: their losses are summed, Adam is elementwise, and clamp and
early stop act per edit, so every edit follows the path it would follow alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from errata.case import Edit
from errata.config import Settings
from errata.errors import EditError
from errata.locate.contexts import Contexts
from errata.locate.keys import start_values
from errata.locate.pieces import Piece, has_essence, held_at
from errata.locate.rows import Rows, Savings, build_rows, plan_chunks
from errata.model.passes import Place
from errata.progress import Step, watched
from errata.tuning.adam import RowAdam

if TYPE_CHECKING:
    from errata.model.lm import LM

DROP_SHARE = 0.25
"""Finished edits are dropped once they are this share of the batch: dropping copies the caches."""


class ValueSettings(Settings):
    """How the target value of an edit is found."""

    steps: int = Field(
        default=20, ge=1, description="Evaluations of the loss; at most steps - 1 updates"
    )
    lr: float = Field(default=0.5, gt=0, description="Learning rate of Adam on the added vector")
    weight_decay: float = Field(
        default=0.5, ge=0, description="Weight of ||delta|| / ||v0||^2 in the loss"
    )
    clamp: float = Field(default=4.0, gt=0, description="Largest ||delta|| relative to ||v0||")
    kl_factor: float = Field(
        default=0.0625, ge=0, description="Weight of the KL term on '{subject} is a'"
    )
    stop_loss: float = Field(
        default=0.05,
        ge=0,
        description="An edit whose loss is below this stops; 0 never stops early",
    )
    loss_layer: int | None = Field(
        default=None, description="Block whose output the head reads for the loss; none: the last"
    )


@dataclass(frozen=True)
class Adaptive:
    """What follows from the target being what the model says anyway, in every context.

    PMET makes the likelihood's weight small by then; ENCORE stops soon after.

    Attributes:
        factor: Weight of the likelihood until the target is the most probable answer everywhere.
        easy: What it is multiplied by while it is.
        stop_kl: An edit whose target is the answer everywhere stops when its KL is below this.
        scaled_kl: Compare `kl_factor` times the KL, as the released code does.
        enough: An edit stops at so many evaluations at which the target is the answer everywhere;
            None: these are not counted.
    """

    factor: float = 1.0
    easy: float = 0.1
    stop_kl: float = 0.01
    scaled_kl: bool = False
    enough: int | None = None


@dataclass(frozen=True)
class Values:
    """Target values of edits, float32 at least.

    Attributes:
        start: Per place, output on the bare prompt before the optimisation (`v_0`).
        delta: Per place, what was added.
        updates: Per edit, Adam updates made.
        losses: Per edit, the loss at every evaluation; one more than updates.
    """

    start: dict[Place, Float[Tensor, "e d"]]
    delta: dict[Place, Float[Tensor, "e d"]]
    updates: list[int]
    losses: list[list[float]]

    def target(self, place: Place) -> Float[Tensor, "e d"]:
        """Return `v* = v_0 + delta`."""
        return self.start[place] + self.delta[place]


def optimise_values(
    lm: LM,
    edits: Sequence[Edit],
    contexts: Contexts,
    layer: int,
    settings: ValueSettings,
    *,
    places: tuple[Place, ...] = ("ffn",),
    savings: Savings | None = None,
    patches: Sequence[int] | None = None,
    adaptive: Adaptive | None = None,
    held: Sequence[Mapping[Place, Float[Tensor, "e d"]]] = (),
) -> Values:
    """Find the target values of many edits at once.

    Args:
        lm: The model; it is not changed.
        edits: Edits with subjects.
        contexts: Texts in front of the prompts; the first is the bare prompt.
        layer: Block at which the vector is added.
        settings: The recipe.
        places: Where in the block: `ffn` (ROME), `block` (MEMIT), `("ffn", "attn")` (PMET).
        savings: Which exact savings are used; all by default.
        patches: For each edit, the patch in the active stack that its value is found under.
        adaptive: How the weight of the likelihood follows the optimisation; None: it is 1.
        held: Of edits that are pieces of answers, each with as many pieces in front of it: what was
            found for those, and stays added at their places. All edits have an essence, or none.

    Raises:
        EditError: If an edit has no subject, it is not in the prompt, or a loss became NaN or
            infinite.
    """
    savings = savings or Savings()
    parts: list[Values] = []
    order: list[int] = []
    for chunk, tokens in plan_chunks(lm, edits, contexts, patches):
        per_edit = len(contexts) + has_essence(edits[0])
        stays: list[tuple[Sequence[int], Mapping[Place, Tensor]]] = [
            (
                [held_at(edits[chunk[r // per_edit]], row, k) for r, row in enumerate(tokens)],
                {place: vectors[chunk] for place, vectors in own.items()},
            )
            for k, own in enumerate(held)
        ]
        exact = start_values(lm, tokens[::per_edit], layer, places) if lm.roughly else None
        title = f"target values of {len(chunk)} edit{'s'[: len(chunk) > 1]}, step"
        with watched(title) as show, lm.searching():
            rows = build_rows(
                lm, tokens, per_edit, layer, places,
                savings=savings, loss_layer=settings.loss_layer, known=exact, ahead=contexts,
                held=stays,
            )  # fmt: skip
            parts.append(_descend(rows, settings, adaptive, show))
        order += chunk
    back = sorted(range(len(order)), key=order.__getitem__)
    losses = [part for values in parts for part in values.losses]
    for number, seen in zip(order, losses, strict=True):
        if not math.isfinite(seen[-1]):
            raise EditError(
                f"the loss of {edits[number].prompt!r} became NaN or infinite",
                "The model is untouched. A smaller learning rate or another layer may help.",
            )
    updates = [count for values in parts for count in values.updates]
    return Values(
        {place: torch.cat([part.start[place] for part in parts])[back] for place in places},
        {place: torch.cat([part.delta[place] for part in parts])[back] for place in places},
        [updates[i] for i in back],
        [losses[i] for i in back],
    )


def values_in_turn(
    edits: Sequence[Edit],
    patches: Sequence[int],
    find: Callable[[list[Edit], list[int], list[Mapping[Place, Tensor]]], Values],
) -> Values:
    """Find the values of pieces of answers, those of each answer one after another.

    A piece's value is found with what was found for the pieces in front of it added at theirs; the
    first pieces of all answers are found together, then the second ones.

    Args:
        edits: Edits and pieces; the pieces of an answer follow one another.
        patches: For each, the patch in the active stack.
        find: Finds the values of some of them: given those, their patches, and what `held` means in
            `optimise_values`.
    """
    rounds: dict[tuple[int, bool], list[int]] = {}
    for i, edit in enumerate(edits):
        number = edit.number if isinstance(edit, Piece) else 0
        rounds.setdefault((number, has_essence(edit)), []).append(i)
    found: list[tuple[Values, int]] = [None] * len(edits)  # type: ignore[list-item]
    for (number, _), members in sorted(rounds.items()):
        held: list[Mapping[Place, Tensor]] = []
        for k in range(number):
            own = [found[i - number + k] for i in members]
            held.append(
                {p: torch.stack([v.delta[p][at] for v, at in own]) for p in own[0][0].delta}
            )
        values = find([edits[i] for i in members], [patches[i] for i in members], held)
        for at, i in enumerate(members):
            found[i] = (values, at)
    places = list(found[0][0].start)
    return Values(
        {p: torch.stack([v.start[p][at] for v, at in found]) for p in places},
        {p: torch.stack([v.delta[p][at] for v, at in found]) for p in places},
        [v.updates[at] for v, at in found],
        [v.losses[at] for v, at in found],
    )


def _descend(rows: Rows, settings: ValueSettings, adaptive: Adaptive | None, show: Step) -> Values:
    """Run the optimisation of one chunk; `rows` shrinks as edits finish."""
    places, start = rows.places, rows.start
    n = rows.n_edits
    delta: dict[Place, Tensor] = {p: torch.zeros_like(start[p]) for p in places}  # of all edits
    updates, losses = [0] * n, [[] for _ in range(n)]
    alive = torch.arange(n, device=start[places[0]].device)  # edits still in the batch
    running = torch.ones(n, dtype=torch.bool, device=alive.device)  # among those, not yet stopped
    live = [delta[place].clone() for place in places]
    adam = RowAdam(live, settings.lr)
    length = [start[place].norm(dim=-1) for place in places]
    base: Tensor | None = None
    factor = torch.full_like(length[0], 1.0 if adaptive is None else adaptive.factor)
    times = torch.zeros_like(alive)  # that the target was the answer everywhere
    for step in range(settings.steps):
        last = step == settings.steps - 1
        with torch.set_grad_enabled(not last):  # also where callers have switched gradients off
            leaves = [tensor.detach().requires_grad_(not last) for tensor in live]
            nll, essence, said = rows.losses(dict(zip(places, leaves, strict=True)))
            base = essence.detach() if base is None else base
            kl = (essence.exp() * (essence - base)).sum(-1) if len(essence) else 0 * nll.detach()
            decay = sum(
                leaf.norm(dim=-1) / size**2 for leaf, size in zip(leaves, length, strict=True)
            )
            loss = factor * nll + settings.kl_factor * kl + settings.weight_decay * decay
        show(step + 1, settings.steps)
        for edit, on, value in zip(alive.tolist(), running.tolist(), loss.tolist(), strict=True):
            if on:
                losses[edit].append(value)
        # ">=" also stops an edit whose loss is NaN; it is refused in the end
        running = running & (loss.detach() >= settings.stop_loss)
        if adaptive is not None:  # the new weight serves the next step, as published
            factor = torch.full_like(factor, adaptive.factor)
            factor[said] *= adaptive.easy
            near = kl.detach() * (settings.kl_factor if adaptive.scaled_kl else 1.0)
            running = running & ~(said & (near < adaptive.stop_kl))
            times += said
            if adaptive.enough is not None:
                running = running & (times < adaptive.enough)
        if last or not bool(running.any()):
            break
        with torch.enable_grad():
            grads = torch.autograd.grad(loss[running].sum(), leaves)
        live = [leaf.detach() for leaf in leaves]
        adam.step(live, grads, running)
        for value, size in zip(live, length, strict=True):
            norm = value.norm(dim=-1)
            limit = settings.clamp * size
            value *= torch.where(running & (norm > limit), limit / norm, 1.0)[:, None]
        for edit, on in zip(alive.tolist(), running.tolist(), strict=True):
            updates[edit] += on
        for place, value in zip(places, live, strict=True):
            delta[place][alive] = value
        if int((~running).sum()) >= max(1, DROP_SHARE * len(alive)):
            keep = running.nonzero()[:, 0]
            rows.keep(keep)
            adam.keep(keep)
            alive, base = alive[keep], base[keep] if len(base) else base
            live = [value[keep] for value in live]
            length = [size[keep] for size in length]
            factor, running, times = factor[keep], running[keep], times[keep]
    return Values(dict(start), delta, updates, losses)
