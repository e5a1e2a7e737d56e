"""Whether `torch.compile` pays for the forward pass of SmolLM2's shape, compilation included."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.run import Bench
from benchmarks.gpu.smollm2 import load


def run(bench: Bench) -> None:
    """Time forward and backward passes, plain and compiled, and what compiling takes."""
    import torch

    lm = load(bench, "bfloat16")
    rows, length = (2, 16) if bench.small else (32, 24)
    ids = torch.randint(10, 1000, (rows, length), device=bench.device)
    vector = torch.zeros(lm.embedding.shape[1], device=bench.device, dtype=lm.dtype)
    embedded = lm.model.get_input_embeddings()(ids)

    def step(model: Any) -> Any:
        leaf = vector.clone().requires_grad_()
        out = model(inputs_embeds=embedded + leaf, use_cache=False).logits[:, -1]
        (grad,) = torch.autograd.grad(out.float().logsumexp(-1).sum(), leaf)
        return grad

    plain, expected = bench.timed(lambda: step(lm.model), repeats=5)
    bench.record("plain", ms=round(1e3 * plain, 3), rows=rows, length=length)
    if bench.small:
        bench.record("compiled", note="needs a GPU")
        return
    model = torch.compile(lm.model)
    first, found = bench.timed(lambda: step(model))
    gap = float((found.float() - expected.float()).norm() / expected.float().norm())
    later, _ = bench.timed(lambda: step(model), repeats=5)
    bench.record(
        "compiled", compiling_s=round(first, 2), ms=round(1e3 * later, 3), difference=gap,
        ratio=round(plain / later, 2), pays_after_steps=round(first / max(plain - later, 1e-9)),
    )  # fmt: skip
