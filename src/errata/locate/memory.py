"""What later edits of a layer should leave alone: the keys of the earlier ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from errata.errors import EditError, PatchError


@dataclass(frozen=True)
class KeyMemory:
    """Keys of the edits already in a layer's weight, which later updates should leave alone.

    The keys themselves are held while there are fewer than `f` of them, afterwards only their sum
    of products `S = sum k k^T`: memory never grows beyond `f x f`.

    Attributes:
        keys: One past key per row, float64; None when there are none, or too many.
        gram: `S`, float64, once there are too many.
        count: How many keys were added.
    """

    keys: Float[Tensor, "n f"] | None
    gram: Float[Tensor, "f f"] | None
    count: int

    @classmethod
    def empty(cls) -> KeyMemory:
        """Return the memory of an unedited layer."""
        return cls(None, None, 0)

    def add(self, keys: Float[Tensor, "u f"]) -> KeyMemory:
        """Return a memory that holds further keys; this one is not changed.

        Raises:
            EditError: If the keys have another length than those held.
        """
        keys = keys.detach().to(torch.float64)
        size = keys.shape[-1]
        self.check(size)
        count = self.count + len(keys)
        if self.gram is not None:
            return KeyMemory(None, self.gram + keys.T @ keys.to(self.gram), count)
        if self.keys is not None:
            keys = torch.cat([self.keys, keys.to(self.keys)])
        if not len(keys):
            return self
        return (
            KeyMemory(keys, None, count) if count < size else KeyMemory(None, keys.T @ keys, count)
        )

    def check(self, size: int) -> None:
        """Refuse keys of another length.

        Raises:
            EditError: If this memory holds keys, and not of this length.
        """
        held = self.keys if self.keys is not None else self.gram
        if held is not None and held.shape[-1] != size:
            raise EditError(
                f"the memory of this layer holds keys of length {held.shape[-1]}, not {size}",
                "It belongs to another layer or model.",
            )

    def total(self) -> Float[Tensor, "f f"] | None:
        """Return `S`, or None if nothing was added."""
        return self.gram if self.keys is None else self.keys.T @ self.keys

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return it as named tensors, for the state of a patch; see `from_tensors`."""
        named = {f"{prefix}.count": torch.tensor(self.count, dtype=torch.int64)}
        if self.keys is not None:
            named[f"{prefix}.keys"] = self.keys
        if self.gram is not None:
            named[f"{prefix}.gram"] = self.gram
        return named

    @classmethod
    def from_tensors(cls, mapping: Mapping[str, Tensor], prefix: str) -> KeyMemory:
        """Return what `tensors` named with this prefix; without any such tensor, an empty memory.

        Raises:
            PatchError: If the tensors contradict each other.
        """
        keys, gram = mapping.get(f"{prefix}.keys"), mapping.get(f"{prefix}.gram")
        counted = mapping.get(f"{prefix}.count")
        if counted is None and keys is None and gram is None:
            return cls.empty()
        count = int(counted) if counted is not None and counted.numel() == 1 else -1
        if keys is not None:
            fits = gram is None and keys.ndim == 2 and len(keys) == count
        elif gram is not None:
            fits = gram.ndim == 2 and len(gram) == gram.shape[1] and count > 0
        else:
            fits = count == 0
        if not fits:
            raise PatchError(
                f"the state {prefix!r} of the patch contradicts itself: its tensors are of "
                "different edits",
                "Make the patch again.",
            )
        keys = None if keys is None else keys.to(torch.float64)
        gram = None if gram is None else gram.to(torch.float64)
        return cls(keys, gram, count)
