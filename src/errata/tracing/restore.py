"""Clean and corrupted runs of facts, and runs in which single clean states are put back.

The corrupted run adds noise to the embeddings of the subject (Meng et al. 2022, section 2). Putting
a clean state back leaves everything below it as it was in the corrupted run, so only the blocks
from it on are run; all tokens of a fact, and several facts, are rows of one forward pass.

```
 fact f   ids: [ … | subject | … | last ]      starts[f]: first token of the subject; what stands
               ▲ prefix, never corrupted       before it is kept as keys and values
 clean       F rows      capture every place of every block  → clean[place][l]   [F, T, d]
 corrupted   F·S rows    embeddings + noise, block outputs   → corrupted[l]      [F·S, T, d]
                                                               _past: keys and values of all rows
 restored    item = (fact, tokens): S rows, line = fact·S + draw
   columns   [ known: _past … | column → run ]  nothing before a restored token has changed
   block l   where(put, clean[l], corrupted[l]) stands in as its output (reuse_below);
             FFN, attention: the blocks of a window run, a hook puts the clean output back
   head      probability of the answer at the last token                         [items, S]
```
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from errata.locate.rows import LOGIT_BUDGET
from errata.model.hooks import after, hooked
from errata.model.passes import (
    Place,
    capture,
    first,
    module_at,
    reuse_below,
    wide,
    with_first,
)
from errata.model.prefixes import Prefix, make_prefix, suffix_batch
from errata.model.tokens import Batch, Row
from errata.store.digest import seed_of

if TYPE_CHECKING:
    from errata.model.lm import LM


def embed(lm: LM, ids: Sequence[int]) -> Float[Tensor, "n d"]:
    """Return what the model's embedding module answers to token ids, scales of its own included."""
    with torch.no_grad():
        return lm.module(lm.spec.embedding)(torch.tensor([list(ids)], device=lm.device))[0]


def embedding_std(lm: LM, rows: Sequence[Row]) -> float:
    """Return the standard deviation over all entries of the embeddings of the rows' subjects."""
    ids = [token for row in rows for token in row.ids[subject_of(row)]]
    return float(embed(lm, ids).double().std())


def subject_of(row: Row) -> slice:
    """Return the tokens of a row's subject.

    Raises:
        EditError: If the row was made without a subject.
    """
    last = row.subject_last
    assert row.subject is not None
    return slice(row.subject[0], last + 1)


def noise_of(row: Row, samples: int, width: int, seed: int) -> Float[Tensor, "s t d"]:
    """Draw standard normal noise for a row's subject, float64 on the CPU.

    It depends on the seed and the row's own tokens only, so a fact gets the same noise whatever
    else is traced, and wherever.
    """
    text = f"{seed} {row.ids} {row.subject}"
    tokens = len(row.ids[subject_of(row)])
    draw = torch.Generator().manual_seed(seed_of(text))
    return torch.randn(samples, tokens, width, generator=draw, dtype=torch.float64)


STATE_BYTES = 1 << 31
"""Memory for states, keys and values of the corrupted runs that are restored together."""


@dataclass(frozen=True)
class Item:
    """One restoration.

    Attributes:
        fact: Number of the fact within its runs.
        tokens: Positions whose clean states are put back, from the subject on; none for the
            corrupted run itself.
    """

    fact: int
    tokens: tuple[int, ...]


