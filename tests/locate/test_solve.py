"""Oracles T1 and T2: closed forms without a model, float64, relative 1e-8 as in the references."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import Tensor

from errata.errors import EditError
from errata.locate import solve

D, F, N = 7, 12, 5
TOLERANCE = 1e-8


@pytest.fixture
def problem() -> dict[str, Tensor]:
    """A random projection, a moment with decaying spectrum, keys and targets."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    A = normal(F, 3 * F) * torch.logspace(0, -1, F, dtype=torch.float64)[:, None]
    return {
        "C": A @ A.T / (3 * F),
        "W": normal(D, F),
        "b": normal(D),
        "k": normal(N, F),
        "k_other": normal(N, F),
        "v": normal(N, D),
    }


def cost(D: Tensor, C: Tensor, other: Tensor | None = None) -> Tensor:
    return torch.trace(D @ C @ (D if other is None else other).T)


def test_T1_rome_writes_the_value_with_the_smallest_change(problem: dict[str, Tensor]) -> None:
    p = problem
    values = p["k"] @ p["W"].T + p["b"]
    B, A = solve.rome(p["v"], values, p["k"], p["k"], solve.factor(p["C"]))
    for i in range(N):
        D_ = torch.outer(B[i], A[i])
        torch.testing.assert_close(
            (p["W"] + D_) @ p["k"][i] + p["b"], p["v"][i], rtol=TOLERANCE, atol=TOLERANCE
        )
        assert torch.linalg.matrix_rank(D_) == 1
        # any other solution is D + N with N k = 0: orthogonal in the C metric, and dearer
        g = torch.Generator().manual_seed(i)
        other = torch.randn(D, F, generator=g, dtype=torch.float64)
        k = p["k"][i]
        other -= torch.outer(other @ k, k) / (k @ k)
        assert abs(cost(D_, p["C"], other)) < TOLERANCE * cost(D_, p["C"]).sqrt() * 100
        assert cost(D_ + other, p["C"]) > cost(D_, p["C"])


def test_T1_the_length_of_the_direction_cancels(problem: dict[str, Tensor]) -> None:
    direction = solve.whiten(problem["k"], solve.factor(problem["C"]))
    one = solve.rank_one(problem["v"], direction, problem["k_other"])
    other = solve.rank_one(problem["v"], -37.5 * direction, problem["k_other"])
    torch.testing.assert_close(one, other, rtol=TOLERANCE, atol=0)


def test_T1_without_a_moment_it_is_the_plain_projection(problem: dict[str, Tensor]) -> None:
    p = problem
    zero = torch.zeros(N, D, dtype=torch.float64)
    B, A = solve.rome(p["v"], zero, p["k"], p["k"], None)
    expected = p["k"] / (p["k"] ** 2).sum(-1, keepdim=True)
    torch.testing.assert_close(A, expected, rtol=TOLERANCE, atol=0)
    torch.testing.assert_close(B, p["v"], rtol=0, atol=0)


def test_T2_rome_holds_at_the_clean_key_only(problem: dict[str, Tensor]) -> None:
    p = problem
    values = p["k"] @ p["W"].T + p["b"]
    B, A = solve.rome(p["v"], values, p["k_other"], p["k"], solve.factor(p["C"]))
    after = values + B * (A * p["k"]).sum(-1, keepdim=True)
    torch.testing.assert_close(after, p["v"], rtol=TOLERANCE, atol=TOLERANCE)
    mean = p["k_other"] @ p["W"].T + p["b"] + B * (A * p["k_other"]).sum(-1, keepdim=True)
    assert ((mean - p["v"]).norm(dim=-1) > 0.1).all()


def test_T2_r_rome_holds_at_the_mean_key(problem: dict[str, Tensor]) -> None:
    p = problem
    factor = solve.factor(p["C"])
    contexts = torch.stack([p["k"], p["k_other"]])
    mean = contexts.mean(0)
    # the mean of the values is the value of the mean key: the projection is affine
    values = (contexts @ p["W"].T + p["b"]).mean(0)
    torch.testing.assert_close(values, mean @ p["W"].T + p["b"], rtol=TOLERANCE, atol=TOLERANCE)
    B, A = solve.r_rome(p["v"], values, mean, factor)
    after = values + B * (A * mean).sum(-1, keepdim=True)
    torch.testing.assert_close(after, p["v"], rtol=TOLERANCE, atol=TOLERANCE)
    assert ((mean * solve.whiten(mean, factor)).sum(-1) > 0).all()


def test_T2_equal_keys_make_rome_and_r_rome_one(problem: dict[str, Tensor]) -> None:
    p = problem
    factor = solve.factor(p["C"])
    values = p["k"] @ p["W"].T + p["b"]
    torch.testing.assert_close(
        solve.rome(p["v"], values, p["k"], p["k"], factor),
        solve.r_rome(p["v"], values, p["k"], factor),
        rtol=TOLERANCE,
        atol=0,
    )


