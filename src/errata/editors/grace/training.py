"""Reading keys and training values of GRACE, for rows of many independent groups at once.

While a value is trained, only what it moves is computed again:

```
 row r of an edit   ids: [ … prompt … decides | target … ]      one row per edit
                                      │
   kept once        ◀──── prefix ────▶ first token that any key answers for (`_first_replaced`)
   run each step                      ◀──── batch [B, T] ────▶   logits at the labels

 block   n-1 … layer   run; behind the layer, `own` tokens are the row's value, `fixed` other keys'
         layer-1       not run: `hidden` [B, T, d] stands in (reuse_below)
```
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from errata.editors.grace.codebook import Codebook
from errata.model.hooks import after, hooked
from errata.model.passes import capture, first, reuse_below, wide, with_first
from errata.model.prefixes import Prefix, make_prefix, suffix_batch
from errata.model.spec import Site
from errata.model.tokens import Batch, Row
from errata.progress import tracked
from errata.tuning.adam import RowAdam

if TYPE_CHECKING:
    from errata.model.lm import LM


@dataclass
class Asked:
    """What was read of an edit's row, and what is to be trained for it.

    Attributes:
        row: The edit's tokens.
        given: Input of the layer at every token.
        output: Its output at the token that decides.
        at: For every token, the key whose value stands for the layer's output, -1: none.
        key: The key whose value is trained.
        start: Its value so far.
    """

    row: Row
    given: Float[Tensor, "T d_in"]
    output: Float[Tensor, " d_out"]
    at: Int[Tensor, " T"]
    key: int = 0
    start: Float[Tensor, " d_out"] | None = None


@dataclass(frozen=True)
class Work:
    """Rows of several groups at the layer; they name their group's other changes."""

    lm: LM
    layer: int
    site: Site

    @property
    def module(self) -> nn.Module:
        """The layer behind which the codebook stands."""
        return self.lm.module(self.site.path)

    @torch.no_grad()
    def read(self, rows: Sequence[Row]) -> list[Asked]:
        """Return the layer's input at all tokens of each row and its output where a key decides."""
        batch = self.lm.batch(rows, range(len(rows)))
        (given,), (output,) = capture(self.lm, batch, inputs=[self.module], outputs=[self.module])
        given, output = (wide(t.reshape(len(rows), -1, t.shape[-1])) for t in (given, output))
        return [
            Asked(
                row, given[i, : len(row.ids)], output[i, row.prompt_length - 1],
                torch.full((len(row.ids),), -1, device=self.lm.device),
            )
            for i, row in enumerate(rows)
        ]  # fmt: skip

    def train(
        self,
        asked: Sequence[Asked],
        books: Sequence[Codebook],
        *,
        lr: float,
        steps: int,
        stop_loss: float,
    ) -> Float[Tensor, "n d_out"]:
        """Train one value per row on the mean loss of its target, all rows side by side.

        Training sees what use sees: every token that any key answers for is replaced.

        Args:
            asked: What was read of the rows.
            books: Each row's codebook.
            lr: Learning rate of Adam.
            steps: Updates at most.
            stop_loss: A row whose loss is below this takes no more.
        """
        starts = [one.start for one in asked if one.start is not None]
        values = torch.stack(starts).detach().clone()
        adam = RowAdam([values], lr)
        running = torch.ones(len(asked), dtype=torch.bool, device=values.device)
        live: list[int] = []
        pass_ = None
        with self.lm.searching():
            for _ in tracked(range(steps), "values of entries, step"):
                now = running.nonzero()[:, 0].tolist()
                if not now:
                    break
                if pass_ is None or len(now) <= len(live) // 2:  # leave out the rows that are done
                    live = now
                    pass_ = self._arranged([asked[i] for i in live], [books[i] for i in live])
                mine = torch.tensor(live, device=values.device)
                leaf = values[mine].requires_grad_()
                with torch.enable_grad():  # callers may have switched gradients off
                    loss = pass_.losses(leaf)
                    # "not <" lets a NaN loss through, so that the edit is refused
                    running[mine] &= ~(loss.detach() < stop_loss)
                    if not bool(running.any()):
                        break
                    (found,) = torch.autograd.grad(loss.sum(), [leaf])
                grads = torch.zeros_like(values)
                grads[mine] = found
                adam.step([values], [grads], running)
        return values

    @torch.no_grad()
    def _arranged(self, asked: Sequence[Asked], books: Sequence[Codebook]) -> _Pass:
        """Lay out rows for training, and compute what no value moves once."""
        lm, rows = self.lm, [one.row for one in asked]
        prefix, batch, extra = None, lm.batch(rows, range(len(rows))), {}
        starts = [_first_replaced(one) for one in asked]
        if any(starts) and lm.prefix_cache_works:
            prefix = make_prefix(lm, rows, starts)
            batch, extra = suffix_batch(lm, rows, prefix)
        else:
            starts = [0] * len(rows)
        hidden = None
        if self.layer > 0:
            below = lm.module(lm.spec.blocks[self.layer - 1])
            _, (hidden,) = capture(lm, batch, outputs=[below], **extra)
        own = torch.zeros(batch.input_ids.shape, dtype=torch.bool, device=lm.device)
        fixed: list[tuple[int, int, Tensor]] = []
        for r, (one, book, start) in enumerate(zip(asked, books, starts, strict=True)):
            at = one.at[start:]
            own[r, : len(at)] = at == one.key
            others = ((at >= 0) & (at != one.key)).nonzero()[:, 0].tolist()
            fixed += [(r, t, book.values[int(at[t])]) for t in others]
        pairs = [
            (r, position - start)
            for r, (row, start) in enumerate(zip(rows, starts, strict=True))
            for position in row.positions
        ]
        return _Pass(
            self, batch, None if prefix is None else prefix.above(self.layer), hidden, own, fixed,
            torch.tensor(pairs, device=lm.device),
            torch.tensor([n for row in rows for n in row.labels], device=lm.device),
        )  # fmt: skip


