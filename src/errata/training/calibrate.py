"""A start for the edit learning rates: how far an edit moves each matrix' output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from errata.model.spec import Site
from errata.nets.capture import Signals, capture
from errata.nets.update import FactorNetwork
from errata.training.groups import Group

if TYPE_CHECKING:
    from errata.model.lm import LM


@torch.no_grad()
def movement(
    lm: LM, sites: Sequence[tuple[int, Site]], network: FactorNetwork, groups: Sequence[Group]
) -> Float[Tensor, " n"]:
    """Return the mean of `‖Δy‖/‖y‖` over the main edits' own tokens, for every matrix.

    Each edit is taken by itself; tokens whose gradient is zero are left out.
    """
    edits = [e for g in groups for e in g.edits[: g.main]]
    rows = [r for g in groups for r in g.edit_rows[: g.main]]
    made: list[dict[int, Tensor]] = [{} for _ in sites]

    def watch(number: int, index: Sequence[int], y: Tensor) -> None:
        for at, i in enumerate(index):
            made[number][i] = y[at].float()

    factors = capture(lm, sites, rows, watch=watch)
    owner = torch.arange(len(rows), device=lm.device)
    update = network(Signals(factors, owner, tuple(edits), tuple(rows)))
    found = []
    for number, (f, term) in enumerate(zip(factors, update.terms, strict=True)):
        A, B = term.by_group(len(rows))
        moved = (f.h.float() @ A.float().transpose(1, 2)) @ B.float().transpose(1, 2)
        ratios = []
        for i in range(len(rows)):
            n = min(len(made[number][i]), f.mask.shape[1])
            real = f.mask[i, :n]
            was = made[number][i][:n][real].norm(dim=-1).clamp(min=1e-12)
            ratios.append(moved[i, :n][real].norm(dim=-1) / was)
        found.append(torch.cat(ratios).mean())
    return torch.stack(found)


def calibrate(
    lm: LM,
    sites: Sequence[tuple[int, Site]],
    network: FactorNetwork,
    groups: Sequence[Group],
    target: float,
) -> list[float]:
    """Scale the edit learning rates so that each matrix' output moves by `target` of its norm.

    Returns:
        The factors by which they were multiplied.
    """
    moved = movement(lm, sites, network, groups).tolist()
    factors = [target / m if m > 0 else 1.0 for m in moved]
    network.calibrate(factors)
    return factors
