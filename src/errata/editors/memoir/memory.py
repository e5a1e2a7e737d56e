"""MEMOIR's memory beside one matrix, and which of its columns a question reads.

`y = W x + M (x * m)`: the mask `m` belongs to a prompt. It is taken from the most active inputs
at the prompt's tokens, sent through a fixed permutation, so that edits lie in columns that are not
the most active ones. A question that is like an edit's prompt has nearly its mask, and reads with
the very mask that the edit wrote with.

Source: Wang et al., "MEMOIR: Lifelong Model Editing with Minimal Overwrite and Informed Retention
for LLMs", 2025, arXiv:2506.07899.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from errata.errors import PatchError
from errata.model.passes import Pass, wide
from errata.patch import Module, module_kind

KIND = "memoir"
"""Name under which patches hold a memory."""

VERSION = 1
"""Format of a memory in a patch."""

Feature = Literal["centred", "mean", "last"]
"""What of a prompt's inputs is looked at: their mean, less that of other prompts; their mean; the
last one."""

TENSORS = ("columns", "values", "masks", "order", "centre")


def feature_of(
    x: Float[Tensor, "B T f"], prompt: Bool[Tensor, "B T"], feature: Feature, centre: Tensor
) -> Float[Tensor, "B f"]:
    """Return what a mask is taken from, for each row."""
    if feature == "last":
        last = prompt.long().cumsum(1).argmax(1)
        return x[torch.arange(len(x), device=x.device), last]
    own = prompt[..., None].to(x.dtype)
    mean = (x * own).sum(1) / own.sum(1).clamp(min=1)
    return mean - centre.to(mean) if feature == "centred" else mean


def masks_of(phi: Float[Tensor, "B f"], order: Int[Tensor, " f"], k: int) -> Bool[Tensor, "B f"]:
    """Return the mask of each row: the `k` most active entries, each sent to another column.

    Of entries that are equally active the first ones count, on every device.
    """
    best = torch.sort(phi.abs(), dim=1, descending=True, stable=True).indices[:, :k]
    masks = torch.zeros(phi.shape, dtype=torch.bool, device=phi.device)
    return masks.scatter(1, order.to(phi.device)[best], True)


def packed(masks: Bool[Tensor, "n f"]) -> UInt8[Tensor, "n b"]:
    """Return masks with eight entries to a byte."""
    import numpy as np

    return torch.from_numpy(np.packbits(masks.cpu().numpy(), axis=1))


def unpacked(masks: UInt8[Tensor, "n b"], f: int) -> Bool[Tensor, "n f"]:
    """Return packed masks as they were."""
    import numpy as np

    return torch.from_numpy(np.unpackbits(masks.cpu().numpy(), axis=1)[:, :f].astype(bool))


@dataclass(frozen=True)
class Use:
    """How a memory is read; the same for all edits of a patch.

    Attributes:
        k: Columns of a mask.
        tau: Overlap, as a share of `k`, from which a question reads with an edit's mask.
        feature: See `Feature`.
    """

    k: int
    tau: float
    feature: Feature

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Use:
        """Return what a patch says."""
        return cls(**{name: config[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Memory:
    """What edits wrote, float32 at least.

    Attributes:
        matrix: The memory `M`.
        masks: Of the edits, each once.
        order: Where each entry is sent.
        centre: What is taken off the mean of a prompt's inputs.
    """

    matrix: Float[Tensor, "d f"]
    masks: Bool[Tensor, "n f"]
    order: Int[Tensor, " f"]
    centre: Float[Tensor, " f"]

    @classmethod
    def empty(
        cls, d: int, order: Int[Tensor, " f"], centre: Float[Tensor, " f"], dtype: torch.dtype
    ) -> Memory:
        """Return a memory of nothing."""
        f, device = len(order), centre.device
        matrix = torch.zeros(d, f, dtype=dtype, device=device)
        masks = torch.zeros(0, f, dtype=torch.bool, device=device)
        return cls(matrix, masks, order.to(device), centre.to(dtype))

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def nbytes(self) -> int:
        """Bytes that a patch holds: touched columns, and a bit for every entry of a mask."""
        columns = int(self.matrix.any(0).sum())
        return columns * len(self.matrix) * self.matrix.element_size() + self.masks.numel() // 8

    def overlaps(self, masks: Bool[Tensor, "B f"]) -> Float[Tensor, "B n"]:
        """Return how many columns each mask shares with that of each edit."""
        return masks.to(self.matrix.dtype) @ self.masks.to(self.matrix.dtype).T

    def written(self, matrix: Float[Tensor, "d f"], mask: Bool[Tensor, " f"]) -> Memory:
        """Return the memory as an edit left it; its mask is kept unless it is there already."""
        known = bool((self.masks == mask).all(1).any()) if len(self) else False
        masks = self.masks if known else torch.cat([self.masks, mask[None]])
        return replace(self, matrix=matrix, masks=masks)

    def to(self, device: torch.device, dtype: torch.dtype) -> Memory:
        """Return the same on a device and in a type."""
        return Memory(
            self.matrix.to(device, dtype), self.masks.to(device), self.order.to(device),
            self.centre.to(device, dtype),
        )  # fmt: skip

    def module(self, path: str, use: Use) -> Module:
        """Return what a patch holds of it: the columns that were written to."""
        columns = self.matrix.any(0).nonzero()[:, 0]
        config = {"version": VERSION, "k": use.k, "tau": use.tau, "feature": use.feature}
        tensors = {
            "columns": columns.int(), "values": self.matrix[:, columns],
            "masks": packed(self.masks), "order": self.order.int(), "centre": self.centre,
        }  # fmt: skip
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return Module(path, KIND, config, kept, where="both")

    @classmethod
    def restored(
        cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: str = "this matrix"
    ) -> Memory:
        """Return the memory of a patch.

        Raises:
            PatchError: If it is of another version, or tensors are missing.
        """
        version = config.get("version")
        if version != VERSION:
            raise PatchError(
                f"MEMOIR's memory at {path} has format {version}; this errata reads {VERSION}",
                "Use the version of errata that patch.json names, or make the patch again.",
            )
        missing = [name for name in TENSORS if name not in tensors]
        if missing:
            raise PatchError(f"MEMOIR's memory at {path} lacks its {', '.join(missing)}")
        values, order = tensors["values"], tensors["order"].long()
        matrix = torch.zeros(len(values), len(order), dtype=values.dtype)
        matrix[:, tensors["columns"].long().cpu()] = values.cpu()
        masks = unpacked(tensors["masks"], len(order))
        return cls(matrix, masks, order.cpu(), tensors["centre"].cpu())


@module_kind(KIND)
class ResidualMemory(nn.Module):
    """A memory at work beside a matrix.

    Args:
        config: What [`Memory.module`][errata.editors.memoir.memory.Memory.module] wrote.
        tensors: What it holds.

    Raises:
        PatchError: If they are of another version.
    """

    sees_pass = True

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.use = Use.of(config)
        memory = Memory.restored(config, tensors)
        for name in ("matrix", "masks", "order", "centre"):
            self.register_buffer(name, getattr(memory, name), persistent=False)

    @property
    def memory(self) -> Memory:
        """The memory, where the network lies."""
        return Memory(*(self.get_buffer(n) for n in ("matrix", "masks", "order", "centre")))

    def forward(
        self, given: Float[Tensor, "B T f"], output: Float[Tensor, "B T d"], seen: Pass
    ) -> Float[Tensor, "B T d"]:
        """Return `output`, in the rows that are like an edit with what the memory adds."""
        chosen, memory = self.chosen(given, seen), self.memory
        rows = (chosen >= 0).nonzero()[:, 0]
        if not len(rows):
            return output
        masks = memory.masks[chosen[rows]][:, None].to(memory.matrix)
        term = (given[rows].to(memory.matrix) * masks) @ memory.matrix.T
        new = (wide(output[rows]).to(term.dtype) + term).to(output.dtype)
        return output.index_copy(0, rows, new)

    @torch.no_grad()
    def chosen(self, given: Float[Tensor, "B T f"], seen: Pass) -> Int[Tensor, " B"]:
        """Return the edit whose mask each row reads with, -1: none; of equals the first."""
        memory, use = self.memory, self.use
        if not len(memory):
            return torch.full((len(given),), -1, device=given.device)
        phi = feature_of(given.to(memory.matrix), seen.prompt_mask, use.feature, memory.centre)
        shared, best = memory.overlaps(masks_of(phi, memory.order, use.k)).max(1)
        return torch.where(shared >= use.tau * use.k, best, -1)
