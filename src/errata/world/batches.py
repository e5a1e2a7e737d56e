"""Packs statements into rows for training; statements in a row do not see each other."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from errata.world.statements import Corpus
from errata.world.tokenizer import EOS

SAMPLED = 0.12  # share of the tokens outside answers that are learned as well
SAMPLED_WEIGHT = 0.1  # with 0.5 facts are learned at half the speed


class TextBatch(NamedTuple):
    """Rows of packed statements.

    ``ids``, ``positions`` and ``owner`` have shape (rows, width); a position starts from 0 in each
    statement, and ``owner`` numbers the statements within a row (-1: padding). ``learned`` are
    flat indices of the positions whose next token is learned, with its id and weight.
    """

    ids: Tensor
    positions: Tensor
    owner: Tensor
    learned: Tensor
    target: Tensor
    weight: Tensor


class Packer:
    """Makes the batch of a given step, the same one however often it is asked.

    Args:
        corpus: The statements.
        tokenizer: The tokenizer.
        statements: Statements per step.
        width: Tokens per row.
    """

    def __init__(
        self, corpus: Corpus, tokenizer: PreTrainedTokenizerFast, statements: int, width: int
    ) -> None:
        self.corpus, self.statements, self.width = corpus, statements, width
        self.core: Any = tokenizer.backend_tokenizer
        self.eos: int = self.core.token_to_id(EOS)

    def __call__(self, step: int) -> TextBatch:
        """Returns the batch of a step."""
        first = step * self.statements
        chosen = [self.corpus[first + i] for i in range(self.statements)]
        wholes = self.core.encode_batch([s.text for s in chosen])
        prompts = self.core.encode_batch([s.prompt for s in chosen])
        spans = sorted(
            (([*w.ids, self.eos], len(p.ids)) for w, p in zip(wholes, prompts, strict=True)),
            key=lambda pair: -len(pair[0]),
        )
        rows: list[list[tuple[list[int], int]]] = []
        room: list[int] = []
        for span in spans:  # first fit, longest first
            size = len(span[0])
            row = next((i for i, free in enumerate(room) if size <= free), len(rows))
            if row == len(rows):
                rows.append([])
                room.append(self.width)
            rows[row].append(span)
            room[row] -= size
        ids = torch.full((len(rows), self.width), self.eos)
        positions = torch.zeros_like(ids)
        owner = torch.full_like(ids, -1)
        weight = torch.zeros(ids.shape)
        noise = torch.rand(ids.shape, generator=torch.Generator().manual_seed(step))
        for row, group in enumerate(rows):
            at = 0
            for number, (span, begin) in enumerate(group):
                end = at + len(span)
                ids[row, at:end] = torch.tensor(span)
                positions[row, at:end] = torch.arange(len(span))
                owner[row, at:end] = number
                weight[row, at : end - 1] = SAMPLED_WEIGHT * (noise[row, at : end - 1] < SAMPLED)
                weight[row, at + begin - 1 : end - 2] = 1.0  # the answer and its full stop
                at = end
        learned = weight.flatten().nonzero().squeeze(1)
        return TextBatch(
            ids, positions, owner, learned, ids.flatten()[learned + 1], weight.flatten()[learned]
        )


def masks(batch: TextBatch, window: int | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """Returns additive attention masks by layer type, shape (rows, 1, width, width).

    Args:
        batch: Packed statements.
        window: Tokens that a sliding layer sees, itself included.
        dtype: Type of the masks.
    """
    width = batch.ids.shape[1]
    place = torch.arange(width, device=batch.ids.device)
    distance = place[:, None] - place[None, :]
    seen = (batch.owner[:, :, None] == batch.owner[:, None, :]) & (distance >= 0)
    lowest = torch.finfo(dtype).min

    def additive(allowed: Tensor) -> Tensor:
        mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        return mask.masked_fill_(~allowed, lowest)[:, None]

    made = {"full_attention": additive(seen)}
    if window is not None:
        made["sliding_attention"] = additive(seen & (distance < window))
    return made
