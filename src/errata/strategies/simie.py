"""SimIE: many edits as if each were the first, joined by one ridge regression.

What a host would do to the unedited model is ideal for each edit by itself. SimIE keeps those
updates `D_i` at the inputs of their own texts and, where texts share directions, settles for the
least-squares compromise: `D = (sum_i D_i K_i^T K_i) (sum_i K_i^T K_i + lambda I)^-1`, rows of `K_i`
being the inputs of the matrix at all tokens of prompt and target. That is the closed form of the
published recursion, so nothing depends on the order of the edits: they are made side by side, a
sequence is no different from a batch, and any edit can be taken back (`errata remove`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from errata.case import Edit
from errata.config import Settings
from errata.editors.base_located import LocateEditor
from errata.editors.contradictions import refuse_earlier
from errata.editors.memit import NARROW
from errata.model.lm import LM
from errata.model.passes import capture, wide
from errata.model.tokens import Row
from errata.patch import Change, Patch, Ridge
from errata.patch.changes.ridge import Rows
from errata.patch.deltas import weight_deltas
from errata.patch.removal import edit_key
from errata.strategies.base import Strategy

if TYPE_CHECKING:
    from errata.model.spec import Site

AT_ONCE = 32
"""Edits whose own updates are held at a time; those of some hosts are as large as the matrix."""


PUBLISHED = 1e4
"""The weight that was published for models of 6 to 8 billion parameters."""

SMALL = 1.0
"""That of narrow models, whose inputs are a hundred times as small; measured in docs/methods.md."""


class SimieSettings(Settings):
    """Settings of SimIE."""

    simie_ridge: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        default="auto",
        description="Weight of the size of the update, against squared inputs (lambda): large, "
        "and edits are made by halves; small, and inputs that edits share are fought over; auto: "
        f"{PUBLISHED:g} as published, {SMALL:g} on models narrower than {NARROW:,}",
    )


class SimIE(Strategy, LocateEditor):
    """Simulated ideal editor: every edit made on the unedited model, all joined by a ridge."""

    name = "simie"
    title = "SimIE"
    paper = (
        "Guo et al., Towards Lifelong Model Editing via Simulating Ideal Editor, ICML 2025, "
        "https://openreview.net/forum?id=VdEG08ZJCH"
    )
    hosts = (
        "alphaedit", "emmet", "memit", "memit_seq", "p_rome", "pmet", "prune", "r_rome", "rect",
        "rome",
    )  # fmt: skip
    Settings = SimieSettings

    @property
    def edits_experts(self) -> bool:
        """Its rows are inputs of all tokens, which experts do not see."""
        return False

    @torch.no_grad()
    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Let the host make every edit by itself, side by side, then join those of each group."""
        edits = list(dict.fromkeys(edit for group in groups for edit in group))
        rows: dict[Edit, dict[str, Rows]] = {}
        for first in range(0, len(edits), AT_ONCE):
            some = edits[first : first + AT_ONCE]
            alone = super().edit_groups(lm, [[edit] for edit in some], [Patch()] * len(some))
            for edit, patch in zip(some, alone, strict=True):
                rows[edit] = self._rows(lm, edit, patch)
        return [
            self._joined(lm, group, [rows[edit] for edit in group], old)
            for group, old in zip(groups, before, strict=True)
        ]

    def _rows(self, lm: LM, edit: Edit, patch: Patch) -> dict[str, Rows]:
        """Return for each matrix the inputs of an edit's text, and what its own update adds."""
        sites = [lm.site(layer) for layer in self.edited_layers(lm)]
        keys = inputs_of(lm, edit, sites)
        deltas = weight_deltas(lm, patch.changes)
        found: dict[str, Rows] = {}
        for site, K in zip(sites, keys, strict=True):
            if site.weight in deltas:
                D = deltas[site.weight].to(K)
                found[site.path] = (edit_key(edit), K, K @ (D if site.transposed else D.T))
        return found

    def _joined(
        self, lm: LM, group: Sequence[Edit], rows: Sequence[dict[str, Rows]], old: Patch
    ) -> Patch:
        """Solve for the edits of an earlier patch and these together."""
        mine = {change.path: change for change in self._own(old)}
        held = {name for change in mine.values() for name in change.holds}
        refuse_earlier(old.edits, group, held, getattr(self.config, "conflicts", "refuse"))
        changes: list[Change] = []
        for path in dict.fromkeys(path for own in rows for path in own):
            added = [own[path] for own in rows if path in own]
            earlier = mine.get(path)
            changes.append(
                earlier.with_rows(added)
                if earlier is not None
                else Ridge.of(path, added, self.ridge(lm), self.name)
            )
        return self.make_patch(lm, changes, group)

    def ridge(self, lm: LM) -> float:
        """Return lambda for a model."""
        asked = cast("SimieSettings", self.config).simie_ridge
        if asked != "auto":
            return asked
        return SMALL if lm.site(0, "attn_out").d_out < NARROW else PUBLISHED

    def _own(self, patch: Patch) -> list[Ridge]:
        return [c for c in patch.changes if isinstance(c, Ridge) and c.maker == self.name]

    def _compose(self, lm: LM, before: Patch, added: Patch) -> Patch:
        """Put what was solved anew in the place of what it contains."""
        paths = {change.path for change in added.changes}
        gone = [change for change in self._own(before) if change.path in paths]
        kept = tuple(c for c in before.changes if not any(c is old for old in gone))
        return replace(before, changes=kept) + added


def inputs_of(lm: LM, edit: Edit, sites: Sequence[Site]) -> list[Float[Tensor, "t f"]]:
    """Return what matrices are given at every token of an edit's prompt and target.

    Each edit runs by itself, so that its inputs are the same to the bit whatever it is made with.
    """
    row = lm.row_of(edit)
    ids = (*row.ids, row.labels[-1])
    whole = Row(ids, (len(ids) - 1,), (), row.prompt_length)
    modules = [lm.module(site.path) for site in sites]
    inputs, _ = capture(lm, lm.batch([whole], [0]), modules)
    return [wide(x.reshape(len(ids), -1)) for x in inputs]
