"""GRACE's codebook: keys with radii, and the values that stand for a layer's output inside them.

Every token is its own query: where the layer's input lies within the radius of the nearest key, the
codebook answers, everywhere else the layer's output is passed on bit for bit. A key depends on a
token and on what stands before it, never on what follows. So no hook has to be told where a prompt
ends, and a generation with a key/value cache (the prompt at once, then one token at a time) decides
as one pass over the whole text does: what was decided at the prompt's last token stays in the
cache.

Source: Hartvigsen et al., "Aging with GRACE", 2023, arXiv:2211.11031.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from errata.errors import PatchError
from errata.patch import Module

KIND = "grace"
"""Name under which patches hold a codebook."""

VERSION = 1
"""Format of a codebook in a patch."""

RELEASED_VERSION = 2
"""Format of one of which the prompt's last token alone asks."""

GAP = 1e-5
"""Between two balls that share a border after a conflict."""

TOGETHER = 1 << 24
"""Most distances (queries x keys) that are held at once: 64 MB in float32."""

MARGIN = 1e-6
"""A ball that is widened to a query is this much wider, relatively: the same query, computed in
another batch, must lie inside."""

EXACT = 64
"""Up to as many keys all distances are computed exactly; beyond, those of the nearest few."""

NEAREST = 8
"""How many that are: more than could be confused by the rounding of a matrix product."""

Replacement = Literal["replace_last", "replace_prompt"]

Asks = Literal["tokens", "prompt"]
"""Whose inputs are compared with keys: every token's, or that of a prompt's last token alone."""


