"""LyapLock: what a sequence of edits may cost in ordinary knowledge is bounded in the long run.

Two sums stand for what a matrix has to keep: its ordinary keys `K0`, where it should answer as the
unedited one, and the keys `K_p` of earlier edits, where it should answer as it did when they were
made. Every turn solves for all of them, with `D` the change so far, `R` what is missing at the
turn's keys `K` (columns), `S = K_p K_p^T` and `M = D_p K_p K_p^T` summed over earlier edits:

    D' = D + (R K^T - q w D C + M - D S) (q w C + S + K K^T)^-1
       = ((D K + R) K^T + M) (q w C + S + K K^T)^-1

The weight `q >= 1` of ordinary keys is a queue: it grows while the damage `tr(D C D^T)` is beyond
`alpha` times that of the first turn, and shrinks while it is below:
`q <- max(1, q + damage / (alpha first) - 1)`. So the mean damage of T turns is at most
`alpha first (1 + (q_T - 1) / T)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from errata.config import Settings
from errata.editors.base_joint import JointEditor, Write
from errata.errors import PatchError
from errata.locate.memory import KeyMemory
from errata.locate.solve import positive
from errata.model.lm import LM
from errata.patch import Change, Dense, Patch
from errata.patch.deltas import weight_deltas
from errata.strategies.base import Strategy

if TYPE_CHECKING:
    from errata.case import Edit
    from errata.editors.memit import MemitConfig
    from errata.model.spec import Site

Matrix = Float[Tensor, "d f"]


class LyapLockSettings(Settings):
    """Settings of LyapLock."""

    lyaplock_alpha: float = Field(
        default=60.0, gt=0,
        description="Damage to ordinary keys that a sequence may cost in the long run, in units of "
        "the first turn's (alpha); large: it is plain least squares with a memory",
    )  # fmt: skip


@dataclass(frozen=True)
class Queue:
    """What is kept of one matrix beside the keys of its edits.

    Attributes:
        level: `q`, the weight of ordinary keys in units of the host's.
        first: Damage after the first turn; 0: nothing was changed so far.
        aims: `M`, what earlier edits' keys are to be answered with, times those keys; None: no
            edits.
        start: What other editors had changed before the first turn, which stays; None: nothing.
    """

    level: float = 1.0
    first: float = 0.0
    aims: Matrix | None = None
    start: Matrix | None = None

    def own(self, changed: Matrix) -> Matrix:
        """Return `D`, of all that a matrix has changed."""
        return changed if self.start is None else changed - self.start.to(changed)

    def after(self, change: Matrix, gram: Tensor, C: Tensor, alpha: float) -> Queue:
        """Return the queue after a turn.

        Args:
            change: `D'`, as it is after the turn.
            gram: `K K^T` of the turn's edits, `f x f`.
            C: Second moment of ordinary keys.
            alpha: Damage that is allowed, in units of the first.
        """
        aims = change @ gram
        aims = aims if self.aims is None else self.aims.to(aims) + aims
        now = damage(change, C)
        first = self.first or now
        gone = now / (alpha * first) if first else 0.0
        return replace(self, level=max(1.0, self.level + gone - 1.0), first=first, aims=aims)

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return it as named tensors, for the state of a patch."""
        queue = torch.tensor([self.level, self.first], dtype=torch.float64)
        named = {"queue": queue, "aims": self.aims, "start": self.start}
        return {f"{prefix}.{name}": value for name, value in named.items() if value is not None}

    @classmethod
    def from_tensors(cls, mapping: Mapping[str, Tensor], prefix: str) -> Queue | None:
        """Return what `tensors` named; None if it named nothing.

        Raises:
            PatchError: If a part is missing.
        """
        queue, aims = mapping.get(f"{prefix}.queue"), mapping.get(f"{prefix}.aims")
        if queue is None and aims is None:
            return None
        if queue is None or aims is None or queue.shape != (2,) or aims.ndim != 2:
            raise PatchError(
                f"the state {prefix!r} of the patch contradicts itself", "Make the patch again."
            )
        level, first = queue.tolist()
        return cls(level, first, aims.to(torch.float64), mapping.get(f"{prefix}.start"))


def damage(change: Matrix, C: Float[Tensor, "f f"]) -> float:
    """Return `tr(D C D^T)`: mean square of what ordinary keys are answered with now and were."""
    return float(((change @ C) * change).sum())


