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

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from errata.store.machine import SLOW, speed_of

if TYPE_CHECKING:
    from errata.model.lm import LM

Compute = Literal["auto", "float32", "bfloat16"]

log = logging.getLogger(__name__)

FAST = 1.5
"""How many times as fast as float32 bfloat16 has to be, for `auto` to take it."""

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
