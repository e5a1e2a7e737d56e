"""The changes of a patch as two thin factors per projection, all of one rank, as adapters hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from errata.errors import PatchError
from errata.model.experts import ExpertMatrix
from errata.patch.places import is_transposed

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.patch.patch import Patch

_SMALL = 1e-7  # singular values below this share of the largest carry nothing in float32


@dataclass(frozen=True)
class Factored:
    """A patch in the form of an adapter.

    Attributes:
        rank: The one rank of all modules; smaller changes are padded with zeros.
        pairs: By path of a module of the base model: `B` `[d_out, rank]` and `A` `[rank, d_in]`, in
            float32, whatever way round the module stores its weight.
        lost: By path, the share of `||ΔW||²` that truncation to `rank` left out.
    """

    rank: int
    pairs: Mapping[str, tuple[Tensor, Tensor]]
    lost: Mapping[str, float]


def low_rank_svd(
    B: Float[Tensor, "d_out r"], A: Float[Tensor, "r d_in"]
) -> tuple[Float[Tensor, "d_out k"], Float[Tensor, " k"], Float[Tensor, "k d_in"]]:
    """Return the singular value decomposition of `B A` without forming the product.

    Two thin QR decompositions and one small SVD, in float64.
    """
    q_left, r_left = torch.linalg.qr(B.double())
    q_right, r_right = torch.linalg.qr(A.double().T)
    u, s, vh = torch.linalg.svd(r_left @ r_right.T, full_matrices=False)
    return q_left @ u, s, vh @ q_right.T


def _decompose(lm: LM, patch: Patch) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Return the singular triplets of every changed projection.

    Raises:
        PatchError: If a change is none of a projection's weight.
    """
    low: dict[str, tuple[Tensor, Tensor]] = {}
    dense: dict[str, Tensor] = {}
    for change in patch.compact().changes:
        path = change.projection(lm)
        if isinstance(lm.module(path), ExpertMatrix):
            raise PatchError(
                f"{path} is one expert of a stack: an adapter of LoRA changes whole modules",
                "Export with --to merged, or keep the patch folder.",
            )
        if change.factors is not None:
            B, A = (factor.cpu() for factor in change.factors)
            if path in low:  # what edits can be taken back from stands apart
                B, A = torch.cat([low[path][0], B], 1), torch.cat([low[path][1], A], 0)
            low[path] = B, A
        else:
            delta = change.difference(lm)
            delta = delta.T if is_transposed(lm.module(path)) else delta
            dense[path] = dense.get(path, 0) + delta.cpu().double()
    triplets = {}
    for path in sorted(low.keys() | dense.keys()):
        if path in dense:
            total = dense[path]
            if path in low:
                total = total + low[path][0].double() @ low[path][1].double()
            triplets[path] = torch.linalg.svd(total, full_matrices=False)
        else:
            triplets[path] = low_rank_svd(*low[path])
    return triplets


def base_path(path: str) -> str:
    """Return the path of a module in the base model, of one in a model that PEFT has wrapped."""
    parts = path.split(".")
    if parts[:2] == ["base_model", "model"]:
        parts = parts[2:]
    return ".".join(part for part in parts if part != "base_layer")


def of_base(patch: Patch) -> Patch:
    """Return a patch with the model that its adapter is for.

    The fingerprint of a model that PEFT has wrapped counts its adapters as well, and so is not the
    base model's; it is left out then.
    """
    if all(change.path == base_path(change.path) for change in patch.changes):
        return patch
    meta = {name: v for name, v in patch.meta.items() if not name.startswith("fingerprint")}
    return replace(patch, meta=meta)


def base_of(lm: LM) -> str:
    """Return the base model as it can be loaded: a folder or a Hub id."""
    return getattr(lm.model, "name_or_path", "") or lm.name


def factored(lm: LM, patch: Patch, max_rank: int | None = None) -> Factored:
    """Return a patch as factors.

    Args:
        lm: The base model of the patch.
        patch: Changes of projection weights.
        max_rank: Largest rank allowed; a change of higher rank is truncated to its leading singular
            directions, which is the best approximation of that rank.

    Raises:
        PatchError: If the patch is empty, for another model, holds numbers that are not finite, or
            changes more than projection weights.
    """
    patch.check(lm)
    patch.check_finite()
    if patch.is_empty:
        raise PatchError("this patch changes nothing; there is nothing to export")
    if max_rank is not None and max_rank < 1:
        raise PatchError(f"--max-rank {max_rank}: expected at least 1")
    triplets = _decompose(lm, patch)
    ranks = [max(int((s > _SMALL * s.max()).sum()), 1) for _, s, _ in triplets.values()]
    rank = max(ranks) if max_rank is None else min(max(ranks), max_rank)
    pairs, lost = {}, {}
    for path, (u, s, vh) in triplets.items():
        keep = min(rank, len(s))
        own = base_path(path)
        lost[own] = lost_beyond(s, keep)
        root = s[:keep].sqrt()
        A = torch.zeros(rank, vh.shape[1], dtype=torch.float32)
        B = torch.zeros(u.shape[0], rank, dtype=torch.float32)
        A[:keep] = (root[:, None] * vh[:keep]).float()
        B[:, :keep] = (u[:, :keep] * root).float()
        pairs[own] = B, A
    return Factored(rank, pairs, lost)


def lost_beyond(s: Float[Tensor, " k"], keep: int) -> float:
    """Return the share of the squared singular values behind the first `keep`."""
    total = float((s**2).sum())
    return float((s[keep:] ** 2).sum()) / total if total else 0.0


def lost_at(pairs: Mapping[str, tuple[Tensor, Tensor]], rank: int) -> dict[str, float]:
    """Return the energy that each module would lose at a smaller rank."""
    return {path: lost_beyond(low_rank_svd(B, A)[1], rank) for path, (B, A) in pairs.items()}
