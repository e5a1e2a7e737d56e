"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from benchmarks.gpu.run import Bench

PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "peft", "accelerate", "pydantic")


def run(bench: Bench) -> None:
    """Record GPU, versions and precision flags; make the GPU ready."""
    import torch

    import errata

    versions = {name: _version(name) for name in PACKAGES}
    bench.record(
        "software", python=platform.python_version(), errata=errata.__version__, **versions
    )
    bench.record("processor", cores=os.cpu_count(), threads=torch.get_num_threads())
    if bench.is_cuda:
        card = torch.cuda.get_device_properties(bench.device)
        bench.record(
            "card", name=card.name, memory_gb=round(card.total_memory / 1e9, 1),
            processors=card.multi_processor_count, cuda=torch.version.cuda,
        )  # fmt: skip
        square = torch.randn(8192, 8192, device=bench.device)
        for dtype in (torch.float32, torch.bfloat16):
            a = square.to(dtype)
            _ = a @ a
            seconds, _ = bench.timed(lambda a=a: a @ a, repeats=5)
            bench.record(f"product of 8192 in {dtype}", tflops=round(2 * 8192**3 / seconds / 1e12))
    matmul = torch.backends.cuda.matmul
    bench.check(
        "TF32 is off", not matmul.allow_tf32, allow_tf32=matmul.allow_tf32,
        precision=torch.get_float32_matmul_precision(),
    )  # fmt: skip


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"
