"""The rows on which target values are optimised, and forward passes that compute only what moves.

The added vector sits at the subject's last token of block `l`. What does not depend on it is
computed once:

* blocks up to `l` (their output is kept and only the blocks above run);
* everything before the subject's last token (kept as keys and values of the attention), of which
  the contexts, for all edits of an unedited model;
* logits at positions without a label;
* the essence row `"{subject} is a"`, of which only the subject's last token is read: the bare
  prompt's row holds that already where it begins with the subject, and elsewhere it ends there.

```
 row r of an edit   ids: [ … subject … last | relation … target ]    one row per context, and
                                     │                               "{subject}" if need be
   kept once        ◀── prefix ──▶ column[r]
   run each step                     ◀──────── batch ────────▶

 block  n-1                                      logits at `at` [N, 2]: labels, then essence
        …                      ▲ run
        l    states[r, column[r]] += vectors[edit of r]            vectors [e, d], the leaves
        …                      ▲ not run: `hidden` [R, T, d] stands in (reuse_below)
        0
```

Each saving is exact and can be switched off (`Savings`); tests compare them with the plain form.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from errata.case import Edit
from errata.config import Settings
from errata.locate.beginnings import beginnings
from errata.locate.contexts import Contexts
from errata.locate.essence import run_rows
from errata.locate.keys import subject_rows
from errata.locate.pieces import edit_rows as edit_rows
from errata.locate.stream import ffn_adds_to_block
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

if TYPE_CHECKING:
    from errata.model.lm import LM

WIDE, HELD_BUDGET = 160, 1 << 28
"""Rows of a product that is wide enough, and bytes of hidden states that gradients may hold."""

LOGIT_BUDGET = 1 << 26
"""Most logits (positions x vocabulary) per forward pass; 0.25 GB in float32, before gradients."""


class Savings(Settings):
    """Savings of the optimisation of values; the result is the same with and without."""

    truncate: bool = Field(default=True, description="Run only the blocks above the edited one")
    prefix_cache: bool = Field(
        default=True, description="Keep keys and values of the tokens before the subject's last"
    )
    answer_only: bool = Field(
        default=True,
        description="Compute logits only where there is a label, and the essence only once",
    )


Held = tuple[Int[Tensor, " R"], Mapping[Place, Float[Tensor, "e d"]]]
"""Columns at which vectors are added that are not optimised, and the vectors, of one further place
per row."""


@dataclass
class Rows:
    """One chunk of edits laid out as rows: for each edit its contexts, then its essence row if any.

    Attributes:
        lm: The model.
        layer: Block whose output the vectors move.
        places: Where in the block.
        n_edits: Edits still in the batch.
        owner: Per row, the number of its edit, ascending.
        batch: Padded rows, or what follows their prefixes; it says under which patch each runs.
        prefix: Keys and values of the prefixes, if they are cached.
        cut: Blocks up to this one are skipped; None: none is.
        hidden: Output of block `cut`.
        column: Per row, the column of the subject's last token.
        at: `(row, column)` of every label, then of the subject that each edit's essence is read at.
        labels: Next token at each label position.
        label_weight: 1 / (contexts x target tokens).
        start: Per place, the output on the bare prompt, before anything is added.
        loss_layer: Block whose output the head reads; None for the last.
        answer_only: Whether logits are computed at `at` only.
        held: What is added at further columns and stays: columns, and vectors by place.
    """

    lm: LM
    layer: int
    places: tuple[Place, ...]
    n_edits: int
    owner: Int[Tensor, " R"]
    batch: Batch
    prefix: Prefix | None
    cut: int | None
    hidden: Tensor | None
    column: Int[Tensor, " R"]
    at: Int[Tensor, "N 2"]
    labels: Int[Tensor, " L"]
    label_weight: Float[Tensor, " L"]
    start: dict[Place, Float[Tensor, "e d"]]
    loss_layer: int | None
    answer_only: bool
    held: list[Held] = field(default_factory=list)

    def _arguments(self) -> dict[str, Any]:
        # a forward pass appends to the cache it is given, so each one gets a fresh one
        if self.prefix is None:
            return {}
        return self.lm.behind(self.prefix.cache())

    def _adder(self, place: Place, vectors: Float[Tensor, "e d"]) -> Any:
        """Hook that adds each edit's vector at its rows' subjects; out of place, for autograd."""
        rows = torch.arange(len(self.column), device=self.column.device)
        everything = [(self.column, vectors), *((at, held[place]) for at, held in self.held)]

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            states = first(output)
            moved = states.view(len(rows), -1, states.shape[-1])  # some models flatten tokens
            for column, vector in everything:
                added = vector[self.owner].to(states.dtype)
                moved = moved.index_put((rows, column), added, accumulate=True)
            return with_first(output, moved.view(states.shape))

        return hook

    def losses(
        self, vectors: dict[Place, Float[Tensor, "e d"]]
    ) -> tuple[Float[Tensor, " e"], Float[Tensor, "e V"], Bool[Tensor, " e"]]:
        """Run the model with the vectors added.

        Returns:
            Mean negative log-likelihood of the target per edit, the log-probabilities at the
            subject of its essence prompt (of none, if edits have none), and whether all target
            tokens are the most probable ones in all contexts.
        """
        lm = self.lm
        with ExitStack() as context:
            if self.cut is not None and self.hidden is not None:
                context.enter_context(reuse_below(lm, self.cut, self.hidden))
            for place, vector in vectors.items():
                skipped = self.cut == self.layer
                module = module_at(lm, self.layer, "block" if skipped else place)
                context.enter_context(hooked(lm, after(module, self._adder(place, vector))))
            if self.loss_layer is not None and self.loss_layer < lm.n_layers - 1:
                context.enter_context(_exit_at(lm, self.loss_layer))
            if self.answer_only:
                logits = lm.logits(self.batch, self.at, **self._arguments())
            else:
                full = lm.run(self.batch, **self._arguments()).logits
                logits = full[self.at[:, 0], self.at[:, 1]]
        logits = wide(logits)
        n = len(self.labels)
        label_logits = logits[:n].gather(1, self.labels[:, None])[:, 0]
        nll = (logits[:n].logsumexp(-1) - label_logits) * self.label_weight
        edit = self.owner[self.at[:n, 0]]
        total = nll.new_zeros(self.n_edits).index_add(0, edit, nll)
        misses = (logits[:n].detach().amax(-1) > label_logits.detach()).to(nll.dtype)
        said = nll.new_zeros(self.n_edits).index_add(0, edit, misses) == 0
        return total, logits[n:].log_softmax(-1), said

    def keep(self, edits: Int[Tensor, " k"]) -> None:
        """Drop all edits but these (numbers within the present batch)."""
        place = torch.full((self.n_edits,), -1, device=edits.device)
        place[edits] = torch.arange(len(edits), device=edits.device)
        rows = (place[self.owner] >= 0).nonzero()[:, 0]
        number = torch.full((len(self.column),), -1, device=edits.device)
        number[rows] = torch.arange(len(rows), device=edits.device)
        moved = number[self.at[:, 0]]
        kept = moved >= 0
        self.at = torch.stack([moved, self.at[:, 1]], 1)[kept]
        n = len(self.labels)
        self.labels, self.label_weight = self.labels[kept[:n]], self.label_weight[kept[:n]]
        batch = self.batch
        kept_rows = rows.tolist()
        self.batch = Batch(
            batch.input_ids[rows], batch.attention_mask[rows], batch.position_ids[rows],
            tuple(range(len(rows))), patches=tuple(batch.patches[r] for r in kept_rows),
        )  # fmt: skip
        if self.prefix is not None:
            self.prefix = self.prefix.rows(rows)
        if self.hidden is not None:
            self.hidden = self.hidden[rows]
        self.column, self.owner = self.column[rows], place[self.owner[rows]]
        self.held = [
            (at[rows], {where: vectors[edits] for where, vectors in own.items()})
            for at, own in self.held
        ]
        self.n_edits = len(edits)


def _exit_at(lm: LM, layer: int) -> AbstractContextManager[None]:
    """Let the final norm and head read the output of block `layer` instead of the last one's."""
    seen: list[Tensor] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        seen[:] = [first(output)]

    return hooked(
        lm,
        after(lm.module(lm.spec.blocks[layer]), note),
        after(
            lm.module(lm.spec.blocks[-1]),
            lambda module, args, output: with_first(output, seen[0]),
        ),
    )


