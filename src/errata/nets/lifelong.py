"""Lifelong normalisation: statistics of keys and gradients over all edits of a sequence so far.

Rows are tokens, `[h ; g]`: the input of a projection and the loss' gradient at its output. What an
update uses is how far a row lies from all rows before it, in deviations; that keeps steps of one
size over thousands of edits. Pure functions in float64, no model needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from errata.errors import EditError, PatchError

FLOOR = 1e-6
"""Smallest eigenvalue that whitening divides by; of the largest one unless `released`."""


@dataclass(frozen=True)
class RowStats:
    """Mean and spread of rows, merged batch by batch; exact for any split, whatever the order.

    Attributes:
        count: Rows so far, `n`.
        mean: Of every coordinate.
        squares: Sum of squared deviations of every coordinate, `S`.
        products: Sum of products of the gradients' deviations, `C`; None: not kept.
    """

    count: int
    mean: Float[Tensor, " w"]
    squares: Float[Tensor, " w"]
    products: Float[Tensor, "d d"] | None = None

    @classmethod
    def empty(cls, d_in: int, d_out: int, products: bool, device: torch.device) -> RowStats:
        """Return the statistics of no rows."""
        zeros = torch.zeros(d_in + d_out, dtype=torch.float64, device=device)
        square = zeros.new_zeros(d_out, d_out) if products else None
        return cls(0, zeros, zeros.clone(), square)

    def add(self, rows: Float[Tensor, "r w"], *, released: bool = False) -> RowStats:
        """Return the statistics with further rows; these are not changed.

        Args:
            rows: `[h ; g]` of each token.
            released: Take the unbiased variance of the rows times their number for their sum of
                squares, as released: a fifth too large a deviation with three rows.

        Raises:
            EditError: If one row is given as released: its variance is 0/0.
        """
        r = len(rows)
        if not r:
            return self
        if released and r == 1:
            raise EditError(
                "a mini-batch holds a single answer token, whose unbiased variance is 0/0",
                "Leave compat=true out, or give more edits at once.",
            )
        rows = rows.to(self.mean)
        n = self.count + r
        centre = rows.mean(0)
        inner = (rows - centre).square().sum(0) * (r / (r - 1) if released else 1.0)
        delta = centre - self.mean
        share = r * self.count / n
        products = self.products
        if products is not None:
            d = len(products)
            own, moved = (rows - centre)[:, -d:], delta[-d:]
            products = products + own.T @ own + share * torch.outer(moved, moved)
        return RowStats(
            n, self.mean + delta * (r / n), self.squares + inner + share * delta.square(), products
        )

    def deviation(self, extra: float = 0.0) -> Float[Tensor, " w"]:
        """Return the standard deviation of every coordinate.

        Args:
            extra: Added to the degrees of freedom, as released.

        Raises:
            EditError: If there are fewer than two rows.
        """
        if self.count < 2:
            raise EditError(
                f"{self.count} answer token has no deviation to measure it by",
                "Give more edits at once, or statistics of other texts: --set warmup=stats",
            )
        return (self.squares / (self.count - 1 + extra)).sqrt()

    def standard(
        self,
        h: Float[Tensor, "n f"],
        g: Float[Tensor, "n d"],
        *,
        whiten: bool = False,
        released: bool = False,
    ) -> tuple[Float[Tensor, "n f"], Float[Tensor, "n d"]]:
        """Return keys and gradients in deviations from the mean of all rows so far.

        Args:
            h: Keys.
            g: Gradients.
            whiten: Decorrelate the gradients (StableEdit) once there are more rows than `d + 1`.
            released: What keeps from dividing by zero (the rounding of the rows' type, 1.2e-7 in
                float32) is added as it is, as released: it damps gradients whose deviation is of
                that size. Else it is a share of the typical deviation.
        """
        f, d = h.shape[1], g.shape[1]
        eps = torch.finfo(h.dtype).eps
        std = self.deviation(eps if released else 0.0)
        keys = _over(h.to(std) - self.mean[:f], std[:f], eps, released)
        centred = g.to(std) - self.mean[f:]
        if whiten and self.products is not None and self.count > d + 1:
            sigma = self.products / (self.count - d - 1)
            values, vectors = torch.linalg.eigh(sigma)
            if not float(values[-1]) > 0:
                return keys, torch.zeros_like(centred)
            floor = FLOOR if released else FLOOR * float(values[-1])
            return keys, centred @ vectors @ (values.clamp(min=floor).rsqrt()[:, None] * vectors.T)
        return keys, _over(centred, std[f:], eps, released)

    # ------------------------------------------------------------------ in a patch

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Return them as named tensors, for the state of a patch; see `from_tensors`."""
        named = {
            f"{prefix}.n": torch.tensor(self.count, dtype=torch.int64),
            f"{prefix}.mean": self.mean,
            f"{prefix}.squares": self.squares,
        }
        return named if self.products is None else {**named, f"{prefix}.products": self.products}

    @classmethod
    def from_tensors(cls, state: Mapping[str, Tensor], prefix: str, like: RowStats) -> RowStats:
        """Return what `tensors` named with this prefix; without any such tensor, `like`.

        Raises:
            PatchError: If they are of other widths, or were kept without what whitening needs.
        """
        if f"{prefix}.n" not in state:
            return like
        try:
            count = int(state[f"{prefix}.n"])
            mean, squares = (
                state[f"{prefix}.{name}"].to(like.mean) for name in ("mean", "squares")
            )
        except (KeyError, ValueError, RuntimeError) as error:
            raise PatchError(
                f"the state {prefix!r} of the patch is not whole: {error}", "Make the patch again."
            ) from None
        products = state.get(f"{prefix}.products")
        if like.products is not None and products is None:
            raise PatchError(
                f"the state {prefix!r} of the patch was kept without whitening",
                "Go on with whiten=false, or make the patch again.",
            )
        if mean.shape != like.mean.shape or squares.shape != mean.shape:
            raise PatchError(
                f"the state {prefix!r} of the patch has {len(mean)} coordinates, not "
                f"{len(like.mean)}",
                "It belongs to another model.",
            )
        kept = None if like.products is None or products is None else products.to(like.mean)
        return cls(count, mean, squares, kept)


def _over(
    centred: Float[Tensor, "n w"], std: Float[Tensor, " w"], eps: float, released: bool
) -> Float[Tensor, "n w"]:
    """Divide by deviations; a coordinate that never moves stays at zero."""
    below = std + (eps if released else eps * float(std.square().mean().sqrt()))
    return torch.where(below > 0, centred / below, 0.0)


def wanted(
    keys: Float[Tensor, "n f"], gradients: Float[Tensor, "n d"], lr: float
) -> Float[Tensor, "n d"]:
    """Return by how much each row's output is to change: `-lr ||h'||^2 g'` (UltraEdit)."""
    return -lr * keys.square().sum(-1, keepdim=True) * gradients
