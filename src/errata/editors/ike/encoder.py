"""Sentence embeddings, by which IKE finds demonstrations like an edit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from errata.model.passes import capture, wide
from errata.model.pretrained import damage, read
from errata.world.shipped import knows_world

if TYPE_CHECKING:
    from errata.model.lm import LM

Embed = Callable[[Sequence[str]], Float[Tensor, "n d"]]
HUB = "sentence-transformers/all-MiniLM-L6-v2"
LENGTH = 256
"""Tokens of a text that an encoder reads, as that one was made for."""
AT_ONCE = 128


def get_encoder(lm: LM, name: str) -> Embed:
    """Return a function from texts to unit vectors.

    Args:
        lm: The unedited model.
        name: `own` (the mean of the model's last hidden states), a Hub id or folder of an encoder
            (the mean of its last hidden states), or `auto`: `own` for a model of the built-in
            world, else HUB.

    Raises:
        ModelError: If an encoder cannot be loaded.
    """
    if name == "own" or (name == "auto" and knows_world(lm.name)):
        return lambda texts: _own(lm, texts)
    return _loaded(lm, HUB if name == "auto" else name)


@torch.no_grad()
def _own(lm: LM, texts: Sequence[str]) -> Float[Tensor, "n d"]:
    rows = lm.text_rows(texts, LENGTH)
    head = lm.module(lm.spec.head)
    found: list[Tensor] = [torch.empty(0)] * len(rows)
    for batch in lm.batches(rows):
        (hidden,), _ = capture(lm, batch, inputs=[head])
        for i, vector in zip(batch.index, _mean(hidden, batch.attention_mask.bool()), strict=True):
            found[i] = vector
    return torch.stack(found)


def _loaded(lm: LM, name: str) -> Embed:
    from transformers import AutoModel, AutoTokenizer

    with damage(
        f"the sentence encoder {name!r}",
        "Give another: --set encoder=HUB-ID (or a folder, or own: the model itself); or "
        "retrieve nothing: --set retrieve=random",
    ):
        network: Any = read(AutoModel, name)
        tokenizer: Any = read(AutoTokenizer, name, weights=False)
    network = network.eval().to(lm.device)

    @torch.no_grad()
    def embed(texts: Sequence[str]) -> Float[Tensor, "n d"]:
        parts = []
        for start in range(0, len(texts), AT_ONCE):
            given = tokenizer(
                list(texts[start : start + AT_ONCE]),
                padding=True, truncation=True, max_length=LENGTH, return_tensors="pt",
            ).to(lm.device)  # fmt: skip
            parts.append(_mean(network(**given).last_hidden_state, given["attention_mask"].bool()))
        return torch.cat(parts)

    return embed


def _mean(hidden: Float[Tensor, "B T d"], real: Bool[Tensor, "B T"]) -> Float[Tensor, "B d"]:
    """Return the normalised mean over real tokens, in float32 at least."""
    mean = (wide(hidden) * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    return normalize(mean, dim=-1)
