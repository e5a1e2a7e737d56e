"""Routers of many patches at work: which rows each takes, and what stands there for the model's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from errata.model.passes import Pass
from errata.patch.changes import Router


class Team:
    """Routers of one class, at most one per group.

    Args:
        members: Groups and their routers.
    """

    def __init__(self, members: Sequence[tuple[int, Router]]) -> None:
        self.groups = [group for group, _ in members]
        self.members = [router for _, router in members]
        join = getattr(type(self.members[0]), "together", None)
        self._joint: Any = join(self.members) if join is not None and len(members) > 1 else None

    def members_of(
        self, rows: Sequence[int], device: torch.device
    ) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"]]:
        """Return the rows that have a router here, and the number of each one's router."""
        number = {group: at for at, group in enumerate(self.groups)}
        pairs = [(row, number[group]) for row, group in enumerate(rows) if group in number]
        pairs = torch.tensor(pairs, dtype=torch.long, device=device).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def scope(self, seen: Pass, owner: Int[Tensor, " B"]) -> Bool[Tensor, " B"]:
        """Return which of these rows are answered."""
        if self._joint is not None:
            return self._joint.scope(seen, owner)
        taken = torch.zeros(len(owner), dtype=torch.bool, device=owner.device)
        for number in owner.unique().tolist():
            rows = (owner == number).nonzero()[:, 0]
            taken[rows] = self.members[number].scope(seen.rows(rows)).to(taken.device)
        return taken

    @property
    def rewrites(self) -> bool:
        """Whether what its routers do is to answer other tokens (`rewritten`)."""
        return all(hasattr(router, "rewritten") for router in self.members)

    def rewritten(self, seen: Pass, owner: Int[Tensor, " B"]) -> list[tuple[int, ...]]:
        """Return the tokens that the model answers in the place of these rows."""
        if self._joint is not None:
            return self._joint.rewritten(seen, owner)
        texts: list[tuple[int, ...]] = [()] * len(owner)
        for number in owner.unique().tolist():
            rows = (owner == number).nonzero()[:, 0]
            member: Any = self.members[number]
            for row, text in zip(rows.tolist(), member.rewritten(seen.rows(rows)), strict=True):
                texts[row] = text
        return texts

    def logits(
        self,
        seen: Pass,
        owner: Int[Tensor, " B"],
        at: Int[Tensor, "N 2"],
        base: Float[Tensor, "N V"],
    ) -> Float[Tensor, "N V"]:
        """Return what stands for the model's logits at these places of these rows."""
        if self._joint is not None:
            return self._joint.logits(seen, owner, at, base)
        made = base
        for number in owner.unique().tolist():
            rows = (owner == number).nonzero()[:, 0]
            lines = torch.isin(at[:, 0], rows).nonzero()[:, 0]
            row, column = at[lines].unbind(1)
            # the router sees its own rows only, so they are counted anew
            places = torch.stack([torch.searchsorted(rows, row.contiguous()), column], 1)
            new = self.members[number].logits(seen.rows(rows), places, base[lines])
            made = made.index_copy(0, lines, new.to(made.dtype))
        return made


def teams(routers: Sequence[tuple[int, Router]]) -> list[Team]:
    """Gather routers that can work side by side: of one class, in the same place of their group."""
    place: dict[int, int] = {}
    teams: dict[tuple[int, type], list[tuple[int, Router]]] = {}
    for group, router in routers:
        at = place[group] = place.get(group, -1) + 1
        teams.setdefault((at, type(router)), []).append((group, router))
    return [Team(teams[key]) for key in sorted(teams, key=lambda key: key[0])]


def answered(
    team: Team,
    owner: Int[Tensor, " m"],
    seen: Pass,
    rows: Int[Tensor, " m"],
    logits: Float[Tensor, "B T V"],
) -> Float[Tensor, "B T V"]:
    """Put routers' logits in the place of the model's; other rows keep their bits."""
    part = seen.rows(rows)
    if seen.at is not None and part.at is not None:  # logits are [1, N, V]
        in_scope: Bool[Tensor, " N"] = torch.isin(seen.at[:, 0], rows)
        lines = in_scope.nonzero()[:, 0]
        new = team.logits(part, owner, part.at, logits[0, lines])
        return logits[0].index_copy(0, lines, new.to(logits.dtype))[None]
    length, width = seen.ids.shape[1], logits.shape[1]
    columns = torch.arange(length - width, length, device=rows.device)
    numbers = torch.arange(len(rows), device=rows.device)
    at = torch.stack([numbers.repeat_interleave(width), columns.repeat(len(rows))], 1)
    new = team.logits(part, owner, at, logits[rows].flatten(0, 1))
    return logits.index_copy(0, rows, new.to(logits.dtype).view(len(rows), width, -1))
