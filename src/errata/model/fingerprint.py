"""What tells one checkpoint from another: a digest of its weights."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


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
