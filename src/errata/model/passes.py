"""Forward passes that compute only what is needed, through the model's own code.

Every function here works on any decoder-only model that `errata.model.spec` understands: nothing
of the model is re-implemented. Blocks are skipped by short-circuiting their `forward`, logits are
restricted by a hook in front of the head, and prefixes are kept in the model's own key/value cache.

```
 rows          ids ─────────────────────────────────────────────┐
               │ make_prefix: the first `starts[b]` tokens       │ suffix_batch: what follows
               ▼                                                 ▼
 Prefix   keys, values [B, heads, P, d_head]         Batch  input_ids      [B, T]
          mask         [B, P], padded on the left           attention_mask [B, P + T]
               └───────────── lm.behind(prefix.cache()) ──────────┘
                                     ▼
 blocks   0 … l      reuse_below(lm, l, hidden): not run, block l answers `hidden` [B, T, d]
          l + 1 …    capture(lm, batch, inputs, outputs): read [B, T, ·], stop at the last one read
                                     ▼
 head     gather_logits(lm, at): the (row, position) pairs [N, 2] → logits [1, N, V]
```

Rows, prefixes and batches carry the patch that each row runs under, also under a stack.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from errata.model.hooks import after, bare, before, hooked
from errata.model.tokens import Batch, Row, make_batch, positions_of

if TYPE_CHECKING:
    from errata.model.lm import LM

Place = Literal["ffn", "attn", "block"]
"""Where a value is read or moved: output of the FFN or attention projection, or of the block."""


class _Stop(BaseException):
    """Ends a forward pass early; a BaseException so that no model code swallows it."""


def first(output: Any) -> Tensor:
    """Return the hidden states of a block's or module's output, which may be a tuple."""
    return output[0] if isinstance(output, tuple) else output


def with_first(output: Any, value: Tensor) -> Any:
    """Return `output` with its hidden states replaced by `value`."""
    return (value, *output[1:]) if isinstance(output, tuple) else value


@dataclass(frozen=True)
class Pass:
    """What is known of a forward pass by changes that look at whole rows.

    Attributes:
        ids: `[B, T]`.
        mask: `[B, T]`, true on real tokens.
        prompts: `[B]`, how many tokens of each row are its prompt; all of them if whoever runs the
            model did not say.
        at: `[N, 2]`, the (row, column) pairs whose logits are computed; None: all of them.
        patches: `[B]`, each row's patch in the active stack, -1: none; None: nobody said.
    """

    ids: Int[Tensor, "B T"]
    mask: Bool[Tensor, "B T"]
    prompts: Int[Tensor, " B"]
    at: Int[Tensor, "N 2"] | None = None
    patches: Int[Tensor, " B"] | None = None

    @property
    def prompt_mask(self) -> Bool[Tensor, "B T"]:
        """True on the tokens of the prompts."""
        return self.mask & (self.mask.cumsum(1) <= self.prompts[:, None])

    def rows(self, index: Int[Tensor, " m"]) -> Pass:
        """Return what is known of some of the rows, in that order; of different rows."""
        at = self.at
        if at is not None:
            number = torch.full((len(self.ids),), -1, device=at.device)
            number[index] = torch.arange(len(index), device=at.device)
            moved = number[at[:, 0]]
            at = torch.stack([moved, at[:, 1]], 1)[moved >= 0]
        own = None if self.patches is None else self.patches[index]
        return Pass(self.ids[index], self.mask[index], self.prompts[index], at, own)

    def tokens(self, *, prompt_only: bool = False) -> list[tuple[int, ...]]:
        """Return the real tokens of each row, or those of its prompt."""
        mask = self.prompt_mask if prompt_only else self.mask
        pairs = zip(self.ids.tolist(), mask.tolist(), strict=True)
        return [tuple(i for i, real in zip(ids, own, strict=True) if real) for ids, own in pairs]


@contextmanager
def gather_logits(lm: LM, at: Int[Tensor, "N 2"]) -> Iterator[None]:
    """Hand only the hidden states at (row, position) pairs to the head.

    Logits then come out as `[1, N, V]`, whatever the model does to them afterwards (soft caps,
    scales).
    """

    def pick(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        return (hidden[at[:, 0], at[:, 1]].unsqueeze(0), *args[1:])

    with hooked(lm, before(lm.module(lm.spec.head), pick)):
        yield


@contextmanager
def reuse_below(lm: LM, layer: int, hidden: Float[Tensor, "B T d"]) -> Iterator[None]:
    """Skip blocks 0…`layer`: block `layer` returns `hidden`, everything above runs as usual.

    Exact when `hidden` is what the block would have returned. Forward hooks on block `layer` still
    fire and may change its output.
    """
    blocks = [lm.module(path) for path in lm.spec.blocks[: layer + 1]]
    returns_tuple = lm.spec.block_returns_tuple
    theirs = [vars(block).get("forward") for block in blocks]  # accelerate's, on several devices

    def stand_in(number: int) -> Any:
        own, inside = theirs[number] or blocks[number].forward, lm.installed.inside

        def forward(states: Tensor, *args: Any, **kwargs: Any) -> Any:
            if lm.installed.inside != inside:  # other rows
                return own(states, *args, **kwargs)
            given = hidden if number == layer else states
            return (given, None) if returns_tuple else given

        return forward

    try:
        for number, block in enumerate(blocks):
            block.forward = stand_in(number)
        yield
    finally:
        for block, forward in zip(blocks, theirs, strict=True):
            if forward is None:
                vars(block).pop("forward", None)
            else:
                block.forward = forward


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
    shared: Prefix | None = None,
) -> Prefix:
    """Compute the keys and values of `rows[b].ids[:starts[b]]` for all rows in one forward pass.

    They run right-padded, so no token ever attends to padding alone, and are then shifted.

    Args:
        lm: The model.
        rows: The rows.
        starts: How many tokens of each.
        shared: Prefix of one row that all rows begin with, and go on behind: not computed again.
    """
    from transformers import DynamicCache

    skip = 0 if shared is None else shared.starts[0]
    heads = [
        Row(row.ids[skip : max(n, 1)], (0,), (), 1, patch=row.patch)
        for row, n in zip(rows, starts, strict=True)
    ]
    batch = make_batch(heads, range(len(heads)), lm.pad_id, lm.device)
    cache = DynamicCache()
    if shared is not None:
        cache = shared.rows(torch.zeros(len(rows), dtype=torch.long, device=lm.device)).cache()
        known = batch.attention_mask.new_ones(len(rows), skip)
        mask = torch.cat([known, batch.attention_mask], 1)
        batch = replace(batch, attention_mask=mask, position_ids=batch.position_ids + skip)
    head = lm.module(lm.spec.head)

    def stop(module: nn.Module, args: tuple[Any, ...]) -> None:
        raise _Stop

    # ends in front of the head: logits are not wanted
    with hooked(lm, before(head, stop)), suppress(_Stop):
        lm.run(batch, **lm.behind(cache))
    return _pushed_right(lm, cache, skip + batch.input_ids.shape[1], starts)


@torch.no_grad()
def run_and_keep(lm: LM, rows: Sequence[Row]) -> tuple[Prefix, Float[Tensor, "B V"]]:
    """Run whole rows and return their keys and values, and the logits behind the last token."""
    from transformers import DynamicCache

    batch = lm.batch(rows, range(len(rows)))
    cache = DynamicCache()
    lengths = [len(row.ids) for row in rows]
    at = torch.tensor([(i, n - 1) for i, n in enumerate(lengths)], device=lm.device)
    logits = lm.logits(batch, at, **lm.behind(cache))
    return _pushed_right(lm, cache, batch.input_ids.shape[1], lengths), logits


def _pushed_right(lm: LM, cache: Any, width: int, starts: Sequence[int]) -> Prefix:
    """Return what a right-padded pass left in a cache, padded on the left; the cache is emptied."""
    shift = torch.tensor([width - n for n in starts], device=lm.device)
    source = torch.arange(width, device=lm.device)[None, :] - shift[:, None]
    mask = (source >= 0).long()
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
    starts = torch.tensor(prefix.starts, device=lm.device)[:, None]
    positions = batch.position_ids + starts
    limit = lm.max_length
    if limit is not None:
        positions = positions.clamp(max=limit - 1)  # padding must not run past a learned table
    mask = torch.cat([prefix.mask, batch.attention_mask], dim=1)
    # its prompts are cut off, so how long they are says nothing
    shifted = replace(batch, attention_mask=mask, position_ids=positions, prompts=())
    return shifted, lm.behind(prefix.cache())


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


def module_at(lm: LM, layer: int, place: Place) -> nn.Module:
    """Return the module whose output is the value at `place` of block `layer`."""
    if place == "block":
        return lm.module(lm.spec.blocks[layer])
    mixture = lm.spec.routed(layer) if place == "ffn" else None
    if mixture is not None and layer not in lm.focus:  # of all its experts together
        return lm.module(mixture.path.rpartition(".")[0])
    return lm.module(lm.site(layer, f"{place}_out").path)


def capture(
    lm: LM,
    batch: Batch,
    inputs: Sequence[nn.Module] = (),
    outputs: Sequence[nn.Module] = (),
    **kwargs: Any,
) -> tuple[list[Tensor], list[Tensor]]:
    """Run the model until all modules were called and return their first inputs and outputs.

    Args:
        lm: The model.
        batch: Rows to run.
        inputs: Modules whose input is wanted.
        outputs: Modules whose output is wanted.
        kwargs: Further arguments of the forward pass.

    Returns:
        `[B, T, d]` tensors, in the order asked for.
    """
    seen: dict[tuple[str, int], Tensor] = {}
    wanted = {("in", id(m)) for m in inputs} | {("out", id(m)) for m in outputs}

    def keep(key: tuple[str, int], value: Tensor) -> None:
        seen[key] = value
        if len(seen) == len(wanted):
            raise _Stop

    readers = [
        *(
            before(m, lambda m, args: keep(("in", id(m)), args[0]))
            for m in {id(m): m for m in inputs}.values()
        ),
        *(
            # a copy: some blocks (Falcon's) add to the output of their FFN in place
            after(m, lambda m, args, out: keep(("out", id(m)), first(out).clone()))
            for m in {id(m): m for m in outputs}.values()
        ),
    ]
    with hooked(lm, *readers), suppress(_Stop):
        lm.run(batch, **kwargs)
    return [seen["in", id(m)] for m in inputs], [seen["out", id(m)] for m in outputs]


def wide(tensor: Tensor) -> Tensor:
    """Return `tensor` in float32 at least."""
    return tensor.to(wide_type(tensor.dtype))


def wide_type(dtype: torch.dtype) -> torch.dtype:
    """Return `dtype`, or float32 where that is wider."""
    return torch.promote_types(dtype, torch.float32)
