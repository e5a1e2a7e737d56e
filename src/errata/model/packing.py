"""Rows one behind the other in a single line of tokens: a pass without padding.

```
 rows      a b c │ d e │ f g h i          line     [1, N]   a b c d e f g h i
                                          position [1, N]   0 1 2 0 1 0 1 2 3
 everything but attention works on the line, token by token: [1, N, d]
 attention    q, k, v [1, H, N, d_head] ── Lanes.spread ──▶ [R, H, T, d_head], causal, row by row
                                        ◀── Lanes.pick ───  [1, N, H, d_head]
              for one stretch of rows of similar length after another
```

Behind a row's end lie only zeros, which no real token looks at, so no mask is needed. That a model
lets its attention be put in between is tried, not looked up: see `packs_exactly`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from errata.model.hooks import bare
from errata.model.products import LARGE
from errata.model.tokens import Batch, Row, bucket, positions_of

if TYPE_CHECKING:
    from errata.model.lm import LM

ATTENTION = "sdpa"
"""What transformers calls the attention that is put in between."""

PADDING = 64
"""Tokens of padding that a further call of attention is worth on a CPU."""

TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Of a trial's logits, relative to the largest: sums in another order; norms stay float32."""


class _Spread(torch.autograd.Function):
    """Rows of `x` at their places among zeros; the places differ."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Int[Tensor, " N"], count: int) -> Tensor:
        ctx.save_for_backward(places)
        return x.new_zeros(count, *x.shape[1:]).index_copy_(0, places, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (places,) = ctx.saved_tensors
        return grad.index_select(0, places), None, None


class _Pick(torch.autograd.Function):
    """What stands at the places; the other way round."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Int[Tensor, " N"]) -> Tensor:
        ctx.save_for_backward(places)
        ctx.shape = x.shape
        return x.index_select(0, places)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (places,) = ctx.saved_tensors
        return grad.new_zeros(ctx.shape).index_copy_(0, places, grad), None


class Lanes:
    """Where each token of a line stands once those that belong together lie side by side.

    Args:
        lengths: Tokens of each piece of the line, in order.
        owner: Lane of each piece; pieces of one lane follow each other in it.
        device: Of the line.
    """

    def __init__(
        self, lengths: Sequence[int], owner: Sequence[int], device: torch.device | str
    ) -> None:
        ends = [0] * (max(owner) + 1)
        starts = []
        for lane, length in zip(owner, lengths, strict=True):
            starts.append(ends[lane])
            ends[lane] += length
        self.count, self.width = len(ends), max(ends)
        places = [
            lane * self.width + start + i
            for lane, start, length in zip(owner, starts, lengths, strict=True)
            for i in range(length)
        ]
        self.places = torch.tensor(places, device=device)

    def spread(self, line: Float[Tensor, "N ..."]) -> Float[Tensor, "L W ..."]:
        """Return a line's values lane by lane, zero where a lane is shorter than the longest."""
        out: Any = _Spread.apply(line, self.places, self.count * self.width)
        return out.view(self.count, self.width, *line.shape[1:])

    def pick(self, lanes: Float[Tensor, "L W ..."]) -> Float[Tensor, "N ..."]:
        """Return the line again."""
        return _Pick.apply(lanes.flatten(0, 1), self.places)  # type: ignore[no-any-return]


class Line:
    """Some rows as one line.

    Args:
        rows: The rows; the closer those of similar length stand, the less attention has to pad.
        device: Where the model takes its token ids.
        max_padding: Most padding in a stretch of rows that attention takes at once, in tokens.

    Attributes:
        batch: The line as a batch of one.
        at: `[M, 2]`, the rows' supervised positions in it.
    """

    def __init__(
        self, rows: Sequence[Row], device: torch.device | str, max_padding: int = PADDING
    ) -> None:
        lengths = [len(row.ids) for row in rows]
        ids = torch.tensor([[i for row in rows for i in row.ids]], device=device)
        positions = torch.tensor([[i for n in lengths for i in range(n)]], device=device)
        self.batch = Batch(ids, torch.ones_like(ids), positions, (0,))
        begins = [sum(lengths[:i]) for i in range(len(rows))]
        at = [(0, b + p) for b, row in zip(begins, rows, strict=True) for p in row.positions]
        self.at = torch.tensor(at, device=device)
        self.lengths = lengths
        self._stretches: list[tuple[int, int, Lanes]] = []
        order, end = range(len(rows)), 0
        for index in bucket(rows, sys.maxsize, order, max_padding):
            own = [lengths[i] for i in index]
            start, end = end, end + sum(own)
            self._stretches.append((start, end, Lanes(own, range(len(own)), device)))

    def grouped(self, owner: Sequence[int]) -> Lanes:
        """Return the line's tokens by the group that each row belongs to."""
        return Lanes(self.lengths, owner, self.batch.input_ids.device)

    @contextmanager
    def attending(self) -> Iterator[None]:
        """Let each row of the line attend to itself alone inside a `with` block."""
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        own: Any = ALL_ATTENTION_FUNCTIONS[ATTENTION]
        tokens = sum(self.lengths)

        def attend(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **more: Any):
            if query.shape[0] != 1 or query.shape[2] != tokens:  # another pass
                return own(module, query, key, value, mask, **more)
            lines = [x[0].transpose(0, 1) for x in (query, key, value)]  # [N, H, d_head]
            made = []
            for start, end, lanes in self._stretches:
                rows = [lanes.spread(x[start:end]).transpose(1, 2) for x in lines]
                made.append(lanes.pick(own(module, *rows, None, **more)[0]))
            return torch.cat(made)[None], None

        ALL_ATTENTION_FUNCTIONS[ATTENTION] = attend
        try:
            yield
        finally:
            ALL_ATTENTION_FUNCTIONS[ATTENTION] = own


def packs(lm: LM) -> bool:
    """Whether passes of a long optimisation on this model are worth packing, and can be packed.

    On a CPU and for models whose passes cost more than what stands around them.
    """
    large = lm.device.type == "cpu" and lm.model.num_parameters() >= LARGE
    return large and lm.once("packs exactly", lambda: packs_exactly(lm))


@torch.no_grad()
def packs_exactly(lm: LM) -> bool:
    """Try on a few tokens whether rows in one line give what they give by themselves."""
    if lm.dtype not in TOLERANCE or lm.spread:
        return False
    vocabulary = lm.embedding.shape[0]
    ids = [[(7 * i + 3 * j + 1) % vocabulary for j in range(n)] for i, n in enumerate((6, 4, 5))]
    rows = [Row(tuple(row), (1, len(row) - 1), (), len(row)) for row in ids]
    try:
        with bare(lm.model):
            index = range(len(rows))
            apart = lm.logits(lm.batch(rows, index), positions_of(rows, index, lm.device))
            line = Line(rows, lm.device, max_padding=1)
            with line.attending():
                together = lm.logits(line.batch, line.at)
    except (TypeError, ValueError, RuntimeError, AttributeError, LookupError, ImportError):
        return False
    return bool((apart - together).abs().max() < TOLERANCE[lm.dtype] * apart.abs().max())


def widest(lm: LM) -> int | None:
    """Return how many tokens a row of a line may have: what a sliding window holds; None: any."""
    config = lm.model.config.get_text_config()
    found = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((n for n in found if isinstance(n, int)), default=None)
