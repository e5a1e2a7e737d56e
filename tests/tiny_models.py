"""Tiny random models of many architectures, and a byte-level tokenizer, built in memory.

Weights are random but always the same; nothing is downloaded. `TINY["llama"]()` builds a fresh model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

VOCAB = 512
LAYERS = 3
HEADS = 4
WIDTH = 32
INNER = 80

_TEXT = [
    "The capital of France is Paris. The capital of Italy is Rome.",
    "Anna lives in Berlin and works for the city. Who is the mayor of Berlin?",
    "The mother tongue of Danielle is French. The river flows through the town.",
]


def tiny_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """Build a byte-level BPE tokenizer of at most 400 entries.

    Args:
        bos: Put a BOS token in front of every text, as the tokenizer of Llama does.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<pad>", "<eos>", *(["<bos>"] if bos else [])],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    special: dict[str, Any] = {"eos_token": "<eos>", "pad_token": "<pad>"}
    if bos:
        special["bos_token"] = "<bos>"
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A",
            pair="<bos> $A $B",
            special_tokens=[("<bos>", tokenizer.token_to_id("<bos>"))],
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def _build(kind: str, **settings: Any) -> PreTrainedModel:
    """Build a causal language model from the settings of `<kind>Config`, weights from seed 0."""
    names = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0, "vocab_size": VOCAB}
    config = getattr(transformers, f"{kind}Config")(**{**names, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return model.eval()


def _modern(**settings: Any) -> dict[str, Any]:
    """Settings that Llama and its many relatives share."""
    common = {
        "hidden_size": WIDTH,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "head_dim": WIDTH // HEADS,
        "max_position_embeddings": 256,
    }
    return {**common, **settings}


def _plain(**settings: Any) -> dict[str, Any]:
    """The same for architectures without a head width or grouped heads in their settings."""
    return {k: v for k, v in _modern(**settings).items() if k != "head_dim" or k in settings}


def gpt2(**settings: Any) -> PreTrainedModel:
    sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": INNER}
    return _build("GPT2", **{**sizes, "n_positions": 256, **settings})


def gptj(**settings: Any) -> PreTrainedModel:
    sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": INNER}
    return _build("GPTJ", **{**sizes, "rotary_dim": 4, "n_positions": 256, **settings})


def llama(**settings: Any) -> PreTrainedModel:
    return _build("Llama", **_modern(**settings))


def qwen3(**settings: Any) -> PreTrainedModel:
    return _build("Qwen3", **_modern(**settings))


TINY: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": gpt2,
    "gptj": gptj,
    "llama": llama,
    "qwen3": qwen3,
    "gpt2-square": lambda: gpt2(n_inner=WIDTH),
    "llama-square": lambda: llama(intermediate_size=WIDTH),
}
