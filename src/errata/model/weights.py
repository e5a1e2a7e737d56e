"""The weights of a model: digests that tell checkpoints apart, and a check for NaN."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from errata.errors import ModelError
from errata.model.stored import tensors_of, value_of

if TYPE_CHECKING:
    from errata.model.lm import LM

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """Which weights a model has, as far as the type that they were loaded in lets it be told.

    float16 rounds to zero what bfloat16 keeps, so a checkpoint that was loaded in float16 has
    another fingerprint than in any other type. Whoever holds the checkpoint in a wider type knows
    what float16 would make of it, and that digest is the second one here.

    Attributes:
        fingerprint: SHA-256 of the weights as they are, read as bfloat16.
        float16: Of the weights as float16 would hold them, read as bfloat16; empty if not known.
        dtype: Type that they are in; empty if not known.
    """

    fingerprint: str
    float16: str = ""
    dtype: str = ""

    @classmethod
    def recorded(cls, meta: Mapping[str, Any]) -> Identity | None:
        """Return what a patch, an export or a network recorded; None if it names no weights."""
        if not meta.get("fingerprint"):
            return None
        more = (meta.get("fingerprint_float16") or "", meta.get("dtype") or "")
        return cls(str(meta["fingerprint"]), *map(str, more))

    def record(self) -> dict[str, str]:
        """Return what `recorded` reads."""
        found = {"fingerprint": self.fingerprint}
        if self.float16:
            found["fingerprint_float16"] = self.float16
        return found | ({"dtype": self.dtype} if self.dtype else {})

    def same(self, other: Identity) -> bool:
        """Whether both are one checkpoint: equal, or equal as float16 where one is in float16.

        Two models in wider types are never the same for being equal in float16.
        """
        if self.fingerprint == other.fingerprint:
            return True
        halves = "float16" in (self.dtype, other.dtype)
        return halves and bool(self.float16) and self.float16 == other.float16

    def __str__(self) -> str:
        kind = f"{self.dtype} " if self.dtype else ""
        return f"{kind}weights {self.fingerprint[:12]}"


def differs(mine: Identity, theirs: Identity, otherwise: str) -> str:
    """Return the remedy for two identities that are not the same.

    Args:
        mine: What something was made for.
        theirs: What a model has.
        otherwise: The remedy if types do not explain it.
    """
    if mine.dtype != theirs.dtype and "float16" in (mine.dtype, theirs.dtype):
        wide = next(dtype for dtype in (mine.dtype, theirs.dtype) if dtype != "float16")
        wide = wide or "float32"
        return (
            f"If it is the same checkpoint: float16 and {wide} rounded its weights differently, so "
            f"that cannot be told. Load it in float32, or as before: --dtype {mine.dtype or wide}"
        )
    return otherwise


def settle(lm: LM) -> None:
    """Look whether somebody has written to the weights, and forget what was made of the old ones.

    What patches write is put back and does not count. Moments, fingerprints and all else that is
    kept (`LM.once`) is made again when it is asked for.
    """
    if lm.installed.look(lm.model):
        log.warning(
            "somebody wrote to the weights of %s since errata read them: fingerprint, moments and "
            "all else that comes of them is made again, and patches of the old weights are refused",
            lm.name,
        )


def identity(lm: LM) -> Identity:
    """Return which weights a model has; they are read once, and again when they were written to."""
    return lm.once("identity", lambda: _identity(lm))


def _identity(lm: LM) -> Identity:
    return Identity(*weight_digests(lm.model), str(lm.dtype).removeprefix("torch."))


def weight_fingerprint(model: nn.Module) -> str:
    """Return a SHA-256 over all weights, tied ones once, in name order.

    Floating-point weights are hashed as bfloat16, so one checkpoint has one fingerprint whether it
    was loaded in float64, float32 or bfloat16, while any edit of it has another.
    """
    return weight_digests(model, half=False)[0]


def weight_digests(model: nn.Module, half: bool = True) -> tuple[str, str]:
    """Return the digest of the weights, and of what float16 would make of them.

    Args:
        model: The model.
        half: Whether the second is wanted; else it is the first again.
    """
    digest = hashlib.sha256()
    halved = digest  # the same until the first tensor that float16 would change

    def feed(into: Any, title: str, values: torch.Tensor) -> None:
        into.update(title.encode())
        into.update(_bits(values).cpu().numpy().data)

    with ThreadPoolExecutor(1) as beside:  # hashing is the slow part, and lets go of the lock
        for name, tensor in tensors_of(model):
            own = rounded = tensor
            if tensor.is_floating_point():
                own = rounded = tensor.to(torch.bfloat16)
                if half:
                    rounded = tensor.to(torch.float16).to(torch.bfloat16)
            # compared by their bits: a NaN is itself
            changed = rounded is not own and not torch.equal(_bits(own), _bits(rounded))
            if changed and halved is digest:
                halved = digest.copy()
            title = f"{name} {tuple(own.shape)}\n"
            second = None if halved is digest else beside.submit(feed, halved, title, rounded)
            feed(digest, title, own)
            if second is not None:
                second.result()
    return digest.hexdigest(), halved.hexdigest()


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def check_finite(lm: LM) -> None:
    """Refuse a model that holds NaN or infinite weights; they are read once, until written to.

    Raises:
        ModelError: Names the first such parameter.
    """
    settle(lm)
    lm.once("weights are finite", lambda: _check_finite(lm))


def _check_finite(lm: LM) -> None:
    for name, parameter in lm.model.named_parameters():
        if not parameter.numel():
            continue
        if not parameter.is_floating_point() or hasattr(parameter, "__tensor_flatten__"):
            continue  # packed numbers of a quantised matrix
        value = value_of(lm.model, name).detach()
        low, high = torch.aminmax(value)  # unlike isfinite, needs no memory
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise ModelError(
                f"parameter {name} of {lm.name} holds NaN or infinite values",
                "The checkpoint is damaged; load it again from its source.",
            )
