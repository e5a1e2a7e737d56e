"""Texts that grow token by token: greedy answers, and what samples are drawn from.

```
 step 0    whole prompts      [B, T]  ── run_and_keep ──▶ logits [B, V]; keys, values [B, h, T, d]
 step 1 …  the chosen tokens  [B, 1]  ── behind them ───▶ logits [B, V]; they grow by a column
```

Rows stand side by side, each under its own patch. A row that is done leaves the batch with its part
of the cache; contexts stand in it in front of their rows. A route that lets the model answer other
tokens (facts in front of the question) says which at the first step; behind them answers grow as
always. Where a change has to see whole rows (another route, a codebook that looks at the prompt),
or the model does not continue exactly behind a cache, every step runs the whole row, so that each
kind of patch acts as it does in scoring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from errata.model.hooks import nested
from errata.model.prefixes import Prefix, run_and_keep
from errata.model.tokens import Batch, Row, positions_of

if TYPE_CHECKING:
    from errata.model.lm import LM

HELD = 4
"""Tokens kept in a cache, as a multiple of those that a pass may have."""

LEAVE = 0.25
"""Rows that are done leave the batch once they are this share of it: leaving copies the cache."""


class Growing:
    """Some rows of one pass, extended token by token.

    Args:
        lm: The model; the active stack stays the same while they grow.
        rows: The rows; labels are not looked at.
        most: Tokens that a row may gain.

    Attributes:
        ids: Tokens of each row so far.
        live: Numbers of the rows that still grow.
        cached: Whether they grow behind a cache; else every step runs whole rows.
    """

    def __init__(self, lm: LM, rows: Sequence[Row], most: int = 0) -> None:
        self._lm, self._rows = lm, list(rows)
        self._more = [0] * len(rows)  # tokens that are read in front of a row's own
        self._inside: Callable[[], AbstractContextManager[Any]] = nullcontext
        self.ids = [list(row.ids) for row in rows]
        self.live = list(range(len(rows)))
        self._held = list(self.live)  # the rows of the cache, some of which may be done
        self._cache: Any = None
        self._first: Tensor | None = None  # logits behind the prompts
        begun = begun_of(lm, rows, most)
        self.cached = begun is not None
        if begun is None:
            return
        whole, known, self._inside = begun
        self._more = [len(new.ids) - len(row.ids) for new, row in zip(whole, rows, strict=True)]
        if known is not None:
            self._more = list(known.starts)
        with self._inside():
            prefix, self._first = run_and_keep(lm, whole, known)
        self._cache, self._mask = prefix.cache(), prefix.mask

    def logits(self) -> Float[Tensor, "L V"]:
        """Return the logits of the next token of every live row; called once per step."""
        if self._cache is None:
            return self._from_whole_rows()
        if self._first is not None:
            first, self._first = self._first, None
            return first
        lm, held = self._lm, self._held
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(held), 1)], 1)
        batch = Batch(
            torch.tensor([[self.ids[i][-1]] for i in held], device=lm.device),
            self._mask,
            torch.tensor([[len(self.ids[i]) + self._more[i] - 1] for i in held], device=lm.device),
            tuple(range(len(held))),
            patches=tuple(self._rows[i].patch for i in held),
        )
        line = {row: number for number, row in enumerate(held)}
        at = torch.tensor([(line[i], 0) for i in self.live], device=lm.device)
        with self._inside():
            return lm.logits(batch, at, **lm.behind(self._cache))

    def _from_whole_rows(self) -> Float[Tensor, "L V"]:
        lm = self._lm
        now = [
            replace(
                self._rows[i], ids=tuple(self.ids[i]), positions=(len(self.ids[i]) - 1,), labels=()
            )
            for i in self.live
        ]
        parts: list[Tensor] = []
        order: list[int] = []
        for batch in lm.batches(now):
            parts.append(lm.logits(batch, positions_of(now, batch.index, lm.device)))
            order += batch.index
        return torch.cat(parts)[torch.tensor(order, device=lm.device).argsort()]

    def extend(self, tokens: Sequence[int], done: Sequence[bool]) -> None:
        """Append a token to every live row; rows that are done leave.

        Args:
            tokens: One per live row; a negative one is not appended.
            done: Whether the row ends with it.
        """
        for i, token in zip(self.live, tokens, strict=True):
            if token >= 0:
                self.ids[i].append(token)
        self.live = [i for i, ends in zip(self.live, done, strict=True) if not ends]
        gone = len(self._held) - len(self.live)
        if self._cache is not None and self.live and gone > LEAVE * len(self._held):
            self._drop()

    def _drop(self) -> None:
        """Let the rows that are done out of the cache."""
        live = set(self.live)
        kept = [number for number, row in enumerate(self._held) if row in live]
        index = torch.tensor(kept, device=self._lm.device)
        layers = tuple((layer.keys, layer.values) for layer in self._cache.layers)
        whole = Prefix(layers, self._mask, (0,) * len(self._mask))
        self._cache, self._mask = whole.rows(index).cache(), self._mask[index]
        self._held = [self._held[number] for number in kept]


Begun = tuple[Sequence[Row], Prefix | None, Callable[[], AbstractContextManager[Any]]]
"""Rows that the model continues, what stands in front of each, and what the passes run in."""


def begun_of(lm: LM, rows: Sequence[Row], most: int) -> Begun | None:
    """Return how rows are continued behind a cache; None: every step has to run them whole."""
    around = lm.installed.around_model
    if lm.prefix_cache_works:
        return rows, None, nullcontext
    if len(around) != 1 or not lm.prefix_cache_is_exact:
        return None
    # routes have said what they say: the model answers other tokens
    new: Sequence[Row] | None = around[0].rewritten(rows)
    known, inside = None, partial(nested, lm.model)
    if new is None:
        known, inside = around[0].in_front(rows), around[0].aside
        new = None if known is None else rows
    if new is None or lm.max_length is None:
        return None if new is None else (new, known, inside)
    # where room is scarce less is told the longer an answer gets, or there is none left
    starts = [0] * len(rows) if known is None else known.starts
    longest = max(len(row.ids) + n for row, n in zip(new, starts, strict=True))
    return (new, known, inside) if longest + most <= lm.max_length else None


def parts_of(lm: LM, rows: Sequence[Row], limits: Sequence[int]) -> Iterator[list[int]]:
    """Yield numbers of rows that grow side by side: of similar length, and not too many.

    Args:
        lm: The model.
        rows: The rows.
        limits: How many tokens each may gain.
    """
    cached = lm.prefix_cache_works
    for batch in lm.batches(rows):
        index = list(batch.index)
        longest = max(len(rows[i].ids) + limits[i] for i in index)
        width = max(1, (HELD if cached else 1) * lm.max_tokens // longest)
        for start in range(0, len(index), width):
            yield index[start : start + width]


@torch.no_grad()
def continuations(
    lm: LM, rows: Sequence[Row], limits: int | Sequence[int], stops: Sequence[str] = ()
) -> list[str]:
    """Continue each row greedily by at most so many tokens and return the new text.

    Args:
        lm: The model.
        rows: The rows; `Row.patch` says under which patch of the active stack each runs.
        limits: Most new tokens of each row.
        stops: Texts at which an answer ends; they and what follows are left out.
    """
    if isinstance(limits, int):
        limits = [limits] * len(rows)
    said = [""] * len(rows)
    wanted = [i for i, limit in enumerate(limits) if limit > 0]
    chosen = [rows[i] for i in wanted]
    for part in parts_of(lm, chosen, [limits[i] for i in wanted]):
        numbers = [wanted[j] for j in part]
        growing = Growing(lm, [chosen[j] for j in part], max(limits[i] for i in numbers))
        while growing.live:
            live = list(growing.live)
            tokens = growing.logits().argmax(-1).tolist()
            done = [
                _ends(lm, growing.ids[j], token, rows[numbers[j]], limits[numbers[j]], stops)
                for j, token in zip(live, tokens, strict=True)
            ]
            ends = lm.stop_ids
            growing.extend([-1 if token in ends else token for token in tokens], done)
        for j, number in enumerate(numbers):
            text = lm.text(growing.ids[j][len(rows[number].ids) :])
            said[number] = before_stop(text, stops)
    return said


def _ends(lm: LM, ids: list[int], token: int, row: Row, limit: int, stops: Sequence[str]) -> bool:
    """Whether a row ends with this token."""
    new = len(ids) - len(row.ids) + 1
    full = lm.max_length is not None and len(ids) + 1 >= lm.max_length
    if token in lm.stop_ids or new >= limit or full:
        return True
    if not stops:
        return False
    piece = lm.once(("text of token", token), lambda: str(lm.tokenizer.decode([token])))
    if any(len(stop) > 1 for stop in stops):  # it may stand across tokens
        piece = lm.text([*ids[len(row.ids) :], token])
    return any(stop in piece for stop in stops)


def before_stop(text: str, stops: Sequence[str]) -> str:
    """Return a text up to the first of the stops."""
    return text[: min((text.find(stop) for stop in stops if stop in text), default=len(text))]
