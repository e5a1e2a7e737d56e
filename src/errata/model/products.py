"""Products with the weights in bfloat16 where that is cheap and the result is refined anyway.

An optimisation that searches a vector does not need every bit of every pass. Inside
`lm.searching()` the projections of the blocks multiply in bfloat16; the rest stays as it is:

```
 x [.., d_in] float32 ──▶ bfloat16 ┐
                                   ├─ product, added up in float32 ──▶ float32 ─(+ bias)─▶ hooks
 W [d_out, d_in] ──▶ bfloat16 ─────┘  kept until the `with` block is left
```

So the residual stream, norms, attention and softmax, the head and every hook of errata (patches
side by side among them) work in float32, and there is no second model: rounding costs one copy
of the weights that a search passes, half as large, made when they are first used. On a processor
that multiplies bfloat16 four times as fast the search takes a third of the time; a model loaded
in bfloat16 takes half, for its elementwise operations are slow there.

Keys, solves, starting values and scores are never computed inside.
"""

from __future__ import annotations

import json
import logging
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from errata.store.files import cache_root, write_atomically

if TYPE_CHECKING:
    from errata.model.lm import LM

Compute = Literal["auto", "float32", "bfloat16"]

log = logging.getLogger(__name__)

FAST = 1.5
"""How many times as fast as float32 bfloat16 has to be, for `auto` to take it."""

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

LARGE = 50_000_000
"""Parameters from which on products are what a pass costs; below it `auto` leaves all as it is."""


@contextmanager
def rounded_products(lm: LM) -> Iterator[None]:
    """Multiply with the weights of the blocks in bfloat16 inside a `with` block.

    Only plain projections with float32 weights take part: quantised, offloaded and fused ones
    multiply as they do. Blocks nest; the outermost keeps the copies.
    """
    swapped: list[nn.Module] = []
    try:
        for path in lm.spec.blocks:
            for module in lm.module(path).modules():
                if type(module) in (nn.Linear, Conv1D) and _rounds(module):
                    module.forward = _product(module)
                    swapped.append(module)
        yield
    finally:
        for module in swapped:
            vars(module).pop("forward", None)


def is_plain(module: nn.Module) -> bool:
    """Whether a projection's weight is there, and nobody has put a `forward` of his own on it."""
    weight: Any = module.weight
    return not weight.is_meta and "forward" not in vars(module)


def _rounds(module: nn.Module) -> bool:
    weight: Any = module.weight
    return weight.dtype == torch.float32 and is_plain(module)


def _product(module: Any) -> Callable[[Tensor], Tensor]:
    """Return what multiplies like a projection, in bfloat16; its bias is added in float32."""
    kept: list[Tensor] = []
    transposed = isinstance(module, Conv1D)

    def forward(x: Tensor) -> Tensor:
        if not kept:
            weight = module.weight.detach()
            kept.append((weight.T if transposed else weight).to(torch.bfloat16).contiguous())
        product = nn.functional.linear(x.to(torch.bfloat16), kept[0]).to(x.dtype)
        return product if module.bias is None else product + module.bias

    return forward


def rounds(lm: LM, compute: Compute) -> bool:
    """Whether a search on this model multiplies in bfloat16."""
    if lm.dtype != torch.float32 or compute == "float32":
        return False
    if compute == "bfloat16":
        return True
    return lm.model.num_parameters() >= LARGE and speed_of(torch.bfloat16, lm.device) >= FAST


def warn_if_slow(lm: LM) -> None:
    """Say so where a model's half precision is slower than float32 would be: on many processors.

    A GPU is not asked, nor is it a model so small that products are not what a pass costs.
    """
    halves = (torch.bfloat16, torch.float16)
    if lm.device.type != "cpu" or lm.dtype not in halves or lm.model.num_parameters() < LARGE:
        return
    slower = 1 / max(speed_of(lm.dtype, lm.device), 1e-3)
    if slower >= SLOW:
        log.warning(
            "this processor multiplies %s %.1f times slower than float32: if memory suffices for "
            "twice the bytes, load %s in float32",
            str(lm.dtype).removeprefix("torch."), slower, lm.name,
        )  # fmt: skip


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