@dataclass(frozen=True)
class Codebook:
    """Keys, values, radii and labels, in the order in which the keys were added.

    Attributes:
        keys: Inputs of the layer, float32 at least.
        values: What stands for its output.
        radii: How far from its key each value holds.
        labels: Token ids of each key's target.
        masked: Tokens of each key's prompt: the published comparison of labels counts them.
    """

    keys: Float[Tensor, "n d_in"]
    values: Float[Tensor, "n d_out"]
    radii: Float[Tensor, " n"]
    labels: tuple[tuple[int, ...], ...]
    masked: tuple[int, ...]

    @classmethod
    def empty(cls, d_in: int, d_out: int, dtype: torch.dtype, device: torch.device) -> Codebook:
        """Return a codebook without keys."""
        made = {"dtype": dtype, "device": device}
        zero = torch.zeros(0, **made)
        return cls(torch.zeros(0, d_in, **made), torch.zeros(0, d_out, **made), zero, (), ())

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def nbytes(self) -> int:
        """Bytes of keys, values and radii."""
        return sum(t.numel() * t.element_size() for t in (self.keys, self.values, self.radii))

    def nearest(
        self, queries: Float[Tensor, "t d_in"]
    ) -> tuple[Float[Tensor, " t"], Int[Tensor, " t"]]:
        """Return each query's distance to the nearest key and that key's number.

        Of keys at the same distance the first counts.

        Distances are differences squared and summed, not a matrix product, whose rounding exceeds
        small distances. Of many keys a product chooses the few that are measured, for so many
        queries at once that memory does not grow with the codebook.
        """
        lines = max(1, TOGETHER // max(1, len(self)))
        if len(queries) > lines:
            parts = [self.nearest(part) for part in queries.split(lines)]
            distances, keys = zip(*parts, strict=True)
            return torch.cat(distances), torch.cat(keys)
        if len(self) <= EXACT:
            distance = torch.cdist(queries, self.keys, compute_mode="donot_use_mm_for_euclid_dist")
            return distance.min(dim=1)
        rough = self.keys.square().sum(1) - 2 * (queries @ self.keys.T)
        few = rough.topk(NEAREST, dim=1, largest=False).indices.sort(dim=1).values
        distance = torch.empty(few.shape, dtype=queries.dtype, device=queries.device)
        for column in range(NEAREST):
            distance[:, column] = (queries - self.keys[few[:, column]]).square().sum(1).sqrt()
        least, at = distance.min(dim=1)
        return least, few.gather(1, at[:, None])[:, 0]

    def chosen(self, queries: Float[Tensor, "*batch d_in"]) -> Int[Tensor, "*batch"]:
        """Return the key that answers each query, -1 where none does."""
        flat = queries.reshape(-1, queries.shape[-1]).to(self.keys)
        if not len(self) or not len(flat):
            return flat.new_full(queries.shape[:-1], -1, dtype=torch.long)
        distance, key = self.nearest(flat)
        return torch.where(distance <= self.radii[key], key, -1).reshape(queries.shape[:-1])

    # ------------------------------------------------------------------ growing

    def same_label(self, key: int, label: tuple[int, ...], masked: int, compat: bool) -> bool:
        """Whether a key has that label.

        Args:
            key: Number of the key.
            label: Token ids of a target.
            masked: Tokens of its prompt.
            compat: Compare as the published code does: means over the ids of the target and -100
                for every token of the prompt, in float32; and labels of new keys are put in front
                of the list while the keys themselves are put behind.
        """
        if not compat:
            return self.labels[key] == label
        key = len(self) - 1 - key
        return _mean(self.labels[key], self.masked[key]) == _mean(label, masked)

    def added(
        self,
        key: Float[Tensor, " d_in"],
        value: Float[Tensor, " d_out"],
        radius: float,
        label: tuple[int, ...],
        masked: int,
    ) -> Codebook:
        """Return the codebook with one more key."""
        return Codebook(
            torch.cat([self.keys, key[None].to(self.keys)]),
            torch.cat([self.values, value[None].to(self.values)]),
            torch.cat([self.radii, self.radii.new_tensor([radius])]),
            (*self.labels, label),
            (*self.masked, masked),
        )

    def with_radius(self, key: int, radius: float) -> Codebook:
        """Return the codebook with another radius of one key."""
        radii = self.radii.clone()
        radii[key] = radius
        return replace(self, radii=radii)

    def with_value(self, key: int, value: Float[Tensor, " d_out"]) -> Codebook:
        """Return the codebook with another value of one key."""
        values = self.values.clone()
        values[key] = value.to(values)
        return replace(self, values=values)

    def relabelled(self, key: int, label: tuple[int, ...], masked: int) -> Codebook:
        """Return the codebook with another label of one key."""
        labels, counts = list(self.labels), list(self.masked)
        labels[key], counts[key] = label, masked
        return replace(self, labels=tuple(labels), masked=tuple(counts))

    def admitted(
        self,
        query: Float[Tensor, " d_in"],
        value: Float[Tensor, " d_out"],
        label: tuple[int, ...],
        masked: int,
        radius: float,
        *,
        compat: bool = False,
    ) -> tuple[Codebook, int, bool]:
        """Make room for an edit: a new key, a shared border, or a wider ball.

        * No key within `radius` plus its own radius: a new key.
        * Another label: a new key; both balls end half-way. A ball never grows by that (in the
          published code it may: `compat`).
        * The same label: the nearest key's ball is widened to the query.

        Args:
            query: The layer's input at the last token of the prompt.
            value: Where the value of a new key starts.
            label: Token ids of the target.
            masked: Tokens of the prompt.
            radius: Of a new key.
            compat: See `same_label`.

        Returns:
            The codebook, the number of the key whose value is to be trained, and whether the query
            collides with a key of another label: no border fits between them, and nothing was
            changed.
        """
        if not len(self):
            return self.added(query, value, radius, label, masked), 0, False
        distances, keys = self.nearest(query[None].to(self.keys))
        distance, near = float(distances[0]), int(keys[0])
        own = float(self.radii[near])
        if distance > radius + own:
            return self.added(query, value, radius, label, masked), len(self), False
        if not self.same_label(near, label, masked, compat):
            border = distance / 2
            if border <= 2 * GAP:
                return self, near, True
            left = border - GAP if compat else min(own, border - GAP)
            return (
                self.with_radius(near, left).added(query, value, border, label, masked),
                len(self),
                False,
            )
        if distance > own:
            return self.with_radius(near, distance * (1 + MARGIN)), near, False
        return self, near, False

    # ------------------------------------------------------------------ in patches

    def module(self, path: str, replacement: Replacement, asks: Asks = "tokens") -> Module:
        """Return what a patch holds of it for use."""
        tensors = {"keys": self.keys, "values": self.values, "radii": self.radii}
        config: dict[str, Any] = {"version": VERSION, "replacement": replacement}
        if asks != "tokens":  # what does not know of it has to refuse the patch
            config |= {"version": RELEASED_VERSION, "asks": asks}
        kept = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        return Module(path, KIND, config, kept, where="both")

    def state(self) -> dict[str, Tensor]:
        """Return what a patch holds of it for the next edit: labels, filled up with -1."""
        width = max(map(len, self.labels), default=0)
        filled = [[*label, *[-1] * (width - len(label))] for label in self.labels]
        labels = torch.tensor(filled, dtype=torch.long).reshape(len(self), width)
        return {"grace.labels": labels, "grace.masked": torch.tensor(self.masked).long()}

    @classmethod
    def restored(cls, module: Module, state: Mapping[str, Any]) -> Codebook:
        """Return the codebook of a patch.

        Raises:
            PatchError: If it is of another version, or its labels are missing or of other keys.
        """
        keys, values, radii = tensors_of(module.config, module.weights, module.path)
        labels, masked = state.get("grace.labels"), state.get("grace.masked")
        if not isinstance(labels, Tensor) or not isinstance(masked, Tensor):
            raise PatchError(
                f"the patch holds GRACE's codebook at {module.path} without the labels of its keys",
                "It can be applied, but not extended; make it again with --editor grace.",
            )
        if len(labels) != len(keys) or len(masked) != len(keys):
            raise PatchError(
                f"the patch holds {len(keys)} keys of GRACE at {module.path} and {len(labels)} "
                "labels: two of them were added up",
                "Edit after one patch (--after) instead of adding two.",
            )
        ids = tuple(tuple(i for i in row if i >= 0) for row in labels.tolist())
        return cls(keys, values, radii, ids, tuple(masked.tolist()))

    def to(self, device: torch.device, dtype: torch.dtype) -> Codebook:
        """Return the same on a device and in a type."""
        keys, values, radii = (t.to(device, dtype) for t in (self.keys, self.values, self.radii))
        return Codebook(keys, values, radii, self.labels, self.masked)


def _mean(label: Sequence[int], masked: int) -> float:
    return float(torch.tensor([-100] * masked + list(label)).float().mean())


def tensors_of(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: str = "this layer"
) -> tuple[Tensor, Tensor, Tensor]:
    """Return keys, values and radii.

    Raises:
        PatchError: If they are of another version, or missing, or of different numbers.
    """
    version = config.get("version")
    if version not in (VERSION, RELEASED_VERSION):
        raise PatchError(
            f"GRACE's codebook at {path} has format {version}; this errata reads {VERSION} and "
            f"{RELEASED_VERSION}",
            "Use the version of errata that patch.json names, or make the patch again.",
        )
    try:
        keys, values, radii = (tensors[name] for name in ("keys", "values", "radii"))
    except KeyError as missing:
        raise PatchError(f"GRACE's codebook at {path} lacks its {missing.args[0]}") from None
    if [t.ndim for t in (keys, values, radii)] != [2, 2, 1]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (keys, values, radii))
        raise PatchError(
            f"GRACE's codebook at {path} has shapes {shapes}; expected n x d_in, n x d_out and n"
        )
    if not len(keys) == len(values) == len(radii):
        raise PatchError(
            f"GRACE's codebook at {path} has {len(keys)} keys, {len(values)} values and "
            f"{len(radii)} radii; expected as many of each"
        )
    return keys, values, radii
