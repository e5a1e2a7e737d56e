"""The weights of a model: a digest that tells checkpoints apart, and a check for NaN."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import nn

from errata.errors import ModelError

if TYPE_CHECKING:
    from errata.model.lm import LM


def weight_fingerprint(model: nn.Module) -> str:
    """Return a SHA-256 over all weights, tied ones once, in name order.

    Floating-point weights are hashed as bfloat16, so one checkpoint has one fingerprint whether it
    was loaded in float64, float32 or bfloat16, while any edit of it has another.
    """
    digest = hashlib.sha256()
    seen: set[int] = set()
    for name, tensor in sorted(model.state_dict().items()):
        if tensor.numel() == 0 or tensor.data_ptr() in seen:
            continue
        seen.add(tensor.data_ptr())
        if tensor.is_floating_point():
            tensor = tensor.to(torch.bfloat16)
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_finite(lm: LM) -> None:
    """Refuse a model that holds NaN or infinite weights; only what was written since is read.

    Raises:
        ModelError: Names the first such parameter.
    """
    known: dict[str, tuple[int, int]] = lm.once("weights known to be finite", dict)
    for name, parameter in lm.model.named_parameters():
        state = (id(parameter), parameter._version)  # counts in-place writes
        if known.get(name) == state or not parameter.numel():
            continue
        low, high = torch.aminmax(parameter.detach())  # unlike isfinite, needs no memory
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise ModelError(
                f"parameter {name} of {lm.name} holds NaN or infinite values",
                "The checkpoint is damaged; load it again from its source.",
            )
        known[name] = state
