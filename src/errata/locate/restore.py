"""Clean and corrupted runs of facts, and runs in which single clean states are put back.

The corrupted run adds noise to the embeddings of the subject (Meng et al. 2022, section 2). Putting
a clean state back leaves everything below it as it was in the corrupted run, so only the blocks
from it on are run; all tokens of a fact, and several facts, are rows of one forward pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from errata.forward import (
    Prefix,
    first,
    hooks,
    make_prefix,
    reuse_below,
    suffix_batch,
    with_first,
)
from errata.locate.keys import Place, capture, module_of, wide
from errata.locate.rows import LOGIT_BUDGET
from errata.tokens import Batch, Row

if TYPE_CHECKING:
    from errata.lm import LM


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
    text = f"{seed} {row.ids} {row.subject}".encode()
    number = int.from_bytes(hashlib.sha256(text).digest()[:7], "big")
    tokens = len(row.ids[subject_of(row)])
    draw = torch.Generator().manual_seed(number)
    return torch.randn(samples, tokens, width, generator=draw, dtype=torch.float64)


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

    What stands before the subject is never corrupted: it is run once per fact and kept as keys and
    values of the attention, where the model allows it.

    Args:
        lm: The model; it is not changed.
        rows: One per fact: the prompt with its subject, and the answer's first token as its one
            label.
        noise: Per fact, what is added to the embeddings of its subject, `[samples, t, d]`.
        places: Which states are kept; `block` always is.
        prefix_cache: Whether the tokens before the subject are run once only; exact either way.
    """

    @torch.no_grad()
    def __init__(
        self,
        lm: LM,
        rows: Sequence[Row],
        noise: Sequence[Float[Tensor, "s t d"]],
        places: Sequence[Place] = ("block", "ffn", "attn"),
        *,
        prefix_cache: bool = True,
    ) -> None:
        self.lm, self.rows, self.samples = lm, rows, len(noise[0])
        starts = [subject_of(row).start for row in rows]
        _ = lm.block_returns_tuple  # a trial run of its own, as the next line may be
        self._prefix: Prefix | None = None
        if prefix_cache and any(starts) and lm.prefix_cache_works:
            self._prefix = make_prefix(lm, rows, starts)
            self._batch, _ = suffix_batch(lm, rows, self._prefix)
        else:
            starts = [0] * len(rows)
            self._batch = lm.batch(rows, range(len(rows)))
        self.starts = tuple(starts)
        self.length = self._batch.input_ids.shape[1]
        spread = torch.zeros(
            len(rows), self.samples, self.length, noise[0].shape[-1], dtype=torch.float64
        )
        for number, (row, drawn) in enumerate(zip(rows, noise, strict=True)):
            subject = subject_of(row)
            first_column = subject.start - starts[number]
            spread[number, :, first_column : first_column + drawn.shape[1]] = drawn
        self._noise = spread.flatten(0, 1).to(lm.device, lm.dtype)
        self._ends = torch.tensor(
            [len(row.ids) - 1 - start for row, start in zip(rows, starts, strict=True)],
            device=lm.device,
        )
        self._answers = torch.tensor([row.labels[0] for row in rows], device=lm.device)
        n = lm.n_layers
        kept: list[Place] = list(dict.fromkeys(("block", *places)))
        modules = [module_of(lm, layer, place) for place in kept for layer in range(n)]
        once = torch.arange(len(rows), device=lm.device)
        batch, extra = self._rows(once)
        _, states = capture(lm, batch, outputs=modules, **extra)
        shaped = [self._shaped(state, len(rows)) for state in states]
        self.clean = {place: shaped[i * n : (i + 1) * n] for i, place in enumerate(kept)}
        facts = once.repeat_interleave(self.samples)
        batch, extra = self._rows(facts)
        with self._corrupted_embeddings(torch.arange(len(facts), device=lm.device)):
            _, states = capture(lm, batch, outputs=modules[:n], **extra)
        self.corrupted = [self._shaped(state, len(facts)) for state in states]

    def _shaped(self, states: Tensor, rows: int) -> Tensor:
        return states.view(rows, self.length, -1)  # some models flatten the tokens of a batch

    def _rows(self, facts: Int[Tensor, " R"], skipped: int = 0) -> tuple[Batch, dict[str, Any]]:
        """Return one row per entry, and the arguments its forward pass needs.

        Args:
            facts: Number of the fact of each row.
            skipped: How many of the first blocks will not run.
        """
        whole = self._batch
        batch = Batch(
            whole.input_ids[facts], whole.attention_mask[facts], whole.position_ids[facts],
            tuple(facts.tolist()),
        )  # fmt: skip
        if self._prefix is None:
            return batch, {}
        cache = self._prefix.above(skipped).rows(facts).cache()
        return batch, {"past_key_values": cache, "use_cache": True}

    def _corrupted_embeddings(self, lines: Int[Tensor, " R"]) -> Any:
        """Hook that adds the noise of the given lines of all corrupted rows."""
        noise = self._noise

        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            return with_first(output, first(output) + noise[lines])

        return hooks(self.lm.module(self.lm.spec.embedding).register_forward_hook(hook))

    @property
    def rows_at_once(self) -> int:
        """Rows per forward pass that the budgets of tokens and of logits allow."""
        vocabulary = self.lm.embedding.shape[0]
        return max(1, min(self.lm.max_tokens // self.length, LOGIT_BUDGET // vocabulary))

    @torch.no_grad()
    def answers(self) -> Float[Tensor, " f"]:
        """Return the probability of each answer in the clean run."""
        number = torch.arange(len(self.rows), device=self.lm.device)
        return self._finish(number, self.lm.n_layers - 1, self.clean["block"][-1])

    @torch.no_grad()
    def restored(self, items: Sequence[Item], place: Place, layers: range) -> Float[Tensor, "n s"]:
        """Return the probability of the answer in corrupted runs with clean states put back.

        Args:
            items: Which tokens of which facts.
            place: What is put back: the output of the block, of its FFN or of its attention.
            layers: Blocks in which it is put back.
        """
        found = [
            self._restored(items[start : start + step], place, layers)
            for step in [max(1, self.rows_at_once // self.samples)]
            for start in range(0, len(items), step)
        ]
        return torch.cat(found) if found else torch.zeros(0, self.samples)

    def _restored(self, items: Sequence[Item], place: Place, layers: range) -> Tensor:
        lm, device = self.lm, self.lm.device
        facts = torch.tensor([item.fact for item in items], device=device)
        facts = facts.repeat_interleave(self.samples)
        lines = facts * self.samples + torch.arange(self.samples, device=device).repeat(len(items))
        put = torch.zeros(len(items), self.length, dtype=torch.bool)
        for number, item in enumerate(items):
            put[number, [token - self.starts[item.fact] for token in item.tokens]] = True
        put = put.to(device).repeat_interleave(self.samples, 0)[..., None]
        below, rest = layers[0] - 1, list(layers)
        hidden = self.corrupted[below][lines] if below >= 0 else None
        if place == "block":  # nothing of the first block has to run: its output is known
            below, rest = layers[0], rest[1:]
            start = self.corrupted[below][lines]
            hidden = torch.where(put, self.clean["block"][below][facts], start)
        with ExitStack() as context:
            for layer in rest:
                hook = self._putter(put, facts, self.clean[place][layer])
                module = module_of(lm, layer, place)
                context.enter_context(hooks(module.register_forward_hook(hook)))
            if hidden is None:
                context.enter_context(self._corrupted_embeddings(lines))
            found = self._finish(facts, below, hidden)
        return found.view(len(items), self.samples)

    def _putter(
        self, put: Bool[Tensor, "R T 1"], facts: Int[Tensor, " R"], clean: Float[Tensor, "F T d"]
    ) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            states = first(output)
            shaped = self._shaped(states, len(facts))
            return with_first(output, torch.where(put, clean[facts], shaped).view(states.shape))

        return hook

    def _finish(
        self, facts: Int[Tensor, " R"], below: int, hidden: Float[Tensor, "R T d"] | None
    ) -> Float[Tensor, " R"]:
        """Run what is above block `below` and return the probability of the answer, per row."""
        lm = self.lm
        batch, extra = self._rows(facts, below + 1)
        at = torch.stack([torch.arange(len(facts), device=lm.device), self._ends[facts]], 1)
        with ExitStack() as context:
            if hidden is not None:
                context.enter_context(reuse_below(lm, below, hidden))
            logits = wide(lm.logits(batch, at, **extra))
        own = logits.gather(1, self._answers[facts][:, None])[:, 0]
        return (own - logits.logsumexp(-1)).exp()


def together(lm: LM, rows: Sequence[Row], samples: int) -> Iterator[list[int]]:
    """Yield groups of facts of similar length whose restorations fill about one forward pass."""
    tails = [len(row.ids) - subject_of(row).start for row in rows]
    group: list[int] = []
    total = 0
    for number in sorted(range(len(rows)), key=lambda i: (tails[i], len(rows[i].ids), i)):
        tokens = samples * tails[number] ** 2
        if group and total + tokens > lm.max_tokens:
            yield group
            group, total = [], 0
        group.append(number)
        total += tokens
    if group:
        yield group
