"""What the tests of closed forms share: a moment, edits and past keys, without a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from errata.locate import solve
from errata.locate.joint import Form, KeyMemory
from errata.locate.spectrum import NullSpace, null_space_of, spectrum

D, F, U, PAST = 9, 40, 6, 11
TOLERANCE = 1e-8
FORMS: list[Form] = ["primal", "dual"]
WEIGHT, L2 = 3.0, 0.5


def normal(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


def near(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    scale = float(expected.norm()) or 1.0
    assert float((found - expected).norm()) <= tolerance * scale


def matrix(factors: tuple[Tensor, Tensor]) -> Tensor:
    B, A = factors
    assert B.dtype == A.dtype == torch.float64
    return B.T @ A


@dataclass
class Problem:
    """A moment with decaying spectrum (condition 1e4), edits and past keys."""

    C: Tensor
    factor: solve.Factor
    W: Tensor
    K: Tensor
    R: Tensor
    past: Tensor

    @property
    def memory(self) -> KeyMemory:
        return KeyMemory.empty().add(self.past)

    @property
    def summed(self) -> KeyMemory:
        return KeyMemory(None, self.past.T @ self.past, len(self.past))


def problem() -> Problem:
    """Return the same problem every time."""
    A = normal(F, 3 * F, seed=1) * torch.logspace(0, -2, F, dtype=torch.float64)[:, None]
    C = A @ A.T / (3 * F)
    return Problem(
        C, solve.factor(C), normal(D, F, seed=2), normal(U, F, seed=3), normal(U, D, seed=4),
        normal(PAST, F, seed=5),
    )  # fmt: skip


def basis_with(C: Tensor, rank: int) -> NullSpace:
    values, vectors = spectrum(C)
    return null_space_of(values, vectors, float(values[rank]))
