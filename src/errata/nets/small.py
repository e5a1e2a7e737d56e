"""Small transformers beside the base model: copies of some of its own blocks, or models by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from errata.errors import ConfigError
from errata.model.passes import wide_type
from errata.model.tokens import Row, bucket

if TYPE_CHECKING:
    from errata.model.lm import LM

OWN = "own"
EXAMPLE = "Expected own:BLOCK,BLOCK,… (copies of the base model's blocks) or a Hub id or folder."


def own_blocks(name: str, lm: LM) -> tuple[int, ...] | None:
    """Return the blocks that `own:0,2,3` names; None for a model by name.

    Raises:
        ConfigError: If the model has no such block, or nothing is named.
    """
    head, _, rest = name.partition(":")
    if head != OWN:
        return None
    if not re.fullmatch(r"\d+(,\d+)*", rest) or max(map(int, rest.split(","))) >= lm.n_layers:
        raise ConfigError(
            f"{name!r} names no blocks of {lm.name}, which has blocks 0 to {lm.n_layers - 1}",
            EXAMPLE,
        )
    return tuple(int(number) for number in rest.split(","))


def copy_of_blocks(lm: LM, blocks: Sequence[int]) -> nn.Module:
    """Return a model of the same architecture that consists of copies of some blocks.

    It has no embedding of its own (only a stub, which never learns): give it `inputs_embeds`.
    """
    from transformers import AutoModel

    config: Any = deepcopy(lm.model.config)
    own = config.get_text_config()
    own.num_hidden_layers = len(blocks)
    kinds = getattr(own, "layer_types", None)
    if kinds:
        own.layer_types = [kinds[number] for number in blocks]
    own.vocab_size, own.pad_token_id, own.use_cache = 1, None, False
    attention = getattr(lm.model.config, "_attn_implementation", None)
    with torch.random.fork_rng(devices=[]):  # initial values are drawn and thrown away
        made = AutoModel.from_config(config, attn_implementation=attention)
    made = made.to(wide_type(lm.dtype))
    prefix = f"{lm.model.base_model_prefix}."
    old = {
        name.removeprefix(prefix): tensor
        for name, tensor in lm.model.state_dict().items()
        if name.startswith(prefix)
    }
    stem = lm.spec.blocks[0].removeprefix(prefix).rpartition(".")[0]
    new = {}
    for name, tensor in made.state_dict().items():
        found = re.match(rf"{re.escape(stem)}\.(\d+)\.(.*)", name)
        source = f"{stem}.{blocks[int(found[1])]}.{found[2]}" if found else name
        fits = source in old and old[source].shape == tensor.shape
        new[name] = old[source].clone() if fits else tensor  # the stub stays as it is
    made.load_state_dict(new)
    norm = lm.spec.final_norm.removeprefix(prefix)
    if norm:  # the base model's own one comes after whatever is made of the hidden states
        made.set_submodule(norm, nn.Identity())
    return _without_words(made)


def by_name(name: str) -> nn.Module:
    """Return a model from the Hub or a folder, without its head and word embeddings.

    Raises:
        ModelError: If it cannot be had.
    """
    from transformers import AutoModel

    return _without_words(load_model(AutoModel, name))


def load_model(kind: Any, name: str, *, weights: bool = True) -> Any:
    """Load with one of transformers' Auto classes; code of its own is never run.

    Raises:
        ModelError: If it cannot be had.
    """
    from errata.model.pretrained import damage, read

    with damage(repr(name), EXAMPLE):
        return read(kind, name, weights=weights)


def _without_words(model: Any) -> nn.Module:
    """Put a stub in the place of the word embedding: inputs are given as vectors."""
    words = model.get_input_embeddings()
    stub = nn.Embedding(1, words.weight.shape[1]).requires_grad_(False)
    nn.init.zeros_(stub.weight)
    model.set_input_embeddings(stub)
    return model.eval()


def words_of(lm: LM, ids: Int[Tensor, "B T"]) -> Float[Tensor, "B T d"]:
    """Return the base model's word embeddings, past any hook."""
    module: Any = lm.model.get_input_embeddings()
    return module.forward(ids)


def padded(
    texts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Return token ids padded on the right, and the mask of the real ones."""
    length = max(len(text) for text in texts)
    ids = torch.zeros(len(texts), length, dtype=torch.long)
    mask = torch.zeros(len(texts), length, dtype=torch.long)
    for at, text in enumerate(texts):
        ids[at, : len(text)] = torch.as_tensor(text, dtype=torch.long)
        mask[at, : len(text)] = 1
    return ids.to(device), mask.to(device)


def alike(lm: LM, texts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the numbers of the texts in groups of similar length, each worth a forward pass."""
    rows = [Row(tuple(text), (0,), (), 1) for text in texts]
    return list(bucket(rows, lm.max_tokens, max_padding=lm.pass_cost))


def hidden_states(
    model: nn.Module, vectors: Float[Tensor, "B T d"], mask: Int[Tensor, "B T"]
) -> Float[Tensor, "B T m"]:
    """Return the last hidden states of a small model for vectors in the place of words."""
    return model(inputs_embeds=vectors, attention_mask=mask).last_hidden_state


def width_of(model: Any) -> int:
    """Return the width of what goes in and comes out."""
    return model.get_input_embeddings().weight.shape[1]
