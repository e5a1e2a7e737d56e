"""What the contract measures: everything an editor could leave behind, and what an edit does."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from errata.case import Edit
from errata.model.lm import LM
from errata.model.tokens import positions_of
from errata.patch import Change, LowRank, Patch
from errata.patch.reach import blocks_at
from errata.testing.models import EDITS


def snapshot(lm: LM) -> dict[str, Any]:
    """Everything an editor could leave behind."""
    modules = dict(lm.model.named_modules())
    drawn: Any = np.random.get_state()  # noqa: NPY002 -- the global one is meant
    return {
        "weights": {k: v.detach().clone() for k, v in lm.model.state_dict().items()},
        "training": {path: m.training for path, m in modules.items()},
        "grads": {n: (p.requires_grad, p.grad) for n, p in lm.model.named_parameters()},
        "hooks": {
            path: [len(v) for k, v in sorted(vars(m).items()) if k.endswith("_hooks")]
            for path, m in modules.items()
        },
        "own": {path: sorted(k for k in vars(m) if k == "forward") for path, m in modules.items()},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if lm.device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": drawn[1].tolist(),
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "enabled": torch.is_grad_enabled(),
        "precision": torch.get_float32_matmul_precision(),
    }


def equal(a: Any, b: Any) -> bool:
    """Return whether two snapshots, or parts of them, are the same to the last bit."""
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return a == b


def logits(lm: LM, patch: Patch | None = None) -> Tensor:
    """Return logits of all edits' targets, under a patch."""
    rows = [lm.row_of(edit) for edit in EDITS]
    batch = lm.batch(rows, range(len(rows)))
    at = positions_of(rows, range(len(rows)))
    with torch.no_grad():
        if patch is None:
            return lm.logits(batch, at)
        with patch.applied(lm):
            return lm.logits(batch, at)


def likelihood(lm: LM, edits: Sequence[Edit]) -> float:
    """Return the mean log-likelihood of the targets' tokens."""
    scores = lm.score([lm.row_of(edit) for edit in edits])
    return sum(sum(score.logprobs) / len(score.logprobs) for score in scores) / len(scores)


def distance(a: Tensor, b: Tensor | float = 0.0) -> float:
    """Return the norm of a difference; also of token ids, which have none of their own."""
    return float((a - b).double().norm())


def blocks_of(lm: LM, change: Change) -> set[int]:
    """Return the block that a change of the model's insides stands in; none if it is in none."""
    return set(blocks_at(lm, f"{getattr(change, 'path', '')}."))


def tensors(patch: Patch) -> list[Tensor]:
    """Return all tensors of the changes."""
    return [tensor for change in patch.changes for tensor in change.tensors().values()]


def low_rank(lm: LM, seed: int = 0) -> Patch:
    """Return a patch as an earlier edit leaves it."""
    g = torch.Generator().manual_seed(seed)
    site = lm.site(1)
    B = 0.1 * torch.randn(site.d_out, 1, generator=g, dtype=torch.float64)
    A = 0.1 * torch.randn(1, site.d_in, generator=g, dtype=torch.float64)
    return Patch.for_model(lm, [LowRank(site.path, B, A)], editor="hand", edits=EDITS[:1])
