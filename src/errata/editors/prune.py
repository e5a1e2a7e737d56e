"""PRUNE: MEMIT whose total update never has a larger singular value than the weights had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from pydantic import Field
from torch import Tensor

from errata.case import Edit
from errata.editors.memit import Memit, MemitConfig
from errata.locate.joint import clip_singular
from errata.model.lm import LM
from errata.model.stored import read
from errata.patch import Dense, Patch
from errata.patch.deltas import weight_deltas


class PruneConfig(MemitConfig):
    """Settings of PRUNE."""

    compat: bool = Field(
        default=False,
        description="Add the clipped update to the already edited weights, as released",
    )


class Prune(Memit):
    """PRUNE: the condition of edited matrices is restrained by clipping their total update.

    Batches follow one another without clipping, as published; what a patch holds is the clipped
    total of all of them. What clipping took away is kept in the patch's state.
    """

    name = "prune"
    title = "PRUNE"
    paper = (
        "Ma et al., Perturbation-Restrained Sequential Model Editing, ICLR 2025, arXiv:2405.16821"
    )
    needs = ("subject", "moments")
    weights = True
    batch = "joint"
    sequence = "adds"
    exports = ("lora", "merged")
    Config = PruneConfig
    published: ClassVar[Mapping[str, Mapping[str, object]]] = Memit.published
    config: PruneConfig

    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Solve as the host does, then clip what all batches so far add up to."""
        layers = self.prepared(lm).layers
        names = [lm.site(layer).weight for layer in layers]
        totals = [
            {name: patch.state.get(f"prune.total.{name}") for name in names} for patch in before
        ]
        unclipped = [
            patch + Patch(tuple(self._clipping(lm, total, -1.0)))
            for patch, total in zip(before, totals, strict=True)
        ]
        done: list[Patch] = []
        for added, old, group in zip(
            super().edit_groups(lm, groups, unclipped), totals, groups, strict=True
        ):
            deltas = weight_deltas(lm, added.changes)
            new: dict[str, Tensor | None] = {name: delta.double() for name, delta in deltas.items()}
            for name, earlier in old.items():
                if earlier is not None:
                    new[name] = deltas[name].double() + earlier
            # what this step adds: its own update, and the change of what clipping takes away
            changes = [
                *(Dense(name, delta) for name, delta in deltas.items()),
                *self._clipping(lm, old, -1.0),
                *self._clipping(lm, new, 1.0),
            ]
            step = weight_deltas(lm, changes)
            state = {
                **added.state, **{f"prune.total.{name}": value for name, value in new.items()}
            }  # fmt: skip
            dense = [Dense(name, step[name].to(deltas[name].dtype)) for name in deltas]
            done.append(self.make_patch(lm, dense, group, **state))
        return done

    @property
    def edits_experts(self) -> bool:
        """It clips what all batches add up to, in one matrix per block."""
        return False

    def _clipping(self, lm: LM, totals: Mapping[str, Tensor | None], sign: float) -> list[Dense]:
        """Return what clipping adds to unclipped totals (`clip(T) - T`; as released, `clip(T)`)."""
        changes = []
        for name, total in totals.items():
            if total is None:
                continue
            weight = read(lm.model, name).detach().double().to(lm.device)
            clipped = clip_singular(total.to(weight), weight)
            extra = clipped if self.config.compat else clipped - total.to(weight)
            changes.append(Dense(name, sign * extra))
        return changes
