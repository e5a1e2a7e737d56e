"""How REP's adapters are trained: the losses and the loop.

All adapters of one block are trained side by side, each on its own edit's keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from errata.case import Edit
from errata.locate.solve import Factor, whiten
from errata.progress import tracked
from errata.strategies.rep.adapter import Adapters
from errata.strategies.rep.data import Keys, Ordinary, RepSettings, generator_for
from errata.tuning.adam import RowAdam

TRAINED_AT_ONCE = 2**27
"""Numbers of all adapters trained together; Adam and gradients take three times as many more."""


@dataclass(frozen=True)
class KeyBatch:
    """One step's keys of all adapters.

    Attributes:
        rows: Perturbed keys, then the original one.
        others: Other tokens' keys, if a loss looks at them.
    """

    rows: Float[Tensor, "n b f"]
    others: Float[Tensor, "n m f"] | None


def shuffled(count: int, take: int, generator: torch.Generator) -> Iterator[Int[Tensor, " take"]]:
    """Yield numbers below `count`: shuffled, taken in order, shuffled anew when they run out."""
    left = torch.empty(0, dtype=torch.long)
    while True:
        while len(left) < take:
            left = torch.cat([left, torch.randperm(count, generator=generator)])
        yield left[:take]
        left = left[take:]


def losses(
    adapters: Adapters,
    batch: KeyBatch,
    target: Float[Tensor, "n f"],
    moment: Factor | None,
    settings: RepSettings,
    kept: Float[Tensor, "n b f"] | None = None,
) -> dict[str, Float[Tensor, " n"]]:
    """Return each adapter's losses, unweighted, as far as their weight is not zero.

    `agg = -mean_j cos(k'_j) . target` over the perturbed rows; `cons` the mean square by which the
    original prompt's key moves; `spread`, `kl` and `cls` as the settings describe them.

    Args:
        adapters: All adapters.
        batch: Their keys.
        target: What perturbed keys should resemble.
        moment: Factor of `C`, for `kl`; None: `C = I`.
        settings: Weights.
        kept: Factors of dropout on the rows.
    """
    scale = settings.rep_alpha / settings.rep_rank
    moved = adapters.move(batch.rows, scale, kept)
    found: dict[str, Tensor] = {}
    if settings.rep_agg:
        turned = moved[:, :-1]
        turned = turned / turned.norm(dim=-1, keepdim=True)
        found["agg"] = -torch.einsum("nbf,nf->nb", turned, target).mean(1)
    if settings.rep_cons:
        found["cons"] = (moved[:, -1] - batch.rows[:, -1]).square().mean(1)
    if batch.others is None:
        return found
    if settings.rep_spread or settings.rep_kl:
        away = adapters.move(batch.others, scale)
        if settings.rep_spread:
            found["spread"] = torch.einsum("nmf,nf->nm", away, target).abs().mean(1)
        if settings.rep_kl:
            found["kl"] = _drift(batch.others, away, moment, settings.rep_kl_kind)
    if settings.rep_cls:
        opened, closed = adapters.gate(batch.rows[:, :-1]), adapters.gate(batch.others)
        right = bce(opened, torch.ones_like(opened), reduction="none").mean(1)
        wrong = bce(closed, torch.zeros_like(closed), reduction="none").mean(1)
        found["cls"] = (right + wrong) / 2
    return found


def _drift(
    before: Float[Tensor, "n m f"], after: Float[Tensor, "n m f"], moment: Factor | None, kind: str
) -> Float[Tensor, " n"]:
    """How far other tokens' keys move."""
    if kind == "mse":
        return (after - before).square().mean((1, 2))
    white = whiten(before.flatten(0, 1), moment).to(before).view_as(before)
    if kind == "whiten":
        return -torch.bmm(white, after.transpose(1, 2)).mean((1, 2))
    return torch.bmm(white, (after - before).transpose(1, 2)).abs().mean((1, 2))


