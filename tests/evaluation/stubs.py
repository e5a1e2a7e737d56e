"""Editors without mathematics: what they return is known, and what they were asked is recorded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

from errata.case import Edit
from errata.editors.base import Editor
from errata.errors import EditError
from errata.model.lm import LM
from errata.patch import Change, Dense, LowRank, Patch


def vector(text: str, size: int) -> torch.Tensor:
    """A fixed random vector for a text."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Planted(Editor):
    """Adds one fixed random rank-one change per edit; a prompt with FAIL cannot be edited.

    Prompts named in `clash` cannot be edited together: the error names every one but the first.

    Args:
        strength: Size of the change.
        kind: `low_rank`, `dense` (on a projection) or `norm` (cannot differ from row to row).
    """

    name = "planted"
    title = "Planted"
    paper = ""

    def __init__(self, strength: float = 1.0, kind: str = "low_rank", layer: int = 1) -> None:
        super().__init__()
        self.strength, self.kind, self.layer = strength, kind, layer
        self.calls: list[tuple[list[list[str]], list[Patch]]] = []
        self.stop_after: int | None = None
        self.clash: tuple[str, ...] = ()

    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        self.calls.append(([[edit.prompt for edit in group] for group in groups], list(before)))
        if self.stop_after is not None and len(self.calls) > self.stop_after:
            raise KeyboardInterrupt
        for group in groups:
            seen: set[str] = set()
            for edit in group:
                if edit.prompt in self.clash and seen & set(self.clash):
                    raise EditError(f"{edit.prompt!r} is in conflict", edits=(edit,))
                seen.add(edit.prompt)
                if "FAIL" in edit.prompt:
                    raise EditError(f"cannot edit {edit.prompt!r}")
        return [
            self.make_patch(lm, [self._change(lm, edit) for edit in group], group)
            for group in groups
        ]

    def _change(self, lm: LM, edit: Edit) -> Change:
        if self.kind == "norm":
            name = f"{lm.spec.final_norm}.weight"
            weight = lm.model.get_parameter(name)
            text = f"{edit.prompt}|{edit.target}"
            return Dense(name, (self.strength * vector(text, weight.numel())).to(weight.dtype))
        site = lm.site(self.layer)
        b = self.strength * vector(f"{edit.prompt}|{edit.target}|b", site.d_out)[:, None]
        a = vector(f"{edit.prompt}|{edit.target}|a", site.d_in)[None, :]
        b, a = b.to(lm.dtype), a.to(lm.dtype)
        if self.kind == "low_rank":
            return LowRank(site.path, b, a)
        delta = b @ a
        return Dense(site.weight, delta.T.contiguous() if site.transposed else delta)

    @property
    def edited(self) -> list[str]:
        """Prompts of all edits that were asked for, in order."""
        return [prompt for groups, _ in self.calls for group in groups for prompt in group]


class Broken(Planted):
    """Returns NaN for every edit."""

    name = "broken"

    def _change(self, lm: LM, edit: Edit) -> Change:
        change = super()._change(lm, edit)
        assert isinstance(change, LowRank)
        return LowRank(change.path, change.B * float("nan"), change.A)

    def _finish(self, lm: LM, before: Patch, added: Patch, group: Sequence[Edit]) -> Patch:
        return before + added  # a plug-in that forgets to check
