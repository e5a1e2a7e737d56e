"""Models beyond the pocket one: SmolLM2 out of its GGUF file, large shapes with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.gpu.run import Bench

SHAPES: dict[str, dict[str, int]] = {
    "smollm2": {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
    },
    "1.5b": {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936,
    },
    "7b": {
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
    },
}  # fmt: skip
"""Widths of SmolLM2-135M, Qwen2.5-1.5B and Llama-2-7B."""

TINY = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
"""What a shape is cut down to where there is no GPU."""


def prepared(lm: Any) -> Any:
    """Establish what is established once per model, so that it is part of no measurement."""
    _ = lm.spec, lm.fingerprint
    lm.generate(["The capital of France is"], max_new_tokens=2)
    return lm


def random_model(bench: Bench, name: str, dtype: str, tokenizer: Any) -> Any:
    """Return a Llama of that shape with random weights, made on the device itself."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    import errata

    shape = dict(SHAPES[name])
    if bench.small:
        shape |= TINY
    shape["vocab_size"] = max(shape["vocab_size"] if not bench.small else 0, len(tokenizer))
    config = LlamaConfig(**shape, max_position_embeddings=1024, tie_word_embeddings=name != "7b")
    torch.manual_seed(0)
    with torch.device(bench.device):
        network = AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, dtype), attn_implementation="sdpa"
        )
    return errata.LM(network, tokenizer, name=f"random-{name}")


def smollm2(bench: Bench, path: Path, dtype: str) -> Any:
    """Return SmolLM2 from a model folder, or out of a GGUF file, dequantised."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import errata

    where = path.expanduser()
    if where.is_dir():
        return errata.load(str(where), device=bench.device, dtype=dtype)
    folder, file = str(where.parent), where.name
    if "smollm2" not in bench.kept:
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
        config = loaded.config
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # the weights are plain float32 now
        bench.kept["smollm2"] = (config, loaded.state_dict(), tokenizer)
    config, state, tokenizer = bench.kept["smollm2"]
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(state)
    plain.tie_weights()
    network: Any = plain.to(device=bench.device, dtype=getattr(torch, dtype))
    return errata.LM(network, tokenizer, name="smollm2-135m")
