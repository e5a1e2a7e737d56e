"""A change of one weight that keeps what each edit asked for, so that any edit can be taken back.

`W += D` with `D = V^T K (K^T K + ridge I)^{-1}`: the least-squares answer to "output `V` more at
inputs `K`", rows of all edits in one system. It does not depend on the order of the edits, and
without an edit's rows it is what it would have been without the edit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from errata.errors import PatchError
from errata.patch.changes.base import numbers_of, text_of
from errata.patch.changes.kinds import change_kind
from errata.patch.changes.weights import LowRank

Rows = tuple[str, Float[Tensor, "n f"], Float[Tensor, "n d"]]
"""Of one edit: its key, and what it asks for: inputs and what the output is to gain there."""


def ridge_factors(
    keys: Float[Tensor, "n f"], values: Float[Tensor, "n d"], ridge: float
) -> tuple[Float[Tensor, "d r"], Float[Tensor, "r f"]]:
    """Return `B` and `A` with `B A = V^T K (K^T K + ridge I)^{-1}`, solved in float64.

    By `V^T (K K^T + ridge I)^{-1} K`, the same number for number, while there are fewer rows than
    inputs. The rank is at most the least of rows, inputs and outputs; `A` is `keys` itself while
    there are few rows.

    Args:
        keys: `K`.
        values: `V`.
        ridge: Above zero.

    Raises:
        PatchError: If the system is not finite.
    """
    K, V = keys.double(), values.double()
    (n, f), d = K.shape, V.shape[1]
    system = K @ K.T if n <= f else K.T @ K
    system.diagonal().add_(ridge)
    lower, info = torch.linalg.cholesky_ex(system)
    if int(info) or not bool(torch.isfinite(lower).all()):
        raise PatchError(
            "the system of the edits' inputs cannot be solved: it is singular or not finite",
            f"The ridge is {ridge:g}; a larger one may help.",
        )
    if n <= f:
        solved = torch.cholesky_solve(V, lower).T  # d x n
        if n <= min(d, f):
            return solved.to(values.dtype).contiguous(), keys
        dense = solved @ K
    else:
        dense = torch.cholesky_solve(K.T @ V, lower).T
    dense = dense.to(values.dtype).contiguous()
    eye = torch.eye(min(d, f), dtype=values.dtype, device=values.device)
    return (eye, dense) if d <= f else (dense, eye)


@change_kind("ridge")
@dataclass(frozen=True, eq=False, repr=False)
class Ridge(LowRank):
    """`W += B A`, solved from rows that every edit keeps.

    Attributes:
        keys: `K`, inputs of all edits, one row per token.
        values: `V`, what the output is to gain at each.
        counts: Rows of each edit, in order.
        holds: Key of each edit (`errata.patch.removal.edit_key`).
        ridge: Weight of the size of the change.
        maker: Editor that goes on with it.
    """

    kind: ClassVar[str] = "ridge"
    keys: Float[Tensor, "n f"]
    values: Float[Tensor, "n d"]
    counts: tuple[int, ...]
    holds: tuple[str, ...]
    ridge: float
    maker: str

    def __post_init__(self) -> None:
        super().__post_init__()
        fits = (
            len(self.keys) == len(self.values) == sum(self.counts)
            and len(self.counts) == len(self.holds)
            and (self.values.shape[1], self.keys.shape[1]) == (self.B.shape[0], self.A.shape[1])
        )
        if not fits:
            raise PatchError(
                f"the change of {self.path} holds {len(self.keys)} inputs and {len(self.values)} "
                f"outputs of {len(self.holds)} edits with {sum(self.counts)} rows",
                "The patch is damaged.",
            )

    @classmethod
    def of(cls, path: str, rows: Sequence[Rows], ridge: float, maker: str, **more: Any) -> Ridge:
        """Solve for the rows of some edits, at least one.

        Args:
            path: Module.
            rows: Of each edit.
            ridge: Weight of the size of the change.
            maker: Name of the editor.
            more: What a kind of its own keeps beside them.
        """
        keys = torch.cat([key for _, key, _ in rows]).contiguous()
        values = torch.cat([value for *_, value in rows]).contiguous()
        B, A = ridge_factors(keys, cls.gains(keys, values, **more), ridge)
        return cls(
            path, B, A, keys, values, tuple(len(key) for _, key, _ in rows),
            tuple(name for name, *_ in rows), ridge, maker, **more,
        )  # fmt: skip

    @staticmethod
    def gains(
        keys: Float[Tensor, "n f"], values: Float[Tensor, "n d"], **more: Any
    ) -> Float[Tensor, "n d"]:
        """Return what the output is to gain; a kind may work it out of what its rows hold."""
        return values

    @property
    def more(self) -> dict[str, Any]:
        """What a kind of its own keeps beside the rows."""
        return {}

    @property
    def rows(self) -> list[Rows]:
        """The rows of each edit."""
        parts = zip(self.keys.split(self.counts), self.values.split(self.counts), strict=True)
        return [(name, *part) for name, part in zip(self.holds, parts, strict=True)]

    def with_rows(self, rows: Sequence[Rows]) -> Ridge:
        """Return the change solved again, with further edits behind those it holds."""
        return type(self).of(self.path, [*self.rows, *rows], self.ridge, self.maker, **self.more)

    @property
    def held(self) -> tuple[str, ...]:
        """Key of each edit."""
        return self.holds

    def without(self, numbers: Collection[int]) -> Ridge | None:
        """Return the change as it would be without some of the edits; None if none is left."""
        rows = [own for number, own in enumerate(self.rows) if number not in numbers]
        if not rows:
            return None
        return type(self).of(self.path, rows, self.ridge, self.maker, **self.more)

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved in the tensor file; `A` only where it is not `keys`."""
        own = {"B": self.B, "keys": self.keys, "values": self.values}
        return own if self.A is self.keys else {**own, "A": self.A}

    def describe(self) -> dict[str, Any]:
        """Return what is saved in the JSON file."""
        return {
            **super().describe(), "ridge": self.ridge, "maker": self.maker,
            "rows": list(self.counts), "holds": list(self.holds),
            **self.more,
        }  # fmt: skip

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Ridge:
        """Return the change that was saved."""
        keys = numbers_of(tensors, "keys")
        A = numbers_of(tensors, "A") if "A" in tensors else keys
        counts, holds, ridge = entry.get("rows"), entry.get("holds"), entry.get("ridge")
        if not (
            isinstance(counts, list) and all(isinstance(n, int) and n > 0 for n in counts)
            and isinstance(holds, list) and all(isinstance(name, str) for name in holds)
            and isinstance(ridge, int | float)
        ):  # fmt: skip
            raise PatchError(
                f"the change of {entry.get('path')} does not say whose rows it holds",
                "The patch is damaged.",
            )
        return cls(
            text_of(entry, "path"), numbers_of(tensors, "B"), A, keys,
            numbers_of(tensors, "values"), tuple(counts), tuple(holds), float(ridge),
            text_of(entry, "maker"), **cls.kept(entry),
        )  # fmt: skip

    @classmethod
    def kept(cls, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Return `more` of a saved change."""
        return {}

    def in_float64(self) -> LowRank:
        """Return the same with factors in float64, without what it holds."""
        return LowRank(self.path, self.B.double(), self.A.double())

    def scaled(self, factor: float) -> LowRank:
        """Return the change `factor` times as strong; from that no edit can be taken back."""
        return LowRank(self.path, self.B * factor, self.A)