def locked(
    residual: Float[Tensor, "u d"],
    keys: Float[Tensor, "u f"],
    C: Float[Tensor, "f f"],
    weight: float,
    queue: Queue,
    past: Float[Tensor, "f f"],
    change: Matrix,
) -> Matrix:
    """Return what a turn adds to a matrix, in float64.

    Args:
        residual: What is missing at the keys, in rows.
        keys: Of the turn's edits, in rows.
        C: Second moment of ordinary keys.
        weight: Of it, against one edit's key (w).
        queue: What is kept.
        past: `S`, of the keys of earlier edits.
        change: `D`, all that the matrix has changed so far.

    Raises:
        EditError: If the system cannot be solved.
    """
    own = queue.level * weight
    K, R = keys.to(C), residual.to(C)
    left = R.T @ K - change @ (own * C + past)
    if queue.aims is not None:
        left += queue.aims.to(C)
    lower, _ = positive(own * C + past + K.T @ K, "the system of the edits")
    return torch.cholesky_solve(left.T, lower).T


class LyapLock(Strategy, JointEditor):
    """Damage to ordinary knowledge bounded over a sequence, by a queue that weighs it."""

    name = "lyaplock"
    title = "LyapLock"
    paper = (
        "Wang et al., LyapLock: Bounded Knowledge Preservation in Sequential Large Language Model "
        "Editing, EMNLP 2025, arXiv:2505.15702"
    )
    hosts = ("memit",)
    Settings = LyapLockSettings
    overrides: ClassVar[Mapping[str, Mapping[str, Mapping[str, object]]]] = {
        "memit": {
            name: {"lyaplock_alpha": 60.0, "mom2_weight": 1000.0}
            for name in ("gpt2-xl", "gpt-j-6b", "llama-3-8b")
        }
    }

    @property
    def remembers(self) -> bool:
        """Keys of earlier edits are always kept."""
        return True

    def change(self, lm: LM, write: Write) -> Change:
        """Solve for a turn's edits, the earlier ones and ordinary keys; the first is the host's."""
        queue = Queue.from_tensors(write.now.state, _prefix(write.layer))
        if queue is None:
            return super().change(lm, write)
        C = self._moment(lm, write.layer)
        changed = _changed(lm, write.now.changes, write.site)
        past = (write.memory or KeyMemory.empty()).total()
        assert changed is not None
        assert past is not None
        weight = cast("MemitConfig", self.config).mom2_weight
        before = queue.own(changed.to(C))
        added = locked(write.residual, write.keys, C, weight, queue, past.to(C), before)
        added = added.to(write.residual.dtype)
        return Dense(write.site.weight, (added.T if write.site.transposed else added).contiguous())

    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Make the edits, and note what every matrix' queue is afterwards."""
        made = super().edit_groups(lm, groups, before)
        return [
            replace(patch, state={**patch.state, **self._queues(lm, old, patch)})
            for old, patch in zip(before, made, strict=True)
        ]

    def _queues(self, lm: LM, old: Patch, made: Patch) -> dict[str, Tensor]:
        """Return the queues after a turn, as named tensors."""
        alpha = cast("LyapLockSettings", self.config).lyaplock_alpha
        found: dict[str, Tensor] = {}
        for layer in self.edited_layers(lm):
            prefix, site, C = _prefix(layer), lm.site(layer), self._moment(lm, layer)
            queue = Queue.from_tensors(old.state, prefix)
            if queue is None:
                queue = Queue(start=_changed(lm, old.changes, site))
            changed = _changed(lm, (*old.changes, *made.changes), site)
            gram = KeyMemory.from_tensors(made.state, prefix).total()
            assert changed is not None
            assert gram is not None
            past = KeyMemory.from_tensors(old.state, prefix).total()
            gram = gram.to(C) if past is None else gram.to(C) - past.to(C)
            found |= queue.after(queue.own(changed.to(C)), gram, C, alpha).tensors(prefix)
        return found

    def _moment(self, lm: LM, layer: int) -> Float[Tensor, "f f"]:
        factor = self.prepared(lm).moments[layer]
        assert factor is not None
        return lm.once(("lyaplock moment", layer), factor.matrix, owner=self)


def _prefix(layer: int) -> str:
    """Name what is kept of a block: beside its keys, with which it is replaced as a whole."""
    return f"memory.{layer}"


def _changed(lm: LM, changes: Sequence[Change], site: Site) -> Matrix | None:
    """Return all that changes add to a matrix, `d x f` in float64; None: nothing."""
    mine = [change.in_float64() for change in changes if change.parameter == site.weight]
    for delta in weight_deltas(lm, mine).values():
        return (delta.T if site.transposed else delta).double()
    return None