class Runs:
    """Clean and corrupted run of some facts, with every state that can be restored.

    Nothing before the subject is ever corrupted, and nothing before a restored token changes: where
    the model allows it, those tokens are kept as keys and values of the attention.

    Args:
        lm: The model; it is not changed.
        rows: One per fact: the prompt with its subject, and the answer's first token as its one
            label.
        noise: Per fact, what is added to the embeddings of its subject, `[samples, t, d]`.
        places: Which states are kept; `block` always is.
        cache: Whether keys and values are kept; exact either way.
    """

    @torch.no_grad()
    def __init__(
        self,
        lm: LM,
        rows: Sequence[Row],
        noise: Sequence[Float[Tensor, "s _ d"]],
        places: Sequence[Place] = ("block", "ffn", "attn"),
        *,
        cache: bool = True,
    ) -> None:
        self.lm, self.rows, self.samples = lm, rows, len(noise[0])
        cache = cache and lm.prefix_cache_works
        starts = [subject_of(row).start if cache else 0 for row in rows]
        prefix: Prefix | None = None
        if any(starts):
            prefix = make_prefix(lm, rows, starts)
            self._batch, _ = suffix_batch(lm, rows, prefix)
        else:
            self._batch = lm.batch(rows, range(len(rows)))
        self.starts = tuple(starts)
        self.length = self._batch.input_ids.shape[1]
        spread = torch.zeros(
            len(rows), self.samples, self.length, noise[0].shape[-1], dtype=torch.float64
        )
        for number, (row, drawn) in enumerate(zip(rows, noise, strict=True)):
            column = subject_of(row).start - starts[number]
            spread[number, :, column : column + drawn.shape[1]] = drawn
        self._noise = spread.flatten(0, 1).to(lm.device, lm.dtype)
        ends = [len(row.ids) - 1 - start for row, start in zip(rows, starts, strict=True)]
        self._ends = torch.tensor(ends, device=lm.device)
        self._answers = torch.tensor([row.labels[0] for row in rows], device=lm.device)
        n = lm.n_layers
        kept: list[Place] = list(dict.fromkeys(("block", *places)))
        modules = [module_at(lm, layer, place) for place in kept for layer in range(n)]
        once = torch.arange(len(rows), device=lm.device)
        _, states = capture(lm, self._rows(once), outputs=modules, **self._extra(prefix, once))
        shaped = [self._shaped(state, len(rows)) for state in states]
        self.clean = {place: shaped[i * n : (i + 1) * n] for i, place in enumerate(kept)}
        facts = once.repeat_interleave(self.samples)
        extra = self._extra(prefix, facts)
        if cache and not extra:  # no prefix: all keys and values of the rows are wanted
            from transformers import DynamicCache

            extra = lm.behind(DynamicCache())
        with self._corrupted_embeddings(self._noise):
            _, states = capture(lm, self._rows(facts), outputs=modules[:n], **extra)
        self.corrupted = [self._shaped(state, len(facts)) for state in states]
        past: Any = extra.get(lm.cache_name)
        self._past = [(layer.keys, layer.values) for layer in past.layers] if cache else None

    def _shaped(self, states: Tensor, rows: int) -> Tensor:
        return states.view(rows, self.length, -1)  # some models flatten the tokens of a batch

    def _rows(self, facts: Int[Tensor, " R"], column: int = 0) -> Batch:
        """Return one row per entry, from a column on."""
        whole = self._batch
        return Batch(
            whole.input_ids[facts, column:],
            whole.attention_mask[facts],
            whole.position_ids[facts, column:],
            tuple(facts.tolist()),
        )

    def _extra(self, prefix: Prefix | None, facts: Int[Tensor, " R"]) -> dict[str, Any]:
        """Return the arguments that a forward pass needs behind the prefixes of facts."""
        if prefix is None:
            return {}
        return self.lm.behind(prefix.rows(facts).cache())

    def _kept(self, lines: Int[Tensor, " R"], column: int, skipped: int) -> dict[str, Any]:
        """Return the same behind everything before a column of corrupted rows."""
        if self._past is None:
            return {}
        behind = self._past[0][0].shape[2] - self.length + column
        if behind == 0:
            return {}
        # blocks that will not run need no keys, but transformers asks the first one for the length
        layers = {
            layer: tuple(part[lines, :, :behind] for part in self._past[layer])
            for layer in {0, *range(skipped, len(self._past))}
        }
        filled = tuple(layers.get(layer, layers[0]) for layer in range(len(self._past)))
        mask = self._batch.attention_mask[:0]  # the batch brings its own
        return self.lm.behind(Prefix(filled, mask, ()).cache())  # type: ignore[arg-type]

    def _corrupted_embeddings(self, noise: Float[Tensor, "R T d"]) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            return with_first(output, first(output) + noise)

        return hooked(self.lm, after(self.lm.module(self.lm.spec.embedding), hook))

    @torch.no_grad()
    def answers(self) -> Float[Tensor, " f"]:
        """Return the probability of each answer in the clean run."""
        lm, facts = self.lm, torch.arange(len(self.rows), device=self.lm.device)
        lines = facts * self.samples  # their keys and values are not read: no block runs
        return self._finish(facts, lines, 0, lm.n_layers - 1, self.clean["block"][-1])

    @torch.no_grad()
    def restored(self, items: Sequence[Item], place: Place, layers: range) -> Float[Tensor, "n s"]:
        """Return the probability of the answer in corrupted runs with clean states put back.

        Args:
            items: Which tokens of which facts.
            place: What is put back: the output of the block, of its FFN or of its attention.
            layers: Blocks in which it is put back.
        """
        columns: dict[int, list[int]] = {}
        for number, item in enumerate(items):
            first_token = min(item.tokens, default=self.starts[item.fact])
            column = first_token - self.starts[item.fact] if self._past is not None else 0
            columns.setdefault(column, []).append(number)
        found = torch.zeros(len(items), self.samples, device=self.lm.device, dtype=torch.float64)
        vocabulary = self.lm.embedding.shape[0]
        for column, numbers in columns.items():
            rows = min(self.lm.max_tokens // (self.length - column), LOGIT_BUDGET // vocabulary)
            step = max(1, rows // self.samples)
            for at in range(0, len(numbers), step):
                part = numbers[at : at + step]
                found[part] = self._restored([items[i] for i in part], place, layers, column)
        return found

    def _restored(
        self, items: Sequence[Item], place: Place, layers: range, column: int
    ) -> Float[Tensor, "n s"]:
        """Restore items of which none has a token before a column; only columns from it on run."""
        device, n = self.lm.device, len(items)
        facts = torch.tensor([item.fact for item in items], device=device)
        facts = facts.repeat_interleave(self.samples)
        lines = facts * self.samples + torch.arange(self.samples, device=device).repeat(n)
        put = torch.zeros(n, self.length, dtype=torch.bool)
        for number, item in enumerate(items):
            put[number, [token - self.starts[item.fact] for token in item.tokens]] = True
        put = put[:, column:].to(device).repeat_interleave(self.samples, 0)[..., None]
        below, rest = layers[0] - 1, list(layers)
        hidden = self.corrupted[below][lines, column:] if below >= 0 else None
        if place == "block":  # nothing of the first block has to run: its output is known
            below, rest = layers[0], rest[1:]
            clean = self.clean["block"][below][facts, column:]
            hidden = torch.where(put, clean, self.corrupted[below][lines, column:])
        with ExitStack() as context:
            for layer in rest:
                hook = self._putter(put, self.clean[place][layer][facts, column:])
                module = module_at(self.lm, layer, place)
                context.enter_context(hooked(self.lm, after(module, hook)))
            if hidden is None:
                context.enter_context(self._corrupted_embeddings(self._noise[lines, column:]))
            return self._finish(facts, lines, column, below, hidden).view(n, self.samples).double()

    def _putter(self, put: Bool[Tensor, "R T 1"], clean: Float[Tensor, "R T d"]) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            states = first(output)
            moved = torch.where(put, clean, states.view(clean.shape))
            return with_first(output, moved.view(states.shape))

        return hook

    def _finish(
        self,
        facts: Int[Tensor, " R"],
        lines: Int[Tensor, " R"],
        column: int,
        below: int,
        hidden: Float[Tensor, "R T d"] | None,
    ) -> Float[Tensor, " R"]:
        """Run what is above block `below`, from a column on; return the answers' probabilities."""
        lm, number = self.lm, torch.arange(len(facts), device=self.lm.device)
        at = torch.stack([number, self._ends[facts] - column], 1)
        with ExitStack() as context:
            if hidden is not None:
                context.enter_context(reuse_below(lm, below, hidden))
            extra = self._kept(lines, column, below + 1)
            logits = wide(lm.logits(self._rows(facts, column), at, **extra))
        answers = logits.gather(1, self._answers[facts][:, None])[:, 0]
        return (answers - logits.logsumexp(-1)).exp()


def together(lm: LM, rows: Sequence[Row], samples: int) -> Iterator[list[int]]:
    """Yield groups of facts of similar length whose corrupted rows make about one forward pass.

    States and keys of all blocks are kept for a group, so its memory is bounded too.
    """
    tails = [len(row.ids) - subject_of(row).start for row in rows]
    size = 8 if lm.dtype == torch.float64 else 4
    per_token = 3 * lm.n_layers * lm.spec.d_model * size  # of the block's output, keys and values
    limit = min(lm.max_tokens, max(1, STATE_BYTES // per_token))
    group: list[int] = []
    for number in sorted(range(len(rows)), key=lambda i: (tails[i], len(rows[i].ids), i)):
        longest = max(len(rows[i].ids) for i in (*group, number))
        if group and (len(group) + 1) * samples * longest > limit:
            yield group
            group = []
        group.append(number)
    if group:
        yield group
