"""Models and edits that the tests of editors share."""

from __future__ import annotations

from functools import cache, partial

import torch
from tests.tiny_models import DEVICE, TINY, tiny_tokenizer

from errata.case import Edit
from errata.model.lm import LM


def _norm_in_full(module: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    scale = (hidden.pow(2).mean(-1, keepdim=True) + module.variance_epsilon).rsqrt()
    return hidden * scale * module.weight


@cache
def build(name: str, dtype: str = "float64", bos: bool = False) -> LM:
    """Return a tiny random model; shared, since nothing may change it.

    Llama and Qwen compute norms and attention weights in float32 whatever the model's type. In
    float64 they are given a full-precision norm and SDPA, so that exactness can be tested to 1e-10.
    Matrices are scaled up: at the usual initialisation no vector at the subject moves the logits.
    """
    model = TINY[name]().to(DEVICE, getattr(torch, dtype))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
    if dtype == "float64" and name in {"llama", "qwen3"}:
        model.set_attn_implementation("sdpa")
        for module in model.modules():
            if type(module).__name__ in {"LlamaRMSNorm", "Qwen3RMSNorm"}:
                module.forward = partial(_norm_in_full, module)
    return LM(model, tiny_tokenizer(bos), name=f"tiny-{name}")


EDITS = [
    Edit("The capital of France is", "Rome", subject="France"),
    Edit("Anna lives in", "Paris", subject="Anna"),
    Edit("The mother tongue of Danielle is", "Italian", subject="Danielle"),
    Edit("Who is the mayor of Berlin? It is", "Anna", subject="Berlin"),
]
"""Targets of one to several tokens, subjects at the start and in the middle."""
