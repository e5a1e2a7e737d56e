"""Hidden states kept between passes: rows that run again begin behind the last unchanged block.

A patch leaves the blocks below its first changed one as they are, so what they give for a row is
the same before and after the edit.

```
 before   ids ─▶ block 0 … k │ k + 1 … n ─▶ head        putting(lm, kept, …): k's output is kept
 after    ids   (not run)    │ k + 1 … n ─▶ head        resuming(lm, kept, …): it stands in
                kept [t, d] per row, zeros where a row is padded
```
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from errata.model.hooks import after, hooked
from errata.model.passes import first, reuse_below

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.model.tokens import Batch

BUDGET = 1 << 28
"""Most bytes of hidden states that are kept; rows beyond it run whole."""


@dataclass
class Kept:
    """Outputs of one block, by row.

    Attributes:
        block: Number of the block; -1: nothing can be kept.
        budget: Most bytes.
        rows: Hidden states `[t, d]` of the real tokens of each row.
        held: Bytes in use.
        filling: Whether passes are whole, and what they compute is kept; else they begin here.
    """

    block: int
    budget: int = BUDGET
    rows: dict[Hashable, Float[Tensor, "t d"]] = field(default_factory=dict)
    held: int = 0
    filling: bool = False

    def put(
        self, names: Sequence[Hashable], lengths: Sequence[int], hidden: Float[Tensor, "B T d"]
    ) -> None:
        """Keep the rows of a batch as long as there is room."""
        for name, length, states in zip(names, lengths, hidden, strict=True):
            size = length * states.shape[-1] * states.element_size()
            if name in self.rows or self.held + size > self.budget:
                continue
            self.rows[name] = states[:length].detach().clone()
            self.held += size

    def holds(self, names: Sequence[Hashable]) -> bool:
        """Whether all rows of a batch were kept."""
        return all(name in self.rows for name in names)

    def of(self, names: Sequence[Hashable], width: int) -> Float[Tensor, "B T d"] | None:
        """Return the rows of a batch of this width; None if one of them was not kept."""
        found = [self.rows.get(name) for name in names]
        kept = [states for states in found if states is not None]
        if len(kept) < len(found):
            return None
        hidden = kept[0].new_zeros(len(kept), width, kept[0].shape[-1])
        for line, states in zip(hidden, kept, strict=True):
            line[: len(states)] = states
        return hidden


@contextmanager
def putting(lm: LM, kept: Kept, names: Sequence[Hashable], batch: Batch) -> Iterator[None]:
    """Keep the hidden states of the pass of this batch that runs inside a `with` block."""
    if kept.block < 0 or lm.installed.around_model or kept.holds(names):
        yield
        return
    lengths = batch.attention_mask.sum(-1).tolist()

    def put(module: object, args: object, output: object) -> None:
        kept.put(names, lengths, first(output))

    with hooked(lm, after(lm.module(lm.spec.blocks[kept.block]), put)):
        yield


@contextmanager
def resuming(lm: LM, kept: Kept | None, names: Sequence[Hashable], batch: Batch) -> Iterator[None]:
    """Let the pass of this batch begin behind the kept block, if all its rows were kept.

    Changes that see whole rows, or put tokens in front of them, get whole passes.
    """
    hidden = None
    if kept is not None and kept.block >= 0 and not lm.installed.around_model:
        hidden = kept.of(names, batch.input_ids.shape[1])
    if hidden is None or kept is None:
        yield
        return
    with torch.no_grad(), reuse_below(lm, kept.block, hidden):
        yield


def kept_or_resumed(
    lm: LM, names: Sequence[Hashable], batch: Batch
) -> AbstractContextManager[None]:
    """Keep hidden states of the pass of a batch, or begin from them, as is installed on the model.

    See `keeping` and `from_kept`.
    """
    kept = lm.installed.kept
    if kept is None:
        return nullcontext()
    return putting(lm, kept, names, batch) if kept.filling else resuming(lm, kept, names, batch)


@contextmanager
def keeping(lm: LM, kept: Kept | None) -> Iterator[None]:
    """Keep the hidden states of all rows that are scored inside a `with` block."""
    if kept is None:
        yield
        return
    kept.filling = True
    try:
        with lm.installed.running(kept=kept):
            yield
    finally:
        kept.filling = False


def from_kept(lm: LM, kept: Kept | None, changed: int | None) -> AbstractContextManager[None]:
    """Let rows that are scored begin from kept hidden states, if no change reaches below them.

    Args:
        lm: The model.
        kept: What was kept of it without a patch.
        changed: The lowest block that is changed now; None: unknown.
    """
    fits = kept is not None and changed is not None and changed > kept.block
    return lm.installed.running(kept=kept if fits else None)