def _first_replaced(one: Asked) -> int:
    """Return the first token of a row that a key answers for: nothing before it can move."""
    return int((one.at >= 0).nonzero()[0, 0])


@dataclass(frozen=True)
class _Pass:
    """Rows ready for training: what runs again and again.

    Attributes:
        work: The model and the layer.
        batch: Rows, or what follows their prefixes.
        prefix: Keys and values of the tokens that no value moves; None: whole rows run.
        hidden: Output of the block below.
        own: Tokens whose output is the row's value.
        fixed: Tokens (row, column) whose output is another key's value.
        at: `(row, column)` of every label.
        labels: Next token there.
    """

    work: Work
    batch: Batch
    prefix: Prefix | None
    hidden: Tensor | None
    own: Bool[Tensor, "B T"]
    fixed: Sequence[tuple[int, int, Tensor]]
    at: Int[Tensor, "N 2"]
    labels: Int[Tensor, " N"]

    def losses(self, values: Float[Tensor, "B d_out"]) -> Float[Tensor, " B"]:
        """Return each row's mean cross-entropy of its target under its value."""
        lm, row = self.work.lm, self.at[:, 0]
        extra = {} if self.prefix is None else lm.behind(self.prefix.cache())
        with ExitStack() as context:
            if self.hidden is not None:
                context.enter_context(reuse_below(lm, self.work.layer - 1, self.hidden))
            context.enter_context(hooked(lm, after(self.work.module, self._replace(values))))
            logits = wide(lm.logits(self.batch, self.at, **extra))
        nll = logits.logsumexp(-1) - logits.gather(1, self.labels[:, None])[:, 0]
        return nll.new_zeros(len(values)).index_add(0, row, nll) / row.bincount()

    def _replace(self, values: Float[Tensor, "B d_out"]) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            y = first(output)
            rows = y.reshape(len(values), -1, y.shape[-1])
            rows = torch.where(self.own[..., None], values[:, None].to(y.dtype), rows)
            if self.fixed:
                rows = rows.clone()
                for r, t, value in self.fixed:
                    rows[r, t] = value.to(y.dtype)
            return with_first(output, rows.reshape(y.shape))

        return hook
