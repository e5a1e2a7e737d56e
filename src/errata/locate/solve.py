"""The closed-form updates of locate-then-edit methods: pure functions in float64, no model needed.

Notation: the edited projection is `W` of shape `d x f` and answers a key `k` (`f`) with `v = W k +
b` (`d`); `C = E[k k^T]` is the second moment of keys on ordinary text. Batches of `n` edits are
rows.

Everything is solved through a Cholesky factor of `C`, never through an inverse: key moments are
badly conditioned (1e5 and more), and an explicit float32 inverse is the weakest point of the
published code.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from errata.errors import EditError

log = logging.getLogger(__name__)

RIDGE_START = 1e-10
"""First ridge tried when `C` is not positive definite, relative to its mean diagonal `tr(C)/f`."""

RIDGE_LIMIT = 1e-2
"""Largest relative ridge tried; a moment that needs more carries no usable information."""

DEPENDENT = 1e-13
"""A system counts as singular when less than this share of a diagonal entry is left as a pivot."""

SYSTEM_RIDGE_START = 1e-10
"""First ridge tried on a singular system, relative to its mean diagonal. It changes what the system
determines by about that share, and leaves about 1e-16 / 1e-10 of noise in what it does not."""

SYSTEM_RIDGE_LIMIT = 1e-8
"""Largest relative ridge tried on a system of edits; more would change the solution visibly."""

PANEL = 256
"""Rows of a product of triangular matrices that are computed together."""


@dataclass(frozen=True)
class Factor:
    """Cholesky factor of a second moment, computed once and used for any number of edits.

    Attributes:
        lower: Lower triangular `L` with `L L^T = C + ridge * I`, float64.
        ridge: What had to be added to the diagonal (absolute), 0.0 as a rule.
    """

    lower: Float[Tensor, "f f"]
    ridge: float

    @property
    def size(self) -> int:
        """`f`, the number of inputs of the edited projection."""
        return len(self.lower)

    def solve(self, columns: Float[Tensor, "f n"]) -> Float[Tensor, "f n"]:
        """Return `C^{-1} columns` in float64."""
        return torch.cholesky_solve(columns.to(self.lower), self.lower)

    def half_solve(self, columns: Float[Tensor, "f n"]) -> Float[Tensor, "f n"]:
        """Return `L^{-1} columns` in float64; its Gram matrix is `columns^T C^{-1} columns`."""
        return torch.linalg.solve_triangular(self.lower, columns.to(self.lower), upper=False)

    def matrix(self) -> Float[Tensor, "f f"]:
        """Return `C`, with the ridge, in float64, from the half of the product that is not zero."""
        product = torch.empty_like(self.lower)
        for start in range(0, self.size, PANEL):
            end = start + PANEL
            rows = self.lower[start:end, :end] @ self.lower[:end, :end].T
            product[start:end, :end] = rows
            product[:start, start:end] = rows[:, :start].T
        return product


def factor(moment: Float[Tensor, "f f"], *, ridge: float = 0.0) -> Factor:
    """Factor a second moment in float64.

    Args:
        moment: `C`; it is symmetrised first, since sums in float32 are not exactly symmetric.
        ridge: Added to the diagonal, relative to the mean diagonal `tr(C)/f`.

    Raises:
        EditError: If `C` holds NaN or inf, is zero, or is so far from positive definite that only
            a large ridge would help (too few tokens were counted).
    """
    matrix = moment.detach().to(torch.float64)
    if not torch.isfinite(matrix).all():
        raise EditError("the second moment of the keys holds NaN or inf", "Compute it again")
    matrix = (matrix + matrix.T) / 2
    scale = float(matrix.diagonal().mean())
    if scale <= 0:
        raise EditError("the second moment of the keys is zero", "Compute it from other texts")
    relative = ridge
    while True:
        shifted = matrix.clone()
        shifted.diagonal().add_(relative * scale)
        lower, info = torch.linalg.cholesky_ex(shifted)
        if int(info) == 0:
            break
        relative = max(RIDGE_START, relative * 10)
        if relative > RIDGE_LIMIT:
            raise EditError(
                "the second moment of the keys is singular",
                "Count more text: --set moments_samples=… (ten tokens per FFN unit are safe)",
            )
    if relative > ridge:
        log.warning(
            "second moment is singular in float64; %.1e of its mean diagonal was added", relative
        )
    return Factor(lower, relative * scale)


def positive(matrix: Float[Tensor, "n n"], what: str) -> tuple[Float[Tensor, "n n"], float]:
    """Factor a symmetric positive definite system in float64.

    Rounding, or edits that share a key, may leave a system singular that is positive definite by
    its making; then a tiny ridge is added to its diagonal, with a notice.

    Args:
        matrix: The system; only its lower half is read.
        what: What the notice and the error call it.

    Returns:
        The lower Cholesky factor and what was added to the diagonal, 0.0 as a rule.

    Raises:
        EditError: If it holds NaN or inf, or is singular beyond rounding.
    """
    matrix = matrix.to(torch.float64)
    if not torch.isfinite(matrix).all():
        raise EditError(
            f"{what} holds NaN or inf", "Look at the keys and target values of these edits."
        )
    diagonal = matrix.diagonal()
    scale = float(diagonal.mean())
    relative = 0.0
    while True:
        shifted = matrix
        if relative:
            shifted = matrix.clone()
            shifted.diagonal().add_(relative * scale)
        lower, info = torch.linalg.cholesky_ex(shifted)
        if int(info) == 0 and bool((lower.diagonal().square() > DEPENDENT * diagonal).all()):
            break
        relative = max(SYSTEM_RIDGE_START, relative * 10)
        if relative > SYSTEM_RIDGE_LIMIT or scale <= 0:
            raise EditError(
                f"{what} is singular",
                "Edits may share one key, or the weight of the moment (or l2) is zero: remove "
                "edits of the same subject and prompt, or raise it.",
            )
    if relative:
        log.warning("%s is singular in float64; %.0e of its diagonal was added", what, relative)
    return lower, relative * scale


def whiten(keys: Float[Tensor, "n f"], moment: Factor | None) -> Float[Tensor, "n f"]:
    """Return `C^{-1} k` for each row in float64; without a moment `C = I`."""
    keys = keys.detach().to(torch.float64)
    return keys if moment is None else moment.solve(keys.T).T


def unit(vectors: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
    """Scale each row to length 1."""
    return vectors / vectors.norm(dim=-1, keepdim=True)


def rank_one(
    residual: Float[Tensor, "n d"], direction: Float[Tensor, "n f"], key: Float[Tensor, "n f"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n f"]]:
    """Factors `(B, A)` of each edit's rank-one update `D = r u^T / (k . u)`, so that `D k = r`.

    The length of `u` cancels. With `u = C^{-1} k`, `D` is the update that moves ordinary keys
    least in mean square, `min tr(D C D^T) s.t. D k = r` (ROME, Meng et al. 2022, eq. 2).

    Args:
        residual: `r`, by how much the value at `key` has to move.
        direction: `u`, the row space of the update.
        key: `k`, the key at which the equality holds.
    """
    residual, direction, key = (
        part.detach().to(torch.float64) for part in (residual, direction, key)
    )
    return residual, direction / (key * direction).sum(-1, keepdim=True)


def rome(
    target: Float[Tensor, "n d"],
    value: Float[Tensor, "n d"],
    mean_key: Float[Tensor, "n f"],
    key: Float[Tensor, "n f"],
    moment: Factor | None,
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n f"]]:
    """ROME: direction from the mean key over contexts, equality at the key of the bare prompt.

    As published (Meng et al. 2022, and its code): `u = C^{-1} k_mean / ||.||`, `D = (v* - v) u^T /
    (k . u)`. Mixing two keys leaves the denominator without a lower bound; see `r_rome`.

    Args:
        target: `v*`.
        value: `v`, what the projection answers at `key` now, bias included.
        mean_key: `k_mean`, mean over contexts.
        key: `k`, key of the bare prompt.
        moment: Factor of `C`, or None for `C = I`.

    Returns:
        `(B, A)` with `D = B A`, one edit per row.
    """
    direction = unit(whiten(mean_key, moment))
    return rank_one(target.to(torch.float64) - value.to(torch.float64), direction, key)


def r_rome(
    target: Float[Tensor, "n d"],
    mean_value: Float[Tensor, "n d"],
    mean_key: Float[Tensor, "n f"],
    moment: Factor | None,
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n f"]]:
    """R-ROME: one key everywhere, so the denominator is a positive quadratic form.

    Gupta et al. 2024, "Rebuilding ROME".

    `D = (v* - (W k_mean + b)) (C^{-1} k_mean)^T / (k_mean^T C^{-1} k_mean)`.

    Args:
        target: `v*`.
        mean_value: `W k_mean + b`, equal to the mean of the values over contexts.
        mean_key: `k_mean`; give the bare prompt's key here (and its value) for p-ROME.
        moment: Factor of `C`, or None for `C = I`.

    Returns:
        `(B, A)` with `D = B A`, one edit per row.
    """
    return rome(target, mean_value, mean_key, mean_key, moment)
