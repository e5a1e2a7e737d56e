"""Keys and values of what rows begin with, kept so that passes go on behind them.

```
 tokens      row b   [ beginning │ prefix … │ suffix … ]
 beginning   known already, of this row or of all: not computed again     (`make_prefix(known=)`)
 Prefix      keys, values [B, heads, P, d_head]      suffix_batch    input_ids      [B, T]
             mask         [B, P], padded on the left                 attention_mask [B, P + T]
                   └───────────── lm.behind(prefix.cache()) ──────────┘
```
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from errata.model.hooks import bare, before, hooked
from errata.model.passes import Stop
from errata.model.tokens import Batch, Row, make_batch, positions_of

if TYPE_CHECKING:
    from errata.model.lm import LM


@dataclass(frozen=True)
class Prefix:
    """Keys and values of the tokens before position `starts[b]` of each row, right-aligned.

    Attributes:
        layers: Per block, keys and values `[B, heads, P, d_head]`; rows with a shorter prefix are
            padded on the left, so that every row continues at cache slot `P`.
        mask: `[B, P]`, 1 on real tokens.
        starts: First position of each row that is not in the prefix.
    """

    layers: tuple[tuple[Tensor, Tensor], ...]
    mask: Int[Tensor, "B P"]
    starts: tuple[int, ...]

    def above(self, skipped: int) -> Prefix:
        """Return the same without the keys and values of the first blocks, which will not run.

        Transformers asks the first block for the length, so all of them keep its tensors.
        """
        return replace(self, layers=self.layers[:1] * skipped + self.layers[skipped:])

    def rows(self, rows: Int[Tensor, " R"]) -> Prefix:
        """Return the prefixes of some of the rows."""
        picked: dict[int, tuple[Tensor, Tensor]] = {}
        for keys, values in self.layers:
            if id(keys) not in picked:
                here = rows.to(keys.device)  # each block's may lie on a device of its own
                picked[id(keys)] = (keys[here], values[here])
        layers = tuple(picked[id(keys)] for keys, _ in self.layers)
        return Prefix(layers, self.mask[rows], tuple(self.starts[i] for i in rows.tolist()))

    @classmethod
    def joined(cls, parts: Sequence[Prefix]) -> Prefix:
        """Return the prefixes of all rows of some prefixes as one."""
        if len(parts) == 1:
            return parts[0]
        width = max(part.mask.shape[1] for part in parts)

        def wide(part: Prefix, x: Tensor) -> Tensor:
            return nn.functional.pad(x, (0, 0, width - part.mask.shape[1], 0))

        layers = []
        for own in zip(*(part.layers for part in parts), strict=True):
            keys = [wide(part, k) for part, (k, _) in zip(parts, own, strict=True)]
            values = [wide(part, v) for part, (_, v) in zip(parts, own, strict=True)]
            layers.append((torch.cat(keys), torch.cat(values)))
        masks = [nn.functional.pad(p.mask, (width - p.mask.shape[1], 0)) for p in parts]
        return cls(tuple(layers), torch.cat(masks), tuple(n for p in parts for n in p.starts))

    def cache(self) -> Any:
        """Return a fresh key/value cache; a forward pass appends to it, never to this object.

        Its layers are shallow copies: appending makes new tensors and leaves these alone.
        """
        fresh = copy(self._filled)
        fresh.layers = [copy(layer) for layer in fresh.layers]
        return fresh

    @cached_property
    def _filled(self) -> Any:
        from transformers import DynamicCache

        filled = DynamicCache(self.layers)
        for layer, (keys, values) in zip(filled.layers, self.layers, strict=True):
            kept: Any = layer  # its class depends on the kind of attention
            kept.keys, kept.values = keys, values  # the constructor copied them
        return filled


@torch.no_grad()
def make_prefix(
    lm: LM,
    rows: Sequence[Row],
    starts: Sequence[int],
    known: Prefix | None = None,
) -> Prefix:
    """Compute the keys and values of `rows[b].ids[:starts[b]]` for all rows in one forward pass.

    They run right-padded, so no token ever attends to padding alone, and are then shifted.

    Args:
        lm: The model.
        rows: The rows.
        starts: How many tokens of each.
        known: Prefixes that rows begin with, which are not computed again: of each row, of no
            token where it has none; or one that all of them begin with.
    """
    from transformers import DynamicCache

    skip = (0,) * len(rows)
    if known is not None:
        if len(known.starts) == 1:
            known = known.rows(torch.zeros(len(rows), dtype=torch.long, device=lm.device))
        skip = known.starts
    heads = [
        Row(row.ids[begin : max(n, begin + 1)], (0,), (), 1, patch=row.patch)
        for row, begin, n in zip(rows, skip, starts, strict=True)
    ]
    batch = make_batch(heads, range(len(heads)), lm.pad_id, lm.device)
    cache, width = DynamicCache(), 0
    if known is not None:
        cache, width = known.cache(), known.mask.shape[1]
        batch = _behind(lm, batch, known)
    head = lm.module(lm.spec.head)

    def stop(module: nn.Module, args: tuple[Any, ...]) -> None:
        raise Stop

    # ends in front of the head: logits are not wanted
    with hooked(lm, before(head, stop)), suppress(Stop):
        lm.run(batch, **lm.behind(cache))
    return _pushed_right(lm, cache, starts, [width - begin for begin in skip])


@torch.no_grad()
def run_and_keep(
    lm: LM, rows: Sequence[Row], known: Prefix | None = None
) -> tuple[Prefix, Float[Tensor, "B V"]]:
    """Run whole rows and return their keys and values, and the logits behind the last token.

    Args:
        lm: The model.
        rows: The rows.
        known: What stands in front of each of them, which is kept with its own.
    """
    from transformers import DynamicCache

    batch = lm.batch(rows, range(len(rows)))
    lengths = [len(row.ids) for row in rows]
    at = torch.tensor([(i, n - 1) for i, n in enumerate(lengths)], device=lm.device)
    cache, begin = DynamicCache(), [0] * len(rows)
    if known is not None:
        batch, cache = _behind(lm, batch, known), known.cache()
        begin = [known.mask.shape[1] - n for n in known.starts]
        lengths = [n + more for n, more in zip(lengths, known.starts, strict=True)]
    logits = lm.logits(batch, at, **lm.behind(cache))
    return _pushed_right(lm, cache, lengths, begin), logits


def _pushed_right(lm: LM, cache: Any, starts: Sequence[int], at: Sequence[int]) -> Prefix:
    """Return what a pass left in a cache, padded on the left; the cache is emptied.

    Args:
        lm: The model.
        cache: Of each row, padding, its tokens one behind the other, and padding.
        starts: How many of them are wanted.
        at: Where the first of them lies.
    """
    width = max(1, *starts)
    shift = torch.tensor([width - n for n in starts], device=lm.device)
    source = torch.arange(width, device=lm.device)[None, :] - shift[:, None]
    mask = (source >= 0).long()
    source = source + torch.tensor(at, device=lm.device)[:, None]
    index = source.clamp(min=0)[:, None, :, None]
    layers = []
    for layer in cache.layers:
        kept: Any = layer  # its class depends on the kind of attention
        keys, values = kept.keys, kept.values
        here = index.to(keys.device)
        kept.keys = kept.values = None  # let go of them layer by layer
        keys = keys.gather(2, here.expand(-1, keys.shape[1], -1, keys.shape[3]))
        values = values.gather(2, here.expand(-1, values.shape[1], -1, values.shape[3]))
        layers.append((keys, values))
    return Prefix(tuple(layers), mask, tuple(starts))


def suffix_batch(lm: LM, rows: Sequence[Row], prefix: Prefix) -> tuple[Batch, dict[str, Any]]:
    """Return the batch of everything after the prefix, and the arguments its forward pass needs.

    Position `p` of row `b` is column `p - prefix.starts[b]` of the batch.
    """
    tails = [
        Row(row.ids[n:], (0,), (), 1, patch=row.patch)
        for row, n in zip(rows, prefix.starts, strict=True)
    ]
    batch = make_batch(tails, range(len(tails)), lm.pad_id, lm.device)
    # its prompts are cut off, so how long they are says nothing
    return replace(_behind(lm, batch, prefix), prompts=()), lm.behind(prefix.cache())


def _behind(lm: LM, batch: Batch, prefix: Prefix) -> Batch:
    """Return a batch whose rows go on behind a prefix each: further positions, a wider mask."""
    positions = batch.position_ids + torch.tensor(prefix.starts, device=lm.device)[:, None]
    limit = lm.max_length
    if limit is not None:
        positions = positions.clamp(max=limit - 1)  # padding must not run past a learned table
    mask = torch.cat([prefix.mask, batch.attention_mask], dim=1)
    return replace(batch, attention_mask=mask, position_ids=positions)


@torch.no_grad()
def continues_exactly(lm: LM) -> bool:
    """Try on a few tokens whether rows behind cached prefixes give what whole rows give.

    This is said of the model itself, whatever patches are at work.
    """
    vocabulary = lm.embedding.shape[0]
    ids = [[(7 * i + 3 * j + 1) % vocabulary for j in range(n)] for i, n in enumerate((6, 4))]
    rows = [Row(tuple(row), (len(row) - 1,), (), len(row)) for row in ids]
    starts = (3, 1)
    at = [(i, len(ids[i]) - 1 - starts[i]) for i in (0, 1)]
    try:
        with bare(lm.model):
            full = lm.logits(lm.batch(rows, [0, 1]), positions_of(rows, [0, 1], lm.device))
            batch, extra = suffix_batch(lm, rows, make_prefix(lm, rows, starts))
            short = lm.logits(batch, torch.tensor(at, device=lm.device), **extra)
    except (TypeError, ValueError, RuntimeError, AttributeError, IndexError):
        return False
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-3}.get(lm.dtype, 0.1)
    scale = full.float().abs().max().clamp(min=1.0)
    return bool(((full - short).float().abs().max() / scale) < tolerance)
