"""Which edit a question belongs to: text encoders, and the nearest of many stored keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from errata.nets.small import (
    alike,
    copy_of_blocks,
    hidden_states,
    load_model,
    own_blocks,
    padded,
    width_of,
    words_of,
)

if TYPE_CHECKING:
    from errata.model.lm import LM

Text = tuple[int, ...]
"""Token ids of the base model's tokenizer."""

PAIRS = 2**24
"""Similarities computed at once; more queries are compared in parts."""


class OwnEncoder(nn.Module):
    """Copies of some of the base model's blocks, read at the last token and projected.

    The base model's word embeddings are its input, so that it knows the names that the model knows.

    Args:
        lm: The base model.
        blocks: Which of its blocks.
        width: Width of the keys.
        size: What a key's product with itself is to begin with, about.
    """

    def __init__(self, lm: LM, blocks: Sequence[int], width: int, size: float = 1.0) -> None:
        super().__init__()
        self.blocks = copy_of_blocks(lm, blocks)
        self.norm = nn.LayerNorm(width_of(self.blocks))
        self.project = nn.Linear(width_of(self.blocks), width)
        deviation = (size / (width * width_of(self.blocks))) ** 0.5
        nn.init.normal_(self.project.weight, std=deviation)

    def forward(self, lm: LM, texts: Sequence[Text]) -> Float[Tensor, "n k"]:
        """Return the key of each text."""
        ids, mask = padded(texts, lm.device)
        dtype = self.project.weight.dtype
        hidden = hidden_states(self.blocks, words_of(lm, ids).to(dtype), mask)
        last = hidden[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1]
        return self.project(self.norm(last))


class HubEncoder(nn.Module):
    """A sentence encoder from the Hub: its first token's hidden state, as published.

    Args:
        name: Hub id or folder.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        from transformers import AutoModel, AutoTokenizer

        self.model = load_model(AutoModel, name)
        self.tokenizer = load_model(AutoTokenizer, name, weights=False)

    def forward(self, lm: LM, texts: Sequence[Text]) -> Float[Tensor, "n k"]:
        """Return the key of each text."""
        plain = [lm.text(text) for text in texts]
        given = self.tokenizer(plain, padding=True, truncation=True, return_tensors="pt")
        return self.model(**given.to(lm.device)).last_hidden_state[:, 0]


def make_encoder(lm: LM, name: str, width: int, size: float) -> nn.Module:
    """Return an encoder: `own:BLOCKS`, or one by name.

    Raises:
        ConfigError: If the base model has no such blocks.
        ModelError: If it cannot be had.
    """
    blocks = own_blocks(name, lm)
    return HubEncoder(name) if blocks is None else OwnEncoder(lm, blocks, width, size)


@torch.no_grad()
def embed(lm: LM, encoder: nn.Module, texts: Sequence[Text]) -> Float[Tensor, "n k"]:
    """Return the key of each text; each different one is read once, with others of its length."""
    different = sorted(set(texts), key=lambda text: (len(text), text))
    place = {text: at for at, text in enumerate(different)}
    keys = keys_of(lm, encoder, different)
    return keys[torch.tensor([place[text] for text in texts], device=keys.device)]


def keys_of(lm: LM, encoder: nn.Module, texts: Sequence[Text]) -> Float[Tensor, "n k"]:
    """Return the key of each text, as often as it is there; gradients flow."""
    groups = alike(lm, texts)
    made = torch.cat([encoder(lm, [texts[i] for i in group]) for group in groups])
    order = torch.tensor([i for group in groups for i in group], device=made.device)
    return made[order.argsort()]


def nearest(
    queries: Float[Tensor, "m k"], keys: Float[Tensor, "n k"]
) -> tuple[Float[Tensor, " m"], Int[Tensor, " m"]]:
    """Return the largest inner product of each query with a key, and which key; exact.

    One matrix product for many queries; of equal keys the first counts.
    """
    part = max(1, PAIRS // max(len(keys), 1))
    best = [(some @ keys.T).max(1) for some in queries.split(part)]
    return torch.cat([b.values for b in best]), torch.cat([b.indices for b in best])


def scope_loss(
    sims: Float[Tensor, "m n"],
    label: Int[Tensor, " m"],
    threshold: float,
    same: Bool[Tensor, "m n"],
    released: bool = False,
) -> Float[Tensor, " m"]:
    """Return the loss of queries over the keys of a batch and the threshold.

    The threshold stands as one more logit beside the similarities, and each query's own key (or
    the threshold, for a query that belongs to none) should win.

    Args:
        sims: Similarities.
        label: Number of each query's key, or -1.
        threshold: Similarity from which a query is in scope.
        same: Keys that are no competitors of a query's own, being equal to it.
        released: As in the released code: queries in scope compete with the other keys alone, and
            0.1 exp(-similarity) is added below the threshold plus one.
    """
    count = sims.shape[1]
    logits = sims.masked_fill(same, float("-inf"))
    border = logits.new_full((len(sims), 1), threshold)
    if released:
        border = border.masked_fill((label >= 0)[:, None], float("-inf"))
    target = torch.where(label < 0, torch.full_like(label, count), label)
    loss = nn.functional.cross_entropy(torch.cat([logits, border], 1), target, reduction="none")
    if released:
        own = sims.gather(1, label.clamp(min=0)[:, None])[:, 0]
        loss = loss + 0.1 * (-own).exp() * ((label >= 0) & (own < threshold + 1))
    return loss
