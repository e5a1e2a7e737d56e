"""Questions to a model: scores of labels, most probable tokens.

Rows say under which patch they run (`Row.patch`), so nothing here knows of stacks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from errata.model.kept import kept_or_resumed
from errata.model.logprobs import RowScore, score_logits
from errata.model.tokens import Row, positions_of, share_rows

if TYPE_CHECKING:
    from errata.model.lm import LM


@torch.no_grad()
def score_rows(lm: LM, rows: Sequence[Row], max_tokens: int | None = None) -> list[RowScore]:
    """Score the labels of every row under teacher forcing.

    Rows of the same tokens under the same patch (guests) share one row of a pass (their host).
    """
    shared, hosts = share_rows(rows)
    guests: list[list[int]] = [[] for _ in shared]
    for i, host in enumerate(hosts):
        guests[host].append(i)
    scores: list[RowScore | None] = [None] * len(rows)
    for batch in lm.batches(shared, max_tokens):
        pairs = [(host, p) for host in batch.index for p in shared[host].positions]
        line = {pair: number for number, pair in enumerate(pairs)}
        names = [shared[host].ids for host in batch.index]
        with kept_or_resumed(lm, names, batch):
            logits = lm.logits(batch, positions_of(shared, batch.index, lm.device))
        asked = [(host, i) for host in batch.index for i in guests[host]]
        logprobs, argmax, ranks = score_logits(
            logits,
            torch.tensor([n for _, i in asked for n in rows[i].labels], device=lm.device),
            torch.tensor(
                [line[host, p] for host, i in asked for p in rows[i].positions], device=lm.device
            ),
        )
        start = 0
        for _, i in asked:
            end = start + len(rows[i].labels)
            scores[i] = RowScore(
                tuple(logprobs[start:end]), tuple(argmax[start:end]), tuple(ranks[start:end])
            )
            start = end
    return [score for score in scores if score is not None]


@torch.no_grad()
def top_tokens(lm: LM, rows: Sequence[Row], k: int) -> list[list[tuple[str, float]]]:
    """Return the `k` most probable tokens behind each row with their probabilities; all at most."""
    result: list[list[tuple[str, float]]] = [[] for _ in rows]
    for batch in lm.batches(rows):
        logits = lm.logits(batch, positions_of(rows, batch.index, lm.device))
        values, ids = logits.float().softmax(-1).topk(min(k, logits.shape[-1]), dim=-1)
        for i, tokens, shares in zip(batch.index, ids.tolist(), values.tolist(), strict=True):
            words = [str(lm.tokenizer.decode([token])) for token in tokens]
            result[i] = list(zip(words, shares, strict=True))
    return result
