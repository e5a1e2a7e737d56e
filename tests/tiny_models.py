"""Tiny random models of many architectures, built in memory.

Weights are random but always the same; nothing is downloaded. `TINY["llama"]()` builds a new model.
ERRATA_TEST_DEVICE=cuda puts those of the tests of editors, patches and stacks on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers
from transformers import PreTrainedModel

from errata.testing.models import (
    DEVICE,
    HEADS,
    INNER,
    LAYERS,
    VOCAB,
    WIDTH,
    build_model,
    gpt2,
    modern,
    qwen3,
    tiny_tokenizer,
)

__all__ = ["DECLINED", "DEVICE", "LAYERS", "MIXTURES", "TINY", "VOCAB", "tiny_tokenizer"]


def _plain(**settings: Any) -> dict[str, Any]:
    """The same for architectures without a head width or grouped heads in their settings."""
    return {k: v for k, v in modern(**settings).items() if k != "head_dim" or k in settings}


def gptj(**settings: Any) -> PreTrainedModel:
    sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": INNER}
    return build_model("GPTJ", **{**sizes, "rotary_dim": 4, "n_positions": 256, **settings})


def llama(**settings: Any) -> PreTrainedModel:
    return build_model("Llama", **modern(**settings))


def gpt_neox(**settings: Any) -> PreTrainedModel:
    return build_model("GPTNeoX", **_plain(**settings))


def opt(**settings: Any) -> PreTrainedModel:
    sizes = {"hidden_size": WIDTH, "ffn_dim": INNER, "num_hidden_layers": LAYERS}
    sizes |= {"num_attention_heads": HEADS, "word_embed_proj_dim": WIDTH}
    return build_model("OPT", **{**sizes, "max_position_embeddings": 256, **settings})


def bloom(**settings: Any) -> PreTrainedModel:
    return build_model(
        "Bloom", **{"hidden_size": WIDTH, "n_layer": LAYERS, "n_head": HEADS, **settings}
    )


def falcon(**settings: Any) -> PreTrainedModel:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    return build_model("Falcon", **{**sizes, "ffn_hidden_size": INNER, **settings})


def mixtral(**settings: Any) -> PreTrainedModel:
    return build_model("Mixtral", **modern(num_local_experts=4, num_experts_per_tok=2, **settings))


def _experts(kind: str, **settings: Any) -> PreTrainedModel:
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    return build_model(kind, **modern(**sizes, **settings))


def mamba() -> PreTrainedModel:
    return build_model("Mamba", hidden_size=WIDTH, num_hidden_layers=LAYERS, state_size=8)


def mamba2() -> PreTrainedModel:
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "state_size": 8}
    return build_model("Mamba2", num_heads=8, head_dim=8, n_groups=1, chunk_size=8, **sizes)


def rwkv() -> PreTrainedModel:
    return build_model(
        "Rwkv", hidden_size=WIDTH, num_hidden_layers=LAYERS, attention_hidden_size=WIDTH
    )


def xlstm() -> PreTrainedModel:
    return build_model("xLSTM", hidden_size=64, num_blocks=2, num_heads=4)


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
    "mistral": lambda: build_model("Mistral", **modern()),
    "qwen2": lambda: build_model("Qwen2", **_plain()),
    "qwen3": qwen3,
    "gemma": lambda: build_model("Gemma", **modern()),
    "gemma2": lambda: build_model("Gemma2", **modern()),
    "gemma3": lambda: build_model(
        "Gemma3Text", **modern(layer_types=["sliding_attention"] * 2 + ["full_attention"])
    ),
    "phi": lambda: build_model("Phi", **_plain()),
    "phi3": lambda: build_model("Phi3", **_plain()),
    "olmo2": lambda: build_model("Olmo2", **_plain()),
    "stablelm": lambda: build_model("StableLm", **_plain()),
    "cohere": lambda: build_model("Cohere", **_plain()),
    "starcoder2": lambda: build_model("Starcoder2", **_plain()),
    "granite": lambda: build_model("Granite", **_plain(residual_multiplier=0.22)),
    "glm4": lambda: build_model("Glm4", **modern()),
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
    "phi3-square": lambda: build_model("Phi3", **_plain(intermediate_size=WIDTH)),
    "olmo2-square": lambda: build_model("Olmo2", **_plain(intermediate_size=WIDTH)),
    "gpt_neox-serial": lambda: gpt_neox(use_parallel_residual=False),
    "opt-postnorm": lambda: opt(do_layer_norm_before=False, word_embed_proj_dim=16),
    "falcon-serial": lambda: falcon(parallel_attn=False, alibi=True, bias=True),
    "falcon-grouped": lambda: falcon(new_decoder_architecture=True, num_kv_heads=2),
    "stablelm-parallel": lambda: build_model(
        "StableLm", **_plain(use_parallel_residual=True, qk_layernorm=True)
    ),
    "cohere-qk": lambda: build_model("Cohere", **_plain(use_qk_norm=True)),
    "llama-onelayer": lambda: llama(num_hidden_layers=1),
    "llama-mha": lambda: llama(num_key_value_heads=HEADS, attention_bias=True, mlp_bias=True),
}


def deepseek(version: int) -> PreTrainedModel:
    """One dense block, then four experts and a shared one; attention with compressed keys."""
    sizes = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    sizes |= {"n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
    sizes |= {"kv_lora_rank": 16, "q_lora_rank": 16, "v_head_dim": 8, "num_key_value_heads": 4}
    sizes |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
    return build_model(f"DeepseekV{version}", **_plain(**sizes))


MIXTURES: dict[str, Callable[[], PreTrainedModel]] = {
    "mixtral": mixtral,
    "qwen3_moe": lambda: _experts("Qwen3Moe"),
    "olmoe": lambda: build_model("Olmoe", **_plain(num_experts=4, num_experts_per_tok=2)),
    "qwen2_moe": lambda: _experts("Qwen2Moe", shared_expert_intermediate_size=24),
    "deepseek_v2": lambda: deepseek(2),
    "deepseek_v3": lambda: deepseek(3),
}
"""Mixtures of experts; the last three have a shared expert."""

DECLINED: dict[str, Callable[[], PreTrainedModel]] = {
    "mamba": mamba,
    "mamba2": mamba2,
    "rwkv": rwkv,
    "xlstm": xlstm,
    "t5": t5,
    "bert": bert,
}
"""Architectures that errata must decline."""
