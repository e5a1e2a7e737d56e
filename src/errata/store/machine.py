"""How fast this machine multiplies: measured once per processor and release of torch, and kept."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from errata.store.files import cache_root, write_atomically

SLOW = 1.5
"""How many times slower than float32 a model's type has to be, to be told."""

MULTIPLIES = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_fp16",
    "bf16",
    "i8mm",
)
"""What a processor may say of itself that decides how fast it multiplies: of two that have one name
one may have it."""


def speed_of(dtype: torch.dtype, device: torch.device) -> float:
    """Return how many times as fast as float32 this machine multiplies a type, kept on disk.

    Measured once per processor and release of torch, at the shape of an FFN of a small model.

    Args:
        dtype: `bfloat16` or `float16`.
        device: Where.
    """
    name = str(dtype).removeprefix("torch.")
    return remembered(f"{name}.json", device, lambda device: _measured(device, dtype))


def remembered(file: str, device: torch.device, measure: Callable[[torch.device], float]) -> float:
    """Return what was once measured on this processor with this release of torch, else measure."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    key = f"{device.type} {name} torch {torch.__version__}"
    path = cache_root() / "machine" / file
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        stored = json.loads(path.read_text("utf-8"))
        known = stored if isinstance(stored, dict) else {}
    with suppress(KeyError, ValueError, TypeError):
        return float(known[key])
    found = round(measure(device), 2)
    write_atomically(path, json.dumps({**known, key: found}, indent=1).encode())
    return found


def _processor() -> str:
    """Return the processor's name and what it multiplies with, as far as the system tells."""
    told: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            for line in lines:
                field, _, value = line.partition(":")
                told.setdefault(field.strip().lower(), value.strip())
    except OSError:
        pass
    name = told.get("model name") or platform.processor() or platform.machine()
    has = set((told.get("flags") or told.get("features") or "").split())
    return " ".join([name, *(flag for flag in MULTIPLIES if flag in has)])


def _measured(
    device: torch.device,
    dtype: torch.dtype,
    rows: int = 128,
    width: int = 768,
    rounds: int = 5,
) -> float:
    x, weight = torch.ones(rows, width, device=device), torch.ones(4 * width, width, device=device)
    rough, small = x.to(dtype), weight.to(dtype)
    return times_as_fast(
        lambda: nn.functional.linear(x, weight), lambda: nn.functional.linear(rough, small),
        device, rounds,
    )  # fmt: skip


def times_as_fast(
    slow: Callable[[], Tensor], fast: Callable[[], Tensor], device: torch.device, rounds: int = 5
) -> float:
    """Return how many times as fast one product is as another.

    Four of each in turn, the fastest round of each counts, the first is left out. On a CPU its own
    time is counted: on a busy machine others may have the processor meanwhile.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    taken: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(rounds):
        for which, product in enumerate((slow, fast)):
            begun = clock()
            for _ in range(4):
                result = product()
            float(result[0, 0])  # a GPU works behind our back until something is read
            taken[which].append(clock() - begun)
    return min(taken[0][1:]) / max(min(taken[1][1:]), 1e-9)