def _tokens_held(lm: LM) -> float:
    """Return how many tokens at once gradients are worth their memory; only a CPU has too many.

    A block keeps about ten vectors of the stream's width and three of the FFN's per token until the
    way back. On a CPU products of `WIDE` rows are hardly slower than wider ones.
    """
    if lm.device.type != "cpu":
        return math.inf
    site = lm.site(0)
    each = 4 * lm.n_layers * (10 * site.d_out + 3 * site.d_in)
    return float(max(WIDE, HELD_BUDGET // each))


def plan_chunks(
    lm: LM, edits: Sequence[Edit], contexts: Contexts, patches: Sequence[int] | None = None
) -> Iterator[tuple[list[int], list[Row]]]:
    """Split edits into chunks whose rows stay within the budgets of tokens, logits and gradients.

    Edits of similar length come together, so that padding stays small; what counts most is the
    length from the subject's last token on, since with cached prefixes only that is run.

    Args:
        lm: The model.
        edits: Edits with subjects.
        contexts: Texts in front of the prompts.
        patches: For each edit, the patch in the active stack that its rows run under.

    Yields:
        Numbers of the edits, and their rows as `edit_rows` makes them, one edit after the other.
    """
    subject_rows(lm, edits, Contexts(("",)))  # refuse edits without subject before any work
    vocabulary = lm.model.get_input_embeddings().get_parameter("weight").shape[0]
    most = _tokens_held(lm)
    chunk: list[int] = []
    held: list[Row] = []
    longest = labels = run = 0
    tokenised = [
        edit_rows(lm, edit, contexts, patch)
        for edit, patch in zip(edits, patches or [-1] * len(edits), strict=True)
    ]
    lengths = [max(len(row.ids) for row in rows) for rows in tokenised]
    tails = [max(len(row.ids) - row.subject_last for row in rows) for rows in tokenised]
    for i in sorted(range(len(edits)), key=lambda i: (tails[i], lengths[i])):
        rows, size = tokenised[i], lengths[i]
        count = sum(len(row.labels) for row in rows) + 1
        tokens = max(longest, size) * (len(held) + len(rows))
        padding = tails[i] * len(held) - run
        if chunk and (
            tokens > lm.max_tokens
            or run + tails[i] * len(rows) > most
            or (labels + count) * vocabulary > LOGIT_BUDGET
            or padding > lm.pass_cost
        ):
            yield chunk, held
            chunk, held, longest, labels, run = [], [], 0, 0, 0
        chunk.append(i)
        held += rows
        longest, labels, run = max(longest, size), labels + count, run + tails[i] * len(rows)
    if chunk:
        yield chunk, held


@torch.no_grad()
def build_rows(
    lm: LM,
    rows: Sequence[Row],
    per_edit: int,
    layer: int,
    places: tuple[Place, ...],
    *,
    savings: Savings,
    loss_layer: int | None = None,
    known: dict[Place, Float[Tensor, "e d"]] | None = None,
    ahead: Contexts | None = None,
    held: Sequence[tuple[Sequence[int], Mapping[Place, Float[Tensor, "e d"]]]] = (),
) -> Rows:
    """Lay out the rows of some edits and compute once what does not depend on the vectors.

    Args:
        lm: The model.
        rows: Of each edit, its contexts and then its essence row, whole, if edits have one.
        per_edit: How many rows an edit has.
        layer: Block at which vectors are added.
        places: Where in the block.
        savings: Which savings are used.
        loss_layer: Block whose output the head reads; None for the last.
        known: Outputs on the bare prompts, if they are not to be read off these rows.
        ahead: What rows begin with, kept from edit to edit.
        held: Of pieces of an answer, for each piece in front of them its place in every row, and
            what was found there.
    """
    labelled = sum(bool(row.labels) for row in rows[:per_edit])
    rows, owner, essence_rows = run_rows(lm, rows, per_edit, spare=savings.answer_only)
    device = lm.device
    cut, cached = _savings(lm, layer, places, savings)
    prefix = None
    if cached:
        # what is added further left moves everything behind it
        own = [row.subject[0] if held and row.subject else row.subject_last for row in rows]
        kept = beginnings(lm, ahead) if ahead is not None else None
        prefix = make_prefix(lm, rows, own, kept.of(rows, own) if kept else None)
        batch, extra = suffix_batch(lm, rows, prefix)
    else:
        batch, extra = lm.batch(rows, range(len(rows))), {}
    starts = prefix.starts if prefix is not None else (0,) * len(rows)
    column = [row.subject_last - start for row, start in zip(rows, starts, strict=True)]
    pairs, labels, weights = [], [], []
    for r, (row, first_run) in enumerate(zip(rows, starts, strict=True)):
        if not row.labels:  # an essence row
            continue
        pairs += [(r, p - first_run) for p in row.positions]
        labels += row.labels
        weights += [1 / (labelled * len(row.labels))] * len(row.labels)
    modules = [module_at(lm, layer, place) for place in places]
    below = [] if cut is None else [module_at(lm, cut, "block")]
    _, outputs = capture(lm, batch, outputs=[*modules, *below], **extra)
    extra.clear()
    if prefix is not None and cut is not None:
        prefix = prefix.above(cut + 1)
    bare = torch.tensor([owner.index(e) for e in range(owner[-1] + 1)], device=device)
    columns = torch.tensor(column, device=device)
    shape = (len(rows), batch.input_ids.shape[1], -1)
    start: dict[Place, Tensor] = {
        place: wide(output.view(shape)[bare, columns[bare]])
        for place, output in zip(places, outputs, strict=False)
    }
    wider = torch.float64 if lm.dtype == torch.float64 else torch.float32
    return Rows(
        lm, layer, places, len(bare), torch.tensor(owner, device=device), batch, prefix, cut,
        outputs[-1] if below else None, columns,
        torch.tensor([*pairs, *((r, column[r]) for r in essence_rows)], device=device),
        torch.tensor(labels, device=device),
        torch.tensor(weights, device=device, dtype=wider),
        known or start, loss_layer, savings.answer_only,
        [
            (torch.tensor(at, device=device) - torch.tensor(starts, device=device), vectors)
            for at, vectors in held
        ],
    )  # fmt: skip


def _savings(
    lm: LM, layer: int, places: tuple[Place, ...], savings: Savings
) -> tuple[int | None, bool]:
    """Highest block that can be skipped, and whether prefixes can be cached, on this model."""
    cut = None
    if savings.truncate:
        acts_on_block = places == ("block",) or (
            places == ("ffn",) and ffn_adds_to_block(lm, layer)
        )
        cut = layer if acts_on_block else layer - 1 if layer > 0 else None
    return cut, savings.prefix_cache and lm.prefix_cache_works
