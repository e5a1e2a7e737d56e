"""SPHERE: updates kept off the main directions of the matrix that is edited.

The rows of a weight, scaled to length one, lie on a sphere; a few directions carry most of them.
Updates along those disturb what the whole matrix does, and sequences of them destroy it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from errata.config import Settings
from errata.editors.base_located import LocateEditor
from errata.errors import EditError
from errata.model.lm import LM
from errata.model.stored import read
from errata.patch import Change, Dense, LowRank, Patch
from errata.patch.deltas import weight_deltas
from errata.strategies.base import Strategy

if TYPE_CHECKING:
    from errata.model.spec import Site

TINY = 1e-8
"""Added to the length of a row, as released."""

GENTLE = ("alphaedit",)
"""Hosts that stay off ordinary inputs already; others get the larger published strength."""


class SphereSettings(Settings):
    """Settings of SPHERE."""

    sphere_share: float = Field(
        default=0.5, ge=0, lt=1,
        description="Share of the rows' spread that the main directions carry together (eta); 0: "
        "off",
    )  # fmt: skip
    sphere_strength: float | None = Field(
        default=None, ge=0, le=1,
        description="Share of an update along main directions that is taken away; none: as "
        "published, 0.5 on alphaedit and 0.8 on others",
    )  # fmt: skip


def main_directions(weight: Float[Tensor, "d f"], share: float) -> Float[Tensor, "f r"]:
    """Return the leading principal directions of a matrix' rows, scaled to length one.

    As many as carry at most `share` of the spread, and one more.
    """
    W = weight.double()
    rows = W / (W.norm(dim=1, keepdim=True) + TINY)
    _, s, Vh = torch.linalg.svd(rows, full_matrices=False)
    carried = s.square().cumsum(0) / s.square().sum()
    return Vh[: 1 + int((carried <= share).sum())].T


def kept_off(
    rows: Float[Tensor, "n f"], directions: Float[Tensor, "f r"], strength: float
) -> Float[Tensor, "n f"]:
    """Return rows with so much of their part along some directions taken away."""
    U = directions.to(torch.promote_types(rows.dtype, torch.float64))
    return (rows - strength * (rows.to(U) @ U) @ U.T).to(rows.dtype)


class Sphere(Strategy, LocateEditor):
    """Sphere-constrained updates: projected off the main directions of the edited matrix."""

    name = "sphere"
    title = "SPHERE"
    paper = (
        "Liu et al., Energy-Regularized Sequential Model Editing on Hyperspheres, arXiv:2510.01172"
    )
    hosts = (
        "alphaedit", "emmet", "memit", "memit_seq", "p_rome", "pmet", "prune", "r_rome", "rect",
        "rome",
    )  # fmt: skip
    Settings = SphereSettings

    def finished(self, lm: LM, layer: int, change: Change, now: Patch) -> Change:
        """Project what the host found, by the matrix as it is by now."""
        settings = cast("SphereSettings", self.config)
        change = super().finished(lm, layer, change, now)
        if not settings.sphere_share:
            return change
        strength = settings.sphere_strength
        if strength is None:
            strength = 0.5 if self.name.partition("+")[0] in GENTLE else 0.8
        site = lm.site(layer)
        U = main_directions(self._weight(lm, site, now), settings.sphere_share)
        if isinstance(change, LowRank):
            return replace(change, A=kept_off(change.A, U, strength).contiguous())
        if isinstance(change, Dense) and change.path == site.weight:
            rows = change.delta.T if site.transposed else change.delta
            rows = kept_off(rows, U, strength)
            return replace(change, delta=(rows.T if site.transposed else rows).contiguous())
        raise EditError(f"{self.name}: {change.label} is no change of {site.weight}")

    def _weight(self, lm: LM, site: Site, now: Patch) -> Float[Tensor, "d f"]:
        weight = read(lm.model, site.weight).detach().double()
        mine = tuple(change for change in now.changes if change.parameter == site.weight)
        for delta in weight_deltas(lm, mine).values():
            weight = weight + delta.double()
        return weight.T if site.transposed else weight