def test_whitening_solves_and_does_not_invert(problem: dict[str, Tensor]) -> None:
    white = solve.whiten(problem["k"], solve.factor(problem["C"]))
    torch.testing.assert_close(white @ problem["C"], problem["k"], rtol=TOLERANCE, atol=TOLERANCE)


def test_an_asymmetric_sum_is_symmetrised(problem: dict[str, Tensor]) -> None:
    noise = torch.randn(F, F, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    crooked = problem["C"] + 1e-6 * (noise - noise.T)
    torch.testing.assert_close(
        solve.factor(crooked).lower, solve.factor(problem["C"]).lower, rtol=1e-12, atol=1e-12
    )


def test_a_singular_moment_gets_a_ridge_and_a_notice(
    problem: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    keys = problem["k"]  # 5 keys span 5 of 12 dimensions
    with caplog.at_level(logging.WARNING):
        factor = solve.factor(keys.T @ keys)
    assert factor.ridge > 0
    assert "singular" in caplog.text


def test_a_ridge_can_be_asked_for(problem: dict[str, Tensor]) -> None:
    C = problem["C"]
    factor = solve.factor(C, ridge=0.1)
    assert factor.ridge == pytest.approx(0.1 * float(C.diagonal().mean()))
    torch.testing.assert_close(
        factor.lower @ factor.lower.T, C + factor.ridge * torch.eye(F, dtype=torch.float64)
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_moment_with_nan_is_refused(problem: dict[str, Tensor], bad: float) -> None:
    broken = problem["C"].clone()
    broken[2, 3] = bad
    with pytest.raises(EditError, match="NaN or inf"):
        solve.factor(broken)


def test_a_zero_moment_is_refused() -> None:
    with pytest.raises(EditError, match="zero"):
        solve.factor(torch.zeros(F, F))


def test_an_indefinite_moment_is_refused(problem: dict[str, Tensor]) -> None:
    with pytest.raises(EditError, match="singular"):
        solve.factor(problem["C"] - 0.5 * problem["C"].diagonal().mean() * torch.eye(F))


# ---------------------------------------------------------------------- systems of edits


@pytest.mark.parametrize("panel", [1, 5, 12, 100])
def test_the_factor_gives_back_its_matrix(
    problem: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, panel: int
) -> None:
    monkeypatch.setattr(solve, "PANEL", panel)
    factor = solve.factor(problem["C"])
    assert factor.size == F
    torch.testing.assert_close(factor.matrix(), problem["C"], rtol=TOLERANCE, atol=TOLERANCE)
    half = factor.half_solve(problem["k"].T)
    torch.testing.assert_close(
        half.T @ half, problem["k"] @ solve.whiten(problem["k"], factor).T,
        rtol=TOLERANCE, atol=TOLERANCE,
    )  # fmt: skip


def test_a_positive_system_is_factored_as_it_is(problem: dict[str, Tensor]) -> None:
    lower, ridge = solve.positive(problem["C"], "it")
    assert ridge == 0
    torch.testing.assert_close(lower @ lower.T, problem["C"], rtol=TOLERANCE, atol=TOLERANCE)


def test_a_singular_system_gets_the_smallest_ridge(
    problem: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    matrix = problem["k"].T @ problem["k"]  # rank 5 of 12
    with caplog.at_level(logging.WARNING):
        lower, ridge = solve.positive(matrix, "the system of something")
    assert ridge == pytest.approx(solve.SYSTEM_RIDGE_START * float(matrix.diagonal().mean()))
    assert "the system of something is singular" in caplog.text
    near = matrix + ridge * torch.eye(F, dtype=torch.float64)
    torch.testing.assert_close(lower @ lower.T, near, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("ill", [1e-6, 1e-11])
def test_an_ill_conditioned_system_is_not_called_singular(ill: float) -> None:
    """Scales that differ between keys are no dependence between them."""
    scales = torch.logspace(0, torch.tensor(ill).log10().item(), F, dtype=torch.float64)
    assert solve.positive(torch.diag(scales), "it")[1] == 0


@pytest.mark.parametrize(
    ("matrix", "said"),
    [
        (-torch.eye(3), "singular"),
        (torch.diag(torch.tensor([1.0, 1.0, -0.1])), "singular"),
        (torch.zeros(3, 3), "singular"),
        (torch.full((2, 2), float("nan")), "NaN"),
    ],
)
def test_what_is_not_positive_is_refused(matrix: Tensor, said: str) -> None:
    with pytest.raises(EditError, match=said):
        solve.positive(matrix, "it")
