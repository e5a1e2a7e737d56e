"""Tiny random models of many architectures, and a byte-level tokenizer, built in memory.

Weights are random but always the same; nothing is downloaded. `TINY["llama"]()` builds a new model.
ERRATA_TEST_DEVICE=cuda puts those of the tests of editors, patches and stacks on a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

DEVICE = torch.device(os.environ.get("ERRATA_TEST_DEVICE", "cpu"))
"""Where tests that can run anywhere put their models; weights are drawn on the CPU in any case."""

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


def gpt_neox(**settings: Any) -> PreTrainedModel:
    return _build("GPTNeoX", **_plain(**settings))


def opt(**settings: Any) -> PreTrainedModel:
    sizes = {"hidden_size": WIDTH, "ffn_dim": INNER, "num_hidden_layers": LAYERS}
    sizes |= {"num_attention_heads": HEADS, "word_embed_proj_dim": WIDTH}
    return _build("OPT", **{**sizes, "max_position_embeddings": 256, **settings})


def bloom(**settings: Any) -> PreTrainedModel:
    return _build("Bloom", **{"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS, **settings})


def falcon(**settings: Any) -> PreTrainedModel:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    return _build("Falcon", **{**sizes, "ffn_hidden_size": INNER, **settings})


def mixtral(**settings: Any) -> PreTrainedModel:
    return _build("Mixtral", **_modern(num_local_experts=4, num_experts_per_tok=2, **settings))


def _experts(kind: str, **settings: Any) -> PreTrainedModel:
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    return _build(kind, **_modern(**sizes, **settings))


def mamba() -> PreTrainedModel:
    return _build("Mamba", hidden_size=WIDTH, num_hidden_layers=LAYERS, state_size=8)


def mamba2() -> PreTrainedModel:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "state_size": 8}
    return _build("Mamba2", num_heads=8, head_dim=8, n_groups=1, chunk_size=8, **sizes)


def rwkv() -> PreTrainedModel:
    return _build("Rwkv", hidden_size=WIDTH, num_hidden_layers=LAYERS, attention_hidden_size=WIDTH)


def xlstm() -> PreTrainedModel:
    return _build("xLSTM", hidden_size=64, num_blocks=2, num_heads=4)


def t5() -> PreTrainedModel:
    config = transformers.T5Config(
        vocab_size=VOCAB, d_model=WIDTH, d_ff=INNER, d_kv=8, num_heads=HEADS, num_layers=2
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def bert() -> PreTrainedModel:
    config = transformers.BertConfig(**_plain(vocab_size=VOCAB))
    return transformers.BertForMaskedLM(config).eval()


TINY: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": gpt2,
    "gptj": gptj,
    "gpt_neox": gpt_neox,
    "opt": opt,
    "bloom": bloom,
    "falcon": falcon,
    "llama": llama,
    "mistral": lambda: _build("Mistral", **_modern()),
    "qwen2": lambda: _build("Qwen2", **_plain()),
    "qwen3": qwen3,
    "gemma": lambda: _build("Gemma", **_modern()),
    "gemma2": lambda: _build("Gemma2", **_modern()),
    "gemma3": lambda: _build(
        "Gemma3Text", **_modern(layer_types=["sliding_attention"] * 2 + ["full_attention"])
    ),
    "phi": lambda: _build("Phi", **_plain()),
    "phi3": lambda: _build("Phi3", **_plain()),
    "olmo2": lambda: _build("Olmo2", **_plain()),
    "stablelm": lambda: _build("StableLm", **_plain()),
    "cohere": lambda: _build("Cohere", **_plain()),
    "starcoder2": lambda: _build("Starcoder2", **_plain()),
    "granite": lambda: _build("Granite", **_plain(residual_multiplier=0.22)),
    "glm4": lambda: _build("Glm4", **_modern()),
}
"""The architectures errata must handle, one variant each."""

TINY |= {
    "gpt2-square": lambda: gpt2(n_inner=WIDTH),
    "gptj-square": lambda: gptj(n_inner=WIDTH),
    "gpt_neox-square": lambda: gpt_neox(intermediate_size=WIDTH),
    "opt-square": lambda: opt(ffn_dim=WIDTH),
    "falcon-square": lambda: falcon(ffn_hidden_size=WIDTH),
    "llama-square": lambda: llama(intermediate_size=WIDTH),
    "qwen3-square": lambda: qwen3(intermediate_size=WIDTH),
    "phi3-square": lambda: _build("Phi3", **_plain(intermediate_size=WIDTH)),
    "olmo2-square": lambda: _build("Olmo2", **_plain(intermediate_size=WIDTH)),
    "gpt_neox-serial": lambda: gpt_neox(use_parallel_residual=False),
    "opt-postnorm": lambda: opt(do_layer_norm_before=False, word_embed_proj_dim=16),
    "falcon-serial": lambda: falcon(parallel_attn=False, alibi=True, bias=True),
    "falcon-grouped": lambda: falcon(new_decoder_architecture=True, num_kv_heads=2),
    "stablelm-parallel": lambda: _build(
        "StableLm", **_plain(use_parallel_residual=True, qk_layernorm=True)
    ),
    "cohere-qk": lambda: _build("Cohere", **_plain(use_qk_norm=True)),
    "llama-onelayer": lambda: llama(num_hidden_layers=1),
    "llama-mha": lambda: llama(num_key_value_heads=HEADS, attention_bias=True, mlp_bias=True),
}

DECLINED: dict[str, Callable[[], PreTrainedModel]] = {
    "mixtral": mixtral,
    "qwen2_moe": lambda: _experts("Qwen2Moe", shared_expert_intermediate_size=24),
    "qwen3_moe": lambda: _experts("Qwen3Moe"),
    "olmoe": lambda: _build("Olmoe", **_plain(num_experts=4, num_experts_per_tok=2)),
    "mamba": mamba,
    "mamba2": mamba2,
    "rwkv": rwkv,
    "xlstm": xlstm,
    "t5": t5,
    "bert": bert,
}
"""Architectures that errata must decline."""
