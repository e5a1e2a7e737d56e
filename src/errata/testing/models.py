"""Tiny random models and edits that the contract of editors runs on, built in memory.

Weights are random but always the same; nothing is downloaded.
"""

from __future__ import annotations

import os
from functools import cache, partial
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from errata.case import Edit
from errata.model.lm import LM

DEVICE = torch.device(os.environ.get("ERRATA_TEST_DEVICE", "cpu"))
"""Where tests put their models; weights are drawn on the CPU in any case."""

VOCAB = 512
LAYERS = 3
HEADS = 4
WIDTH = 32
INNER = 80

MODELS = ("gpt2", "qwen3")
"""What `tiny_lm` builds: two architectures that have little in common."""

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


def build_model(kind: str, **settings: Any) -> PreTrainedModel:
    """Build a causal language model from the settings of `<kind>Config`, weights from seed 0."""
    names = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0, "vocab_size": VOCAB}
    config = getattr(transformers, f"{kind}Config")(**{**names, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    return model.eval()


def modern(**settings: Any) -> dict[str, Any]:
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


def gpt2(**settings: Any) -> PreTrainedModel:
    """Build GPT-2: an FFN of two matrices, biases, learned positions, transposed storage."""
    sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_inner": INNER}
    return build_model("GPT2", **{**sizes, "n_positions": 256, **settings})


def qwen3(**settings: Any) -> PreTrainedModel:
    """Build Qwen3: a gated FFN, no biases, rotary positions, grouped heads."""
    return build_model("Qwen3", **modern(**settings))


def _norm_in_full(module: Any, hidden: torch.Tensor) -> torch.Tensor:
    scale = (hidden.pow(2).mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()
    return hidden * scale * module.weight


def widened(model: PreTrainedModel, kind: str, dtype: str) -> PreTrainedModel:
    """Make a random model one that can be edited, and exact in float64.

    Llama and Qwen compute norms and attention weights in float32 whatever the model's type. In
    float64 they are given a full-precision norm and SDPA, so that exactness can be tested to 1e-10.
    Matrices are scaled up: at the usual initialisation no vector at the subject moves the logits.
    """
    model = model.to(DEVICE, getattr(torch, dtype))  # pyright: ignore[reportArgumentType, reportCallIssue]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    if dtype == "float64" and kind in {"llama", "qwen3"}:
        model.set_attn_implementation("sdpa")
        for module in model.modules():
            if type(module).__name__ in {"LlamaRMSNorm", "Qwen3RMSNorm"}:
                module.forward = partial(_norm_in_full, module)
    return model


@cache
def tiny_lm(kind: str = "gpt2", dtype: str = "float64") -> LM:
    """Return a tiny random model; shared, since nothing may change it.

    Args:
        kind: One of MODELS.
        dtype: Name of a type.
    """
    model = {"gpt2": gpt2, "qwen3": qwen3}[kind]()
    return LM(widened(model, kind, dtype), tiny_tokenizer(), name=f"tiny-{kind}")


EDITS: list[Edit] = [
    Edit("The capital of France is", "Rome", subject="France"),
    Edit("Anna lives in", "Paris", subject="Anna"),
    Edit("The mother tongue of Danielle is", "Italian", subject="Danielle"),
    Edit("Who is the mayor of Berlin? It is", "Anna", subject="Berlin"),
]
"""Targets of one to several tokens, subjects at the start and in the middle."""
"""Targets of one to several tokens, subjects at the start and in the middle."""

GROUPS: list[list[Edit]] = [EDITS[:1], EDITS[1:3], EDITS[3:]]