def train(
    edits: Sequence[Edit],
    keys: Sequence[Keys],
    target: Float[Tensor, "n f"],
    layer: int,
    moment: Factor | None,
    ordinary: Ordinary | None,
    settings: RepSettings,
) -> Adapters:
    """Train one adapter per edit for one block, as many at once as memory allows.

    An adapter's start, the order of its rows and its dropout come from a generator of its own, so
    the result does not depend on the edits beside it.

    Args:
        edits: The edits.
        keys: What each is trained on, in float32, or float64 if the model is.
        target: Per edit, what its perturbed keys should resemble.
        layer: Block number.
        moment: Factor of `C` at this block; None: `C = I`.
        ordinary: Ordinary text, if a loss looks at it.
        settings: Settings.
    """
    size = target.shape[1]
    inner = max(1, int(settings.rep_gate_ratio * size))
    dtype = keys[0].original.dtype
    numbers = 2 * size * settings.rep_rank + size * inner + 2 * inner + 1
    step = max(1, TRAINED_AT_ONCE // numbers)
    parts: list[Adapters] = []
    for start in range(0, len(edits), step):
        some = slice(start, start + step)
        generators = [generator_for(edit, settings.rep_seed, layer) for edit in edits[some]]
        fresh = Adapters.new(size, settings.rep_rank, inner, generators).to(target.device, dtype)
        batches = _batches(edits[some], keys[some], ordinary, settings, generators)
        _fit(fresh, batches, target[some].to(dtype), moment, settings, generators)
        parts.append(fresh)
    names = parts[0].tensors()
    return Adapters(**{name: torch.cat([part.tensors()[name] for part in parts]) for name in names})


def _batches(
    edits: Sequence[Edit],
    keys: Sequence[Keys],
    ordinary: Ordinary | None,
    settings: RepSettings,
    generators: Sequence[torch.Generator],
) -> Iterator[KeyBatch]:
    """Yield one batch per step, without end."""
    rows = [
        shuffled(len(own.perturbed), settings.rep_batch, generator)
        for own, generator in zip(keys, generators, strict=True)
    ]
    free = [None if ordinary is None else ordinary.without(edit) for edit in edits]
    while True:
        taken = [
            torch.cat([own.perturbed[next(order)], own.original[None]])
            for own, order in zip(keys, rows, strict=True)
        ]
        others = None
        if settings.looks_elsewhere:
            others = torch.stack(
                [
                    _elsewhere(own.others, ordinary, allowed, settings.rep_others, generator)
                    for own, allowed, generator in zip(keys, free, generators, strict=True)
                ]
            )
        yield KeyBatch(torch.stack(taken), others)


def _elsewhere(
    own: Float[Tensor, "q f"],
    ordinary: Ordinary | None,
    allowed: Int[Tensor, " m"] | None,
    count: int,
    generator: torch.Generator,
) -> Float[Tensor, "count f"]:
    """Draw other tokens, half of them of ordinary text if there is any."""
    far = count // 2 if ordinary is not None and allowed is not None and len(allowed) else 0
    near = own[torch.randint(len(own), (count - far,), generator=generator)]
    if not far:
        return near
    assert ordinary is not None
    assert allowed is not None
    drawn = allowed[torch.randint(len(allowed), (far,), generator=generator)]
    return torch.cat([near, ordinary.keys[drawn.to(ordinary.keys.device)]])


def _fit(
    adapters: Adapters,
    batches: Iterator[KeyBatch],
    target: Float[Tensor, "n f"],
    moment: Factor | None,
    settings: RepSettings,
    generators: Sequence[torch.Generator],
) -> None:
    """Take all steps of Adam, in place."""
    values = list(adapters.tensors().values())
    optimiser = RowAdam(values, settings.rep_lr)
    everyone = torch.ones(len(adapters), dtype=torch.bool, device=target.device)
    weights = {name: getattr(settings, f"rep_{name}") for name in _TERMS}
    keep = 1 - settings.rep_dropout
    for _ in tracked(range(settings.rep_steps), "training the pathway, step"):
        batch = next(batches)
        kept = None
        if settings.rep_dropout:
            shape = batch.rows.shape[1:]
            drawn = torch.stack([torch.rand(shape, generator=g) < keep for g in generators])
            kept = (drawn / keep).to(batch.rows)
        learned = Adapters(*(value.detach().requires_grad_() for value in values))
        with torch.enable_grad():
            terms = losses(learned, batch, target, moment, settings, kept)
            total = sum((weights[name] * term for name, term in terms.items()), target.new_zeros(1))
            if not total.requires_grad:
                return
            parameters = list(learned.tensors().values())
            grads = torch.autograd.grad(total.sum(), parameters, allow_unused=True)
        optimiser.step(
            values,
            [torch.zeros_like(v) if g is None else g for v, g in zip(values, grads, strict=True)],
            everyone,
        )


_TERMS = ("agg", "cons", "spread", "kl", "cls")
