"""General sentences: how far the next token behind them moves from the unedited model's.

Fifty openings of sentences are shipped for that, of three words each: what is asked must cost
little beside an edit. Whole sentences serve perplexity. The pocket model and its like, which
never read any but those of their world, get held-out sentences of that.

What the unedited model says is kept in the cache: of each sentence the TOP most probable next
tokens; all others count as one. So divergences are those of that coarser distribution, which are
never larger than those of the whole one, and smaller by a few percent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from errata.errors import ErrataError
from errata.model.tokens import Row, positions_of
from errata.patch.report import Sentences
from errata.store.cache import digest, load_tensors, save_tensors
from errata.store.files import cache_root
from errata.world.held import world_sentences
from errata.world.shipped import knows_world

if TYPE_CHECKING:
    from errata.model.lm import LM

TOP = 2048
"""Tokens whose probability is kept for each sentence."""

OPENINGS, TEXT = (Path(__file__).parent / name for name in ("openings.txt", "text.txt"))

WORTH_KEEPING = 20_000_000
"""Parameters of a model from which its answers are kept on disk: smaller ones are asked faster."""

Kept = tuple[Int[Tensor, "S k"], Float[Tensor, "S k"]]
"""Token ids and their log probabilities, for each sentence."""


@cache
def lines_of(path: Path) -> tuple[str, ...]:
    """Return the lines of a shipped file."""
    return tuple(path.read_text(encoding="utf-8").splitlines())


def texts_of(lm: LM, path: Path = OPENINGS) -> tuple[str, ...]:
    """Return the sentences that a model is asked, each without its end."""
    shipped = lines_of(path)
    if not knows_world(lm.name):
        return shipped
    return tuple(text.rpartition(" ")[0] for text in islice(world_sentences(), len(shipped)))


def rows_of(lm: LM, path: Path = OPENINGS) -> list[Row]:
    """Return the sentences as rows, tokenised once per model.

    Openings that are longer than most are cut: padding costs as much as text.
    """
    return lm.once(("general sentences", path.name), lambda: _rows_of(lm, path))


def _rows_of(lm: LM, path: Path) -> list[Row]:
    rows = lm.rows(texts_of(lm, path))
    if path != OPENINGS:
        return rows
    most = sorted(len(row.ids) for row in rows)[len(rows) // 2]
    cut = (row.ids[:most] for row in rows)
    return [Row(ids, (len(ids) - 1,), (), len(ids)) for ids in cut]


@torch.no_grad()
def next_tokens(lm: LM, rows: Sequence[Row]) -> Float[Tensor, "S V"]:
    """Return log probabilities of the next token behind each row, on the CPU."""
    found: list[Tensor | None] = [None] * len(rows)
    for batch in lm.batches(rows):
        logits = lm.logits(batch, positions_of(rows, batch.index, lm.device))
        for i, line in zip(batch.index, logits.float().log_softmax(-1).cpu(), strict=True):
            found[i] = line
    return torch.stack([line for line in found if line is not None])


def unedited(lm: LM) -> Kept:
    """Return what the unedited model says, from the cache if it was asked before.

    Under a patch that somebody has applied, what the model says then is not kept.
    """
    if not lm.installed.nothing:
        return _most_probable(lm)
    return lm.once("general sentences unedited", lambda: _unedited(lm))


def _most_probable(lm: LM) -> Kept:
    whole = next_tokens(lm, rows_of(lm))
    logprobs, ids = whole.topk(min(TOP, whole.shape[-1]), dim=-1)
    return ids, logprobs


def _unedited(lm: LM) -> Kept:
    rows = rows_of(lm)
    key = digest(lm.fingerprint, str(lm.dtype), [row.ids for row in rows], TOP)
    path = cache_root() / "inspection" / f"{key}.safetensors"
    large = sum(p.numel() for p in lm.model.parameters()) >= WORTH_KEEPING
    there = load_tensors(path) if large else None
    if there is not None:
        return there[0]["ids"].long(), there[0]["logprobs"]
    ids, logprobs = _most_probable(lm)
    try:
        if large:
            save_tensors(path, {"ids": ids.int(), "logprobs": logprobs}, {"model": lm.name})
    except (ErrataError, OSError):
        pass  # a cache that cannot be written costs time, nothing else
    return ids, logprobs


def divergence(kept: Kept, now: Float[Tensor, "S V"]) -> Float[Tensor, " S"]:
    """Return `KL(unedited || now)` of each sentence, in nats; infinite where `now` is not finite.

    Args:
        kept: What the unedited model says.
        now: Log probabilities under the patch.
    """
    ids, logp = kept[0], kept[1].double()
    logq = now.double().gather(-1, ids)
    p, q = logp.exp(), logq.exp()
    rest_p, rest_q = (1 - p.sum(-1)).clamp_min(0), (1 - q.sum(-1)).clamp_min(1e-12)
    rest = torch.where(rest_p > 1e-9, rest_p * (rest_p.clamp_min(1e-300).log() - rest_q.log()), 0.0)
    total = (p * (logp - logq)).sum(-1) + rest
    return torch.where(total.isfinite(), total.clamp_min(0), math.inf)


def moved(lm: LM, kept: Kept) -> Sentences:
    """Ask the sentences of the model as it is now.

    Args:
        lm: The model under a patch.
        kept: What the unedited model said.
    """
    found = divergence(kept, next_tokens(lm, rows_of(lm)))
    at = int(found.argmax())
    return Sentences(
        len(found), float(found.mean()), float(found[at]), lm.text(rows_of(lm)[at].ids)
    )
