"""Products of bfloat16 on processors that have no instructions for them.

Such a processor multiplies bfloat16 seven times slower than float32. Done in float32 and rounded
once, a product is what hardware with bfloat16 gives, up to the order of the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from errata.store.machine import SLOW, speed_of

PRODUCTS: frozenset[Callable[..., Tensor]] = frozenset(
    {
        torch.nn.functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__,
        torch.bmm, torch.baddbmm,
    }
)  # fmt: skip


class WideProducts(TorchFunctionMode):
    """Multiplies bfloat16 in float32 and rounds the result; gradients likewise."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call a function of torch, a product of bfloat16 tensors in float32."""
        if func not in PRODUCTS or not any(_is_half(value) for value in args):
            return func(*args, **(kwargs or {}))
        wide = [value.float() if _is_half(value) else value for value in args]
        return func(*wide, **(kwargs or {})).bfloat16()


def _is_half(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.bfloat16


def products_for(device: torch.device) -> AbstractContextManager[Any]:
    """Return a context in which bfloat16 is multiplied as fast as this machine can."""
    slow = device.type == "cpu" and speed_of(torch.bfloat16, device) * SLOW < 1
    return WideProducts() if slow else nullcontext()
