"""The spectrum of a second moment: the directions that ordinary keys hardly use.

AlphaEdit (Fang et al. 2025) restricts updates to the span `U0` of the eigenvectors of `C` whose
eigenvalue lies below a threshold. Every update `D = D P`, `P = U0 U0^T`, then disturbs ordinary
keys by `tr(D C D^T) <= threshold * ||D||^2` at most. The published code finds `U0` by an SVD in
float32; here it is an eigendecomposition of the symmetric matrix, in float64.

What is decomposed once per moment (its Cholesky factor and its spectrum) is kept in the cache
folder, named by the bytes of the moment, so neither another model nor other text can be mistaken.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from errata.errors import EditError
from errata.locate.moment_files import Moment, tensor_digest
from errata.locate.moments import keep, model_folder
from errata.locate.solve import Factor, factor
from errata.progress import waiting
from errata.store.cache import digest, load_tensors

if TYPE_CHECKING:
    from errata.model.lm import LM

log = logging.getLogger(__name__)

PUBLISHED_THRESHOLD = 2e-2
"""Absolute threshold of all published configurations of AlphaEdit."""

FACTOR_CACHED_FROM = 2048
"""Size from which a Cholesky factor is kept on disk, for models on a CPU.

Measured on one thread, checksum included: 0.25 s to factor against 0.04 s to load at f = 2048, 0.84
against 0.09 s at 3072, 4.9 against 0.4 s at 6144. Below, factoring takes no longer than writing.
Not measured on a GPU, where nothing is kept. A spectrum (7.4 s at 3072) is kept always.
"""


@dataclass(frozen=True)
class NullSpace:
    """The null space of a second moment, up to a threshold.

    Attributes:
        basis: Orthonormal columns, float64: `U0` (`f x rank`), or its orthogonal complement `U1`
            (`f x (f - rank)`) where that is smaller.
        complement: Whether `basis` is `U1`.
        rank: Dimension of the null space.
        threshold: Eigenvalues below this (absolute) belong to it.
        eigenvalues: All eigenvalues, ascending.
    """

    basis: Float[Tensor, "f m"]
    complement: bool
    rank: int
    threshold: float
    eigenvalues: Float[Tensor, " f"]

    @property
    def size(self) -> int:
        """`f`, the number of inputs of the edited projection."""
        return len(self.basis)

    def project(self, rows: Float[Tensor, "n f"]) -> Float[Tensor, "n f"]:
        """Return `rows P` in float64."""
        rows = rows.to(self.basis)
        inside = (rows @ self.basis) @ self.basis.T
        return rows - inside if self.complement else inside

    def projector(self) -> Float[Tensor, "f f"]:
        """Return `P`."""
        product = self.basis @ self.basis.T
        if not self.complement:
            return product
        return torch.eye(self.size, dtype=product.dtype, device=product.device) - product

    def to(self, device: torch.device | str) -> NullSpace:
        """Return the same on another device."""
        return NullSpace(
            self.basis.to(device), self.complement, self.rank, self.threshold,
            self.eigenvalues.to(device),
        )  # fmt: skip


def spectrum(moment: Float[Tensor, "f f"]) -> tuple[Float[Tensor, " f"], Float[Tensor, "f f"]]:
    """Return eigenvalues (ascending) and eigenvectors (columns) of a moment, in float64.

    Raises:
        EditError: If the moment holds NaN or inf.
    """
    matrix = moment.detach().to(torch.float64)
    if not torch.isfinite(matrix).all():
        raise EditError("the second moment of the keys holds NaN or inf", "Compute it again")
    with waiting(f"directions that keys use, of {len(matrix):,}"):
        values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    return values, vectors


def null_space_of(
    values: Float[Tensor, " f"],
    vectors: Float[Tensor, "f f"],
    threshold: float = PUBLISHED_THRESHOLD,
    *,
    relative: bool = False,
) -> NullSpace:
    """Return the span of the eigenvectors with an eigenvalue below a threshold.

    The published threshold is absolute, so the rank depends on the scale of a model's keys. A
    relative one is taken times the mean eigenvalue `tr(C)/f`: like the largest eigenvalue it
    follows the scale of the keys, but a single outlier direction (an attention sink, for example)
    moves it by a share of `1/f` only.

    Args:
        values: Eigenvalues, ascending.
        vectors: Eigenvectors as columns.
        threshold: Below which eigenvalue a direction counts as unused.
        relative: Whether the threshold is meant relative to the mean eigenvalue.
    """
    limit = threshold * float(values.mean()) if relative else threshold
    rank = int((values < limit).sum())
    size = len(values)
    complement = rank > size - rank
    basis = vectors[:, rank:] if complement else vectors[:, :rank]
    if rank == 0:
        log.warning(
            "no direction of the keys lies below the threshold %.3g (the smallest eigenvalue is "
            "%.3g): updates are zero; raise the threshold or make it relative",
            limit, float(values[0]),
        )  # fmt: skip
    return NullSpace(basis.clone(), complement, rank, limit, values)


# ---------------------------------------------------------------------- kept on disk


def get_factor(lm: LM, layer: int, moment: Moment, ridge: float = 0.0) -> Factor:
    """Return the Cholesky factor of a layer's second moment, on the model's device.

    Args:
        lm: The unedited model.
        layer: Block number.
        moment: Its second moment.
        ridge: Added to the diagonal, relative to its mean.

    Raises:
        EditError: If the moment cannot be factored; see `solve.factor`.
    """
    matrix = moment.matrix
    if lm.device.type != "cpu" or len(matrix) < FACTOR_CACHED_FROM:
        return factor(matrix.to(lm.device), ridge=ridge)
    path = _path(lm, layer, moment, "cholesky", ridge)
    stored = load_tensors(path)
    if stored is not None:
        return Factor(stored[0]["lower"], stored[1]["ridge"])
    with waiting(f"factoring the second moment of layer {layer}"):
        made = factor(matrix, ridge=ridge)
    keep(path, {"lower": made.lower}, {"ridge": made.ridge})
    return made


def get_null_space(
    lm: LM,
    layer: int,
    moment: Moment,
    threshold: float = PUBLISHED_THRESHOLD,
    *,
    relative: bool = False,
) -> NullSpace:
    """Return the null space of a layer's second moment, on the model's device.

    The spectrum is kept on disk and serves every threshold.

    Args:
        lm: The unedited model.
        layer: Block number.
        moment: Its second moment.
        threshold: See `null_space_of`.
        relative: See `null_space_of`.

    Raises:
        EditError: If the moment holds NaN or inf.
    """
    path = _path(lm, layer, moment, "spectrum")
    stored = load_tensors(path)
    if stored is not None:
        values, vectors = stored[0]["values"].to(lm.device), stored[0]["vectors"].to(lm.device)
    else:
        values, vectors = spectrum(moment.matrix.to(lm.device))
        keep(path, {"values": values, "vectors": vectors}, {})
    found = null_space_of(values, vectors, threshold, relative=relative)
    log.info(
        "layer %d: the null space has rank %d of %d (eigenvalues below %.3g)",
        layer, found.rank, found.size, found.threshold,
    )  # fmt: skip
    return found


def _path(lm: LM, layer: int, moment: Moment, kind: str, *settings: float) -> Path:
    key = digest(tensor_digest(moment.matrix), *settings)
    return model_folder("spectra", lm) / f"{key}-layer{layer}-{kind}.safetensors"
