"""Oracles T3 to T5: several edits at once, without a model; float64, relative 1e-8."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from tests.locate.problems import (
    FORMS,
    L2,
    TOLERANCE,
    WEIGHT,
    D,
    F,
    Problem,
    U,
    basis_with,
    matrix,
    near,
    normal,
    problem,
)

from errata.errors import EditError
from errata.locate import joint, solve
from errata.locate.joint import Form, RowsError


@pytest.fixture(scope="module")
def p() -> Problem:
    return problem()


# ---------------------------------------------------------------------- T3: MEMIT


@pytest.mark.parametrize("form", FORMS)
def test_T3_the_gradient_of_the_objective_vanishes(p: Problem, form: Form) -> None:
    delta = matrix(joint.least_squares(p.R, p.K, p.factor, WEIGHT, form=form))
    gradient = WEIGHT * delta @ p.C + (delta @ p.K.T - p.R.T) @ p.K
    assert float(gradient.norm()) < TOLERANCE * float((p.R.T @ p.K).norm())


@pytest.mark.parametrize("form", FORMS)
def test_T3_the_gradient_vanishes_with_memory(p: Problem, form: Form) -> None:
    delta = matrix(joint.least_squares(p.R, p.K, p.factor, WEIGHT, p.memory, form=form))
    gradient = WEIGHT * delta @ p.C + (delta @ p.K.T - p.R.T) @ p.K + delta @ p.past.T @ p.past
    assert float(gradient.norm()) < TOLERANCE * float((p.R.T @ p.K).norm())


def test_T3_autograd_finds_the_same_minimum(p: Problem) -> None:
    delta = matrix(joint.least_squares(p.R, p.K, p.factor, WEIGHT, p.memory)).requires_grad_()
    cost = (
        WEIGHT * torch.trace(delta @ p.C @ delta.T)
        + (delta @ p.K.T - p.R.T).square().sum()
        + (delta @ p.past.T).square().sum()
    )
    (slope,) = torch.autograd.grad(cost, delta)
    assert float(slope.norm()) < TOLERANCE * float((p.R.T @ p.K).norm())


@pytest.mark.parametrize("weight", [0.1, 1.0, 1e4])
def test_T3_primal_is_dual(p: Problem, weight: float) -> None:
    for memory in (None, p.memory):
        primal, dual = (
            joint.least_squares(p.R, p.K, p.factor, weight, memory, form=form) for form in FORMS
        )
        near(dual[1], primal[1])
        assert torch.equal(primal[0], p.R)
    near(joint.least_squares(p.R, p.K, p.factor, weight, p.summed)[1], dual[1])


def test_T3_a_large_weight_leaves_nothing(p: Problem) -> None:
    delta = matrix(joint.least_squares(p.R, p.K, p.factor, 1e14))
    near(1e14 * delta, p.R.T @ solve.whiten(p.K, p.factor), 1e-7)


def test_T3_a_small_weight_is_equality(p: Problem) -> None:
    delta = matrix(joint.least_squares(p.R, p.K, p.factor, 1e-9, form="dual"))
    near(delta, matrix(joint.equality(p.R, p.K, p.factor)))


@pytest.mark.parametrize("form", FORMS)
def test_T3_the_order_of_edits_does_not_matter(p: Problem, form: Form) -> None:
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    one = joint.least_squares(p.R, p.K, p.factor, WEIGHT, p.memory, form=form)
    other = joint.least_squares(p.R[order], p.K[order], p.factor, WEIGHT, p.memory, form=form)
    near(other[1], one[1][order])
    near(matrix(other), matrix(one))


@pytest.mark.parametrize("form", FORMS)
def test_T3_an_edit_twice_weighs_double(p: Problem, form: Form) -> None:
    twice = torch.cat([p.K, p.K[2:3]]), torch.cat([p.R, p.R[2:3]])
    root = torch.ones(U, 1, dtype=torch.float64)
    root[2] = math.sqrt(2)
    near(
        matrix(joint.least_squares(twice[1], twice[0], p.factor, WEIGHT, form=form)),
        matrix(joint.least_squares(root * p.R, root * p.K, p.factor, WEIGHT, form=form)),
    )


@pytest.mark.parametrize("form", FORMS)
def test_T3_one_edit_is_a_shrunk_rome(p: Problem, form: Form) -> None:
    k, r = p.K[0], p.R[0]
    white = solve.whiten(k[None], p.factor)[0]
    g = float(k @ white)
    delta = matrix(joint.least_squares(r[None], k[None], p.factor, WEIGHT, form=form))
    near(delta, torch.outer(r, white) / (WEIGHT + g))
    near(delta @ k, g / (WEIGHT + g) * r)


# ---------------------------------------------------------------------- T4: EMMET


def test_T4_every_edit_holds(p: Problem) -> None:
    delta = matrix(joint.equality(p.R, p.K, p.factor))
    near((p.W + delta) @ p.K.T, p.W @ p.K.T + p.R.T)


def test_T4_nothing_smaller_holds_them(p: Problem) -> None:
    delta = matrix(joint.equality(p.R, p.K, p.factor))
    for seed in range(3):
        other = normal(D, F, seed=10 + seed)

        other = other - other @ torch.linalg.pinv(p.K) @ p.K  # now other K^T = 0
        near(other @ p.K.T, torch.zeros(D, U, dtype=torch.float64))
        inner = torch.trace(delta @ p.C @ other.T)
        size = (torch.trace(delta @ p.C @ delta.T) * torch.trace(other @ p.C @ other.T)).sqrt()
        assert abs(float(inner)) < TOLERANCE * float(size)


def test_T4_one_edit_is_r_rome(p: Problem) -> None:
    value = p.K[:1] @ p.W.T
    expected = matrix(solve.r_rome(value + p.R[:1], value, p.K[:1], p.factor))
    near(matrix(joint.equality(p.R[:1], p.K[:1], p.factor)), expected)


@pytest.mark.parametrize(("weight", "slack"), [(100.0, 0.1), (1.0, 3.0), (1e5, 0.1)])
def test_T4_with_slack_it_is_least_squares(p: Problem, weight: float, slack: float) -> None:
    found = joint.equality(p.R, p.K, p.factor, weight=weight, slack=slack)
    for form in FORMS:
        expected = joint.least_squares(p.R, p.K, p.factor, weight * slack, form=form)
        near(matrix(found), matrix(expected))


def test_T4_without_slack_the_weight_cancels(p: Problem) -> None:
    near(
        matrix(joint.equality(p.R, p.K, p.factor, weight=1e4)),
        matrix(joint.equality(p.R, p.K, p.factor)),
    )


def test_one_key_with_two_targets_is_refused(p: Problem) -> None:
    K = p.K.clone()
    K[4] = K[1]
    with pytest.raises(RowsError, match=r"edits 2 and 5 .* different targets") as caught:
        joint.equality(p.R, K, p.factor)
    assert caught.value.rows == (1, 4)
    assert "slack=0.1" in str(caught.value)
    softened = joint.equality(p.R, K, p.factor, slack=0.1)
    near(matrix(softened), matrix(joint.least_squares(p.R, K, p.factor, 0.1)))


def test_the_same_edit_twice_is_one(p: Problem, caplog: pytest.LogCaptureFixture) -> None:
    K, R = torch.cat([p.K, p.K[1:2]]), torch.cat([p.R, p.R[1:2]])
    with caplog.at_level(logging.WARNING):
        found = joint.equality(R, K, p.factor)
    assert "equalities is singular" in caplog.text
    near(matrix(found), matrix(joint.equality(p.R, p.K, p.factor)))


def test_more_edits_than_inputs_cannot_all_hold(p: Problem) -> None:
    with pytest.raises(EditError, match="41 edits cannot all hold exactly in 40"):
        joint.equality(normal(41, D), normal(41, F, seed=1), p.factor)


def test_a_key_that_combines_others_is_refused(p: Problem) -> None:
    K = p.K.clone()
    K[4] = K[1] - 2 * K[2] + K[3]
    with pytest.raises(EditError, match="combinations of others"):
        joint.equality(p.R, K, p.factor)
    R = p.R.clone()
    R[4] = R[1] - 2 * R[2] + R[3]  # what the others imply
    near(K @ matrix(joint.equality(R, K, p.factor)).T, R)


def test_a_key_of_zero_is_named(p: Problem) -> None:
    K = p.K.clone()
    K[3] = 0
    with pytest.raises(RowsError, match="key of edit 4 is zero"):
        joint.equality(p.R, K, p.factor)


# ---------------------------------------------------------------------- T5: spreading

SHARES = [0.447, 0.276, 0.160, 0.083, 0.034]
"""Of five layers under square-root spreading, from the literature."""


@pytest.mark.parametrize("root", [False, True], ids=["linear", "root"])
@pytest.mark.parametrize("m", [1, 5])
def test_T5_spreading_leaves_nothing_missing(p: Problem, root: bool, m: int) -> None:
    """In a linear network a layer moves the last state by what it answers to its key."""
    target, state = normal(U, D, seed=20), normal(U, D, seed=21)
    missing = (target - state).norm()
    moved = []
    for i in range(m):
        keys = normal(U, F, seed=30 + i)
        residual = (target - state) / (math.sqrt(m - i) if root else m - i)
        step = keys @ matrix(joint.equality(residual, keys, p.factor)).T
        moved.append(float(step.norm() / missing))
        state = state + step
    near(state, target)
    if m == 1:
        assert moved == pytest.approx([1.0])
    else:
        assert moved == pytest.approx(SHARES if root else [0.2] * 5, abs=5e-4)


# ---------------------------------------------------------------------- afterwards


def test_rect_keeps_the_largest_relative_entries() -> None:
    delta, weight = normal(8, 25, seed=1), normal(8, 25, seed=2)
    kept = joint.keep_largest(delta, weight, 0.4)
    chosen = kept != 0
    assert int(chosen.sum()) == 80
    assert torch.equal(kept[chosen], delta[chosen])
    relative = delta.abs() / weight.abs()
    assert float(relative[chosen].min()) > float(relative[~chosen].max())
    assert torch.equal(joint.keep_largest(delta, weight, 1.0), delta)


def test_rect_counts_entries_of_a_zero_weight_as_large() -> None:
    delta = torch.tensor([[1e-3, 1.0], [0.0, 2.0]])
    weight = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    kept = joint.keep_largest(delta, weight, 0.25)
    assert kept.tolist() == [[pytest.approx(1e-3), 0.0], [0.0, 0.0]]
    assert kept.dtype == torch.float32
    # an entry whose weight cancels the 1e-8 exactly, without a change: 0/0
    least = torch.full((2, 2), -1e-8, dtype=torch.float64)
    kept = joint.keep_largest(torch.diag(torch.ones(2, dtype=torch.float64)), least, 0.5)
    assert torch.equal(kept, torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_rect_refuses_a_share_that_is_none(share: float) -> None:
    with pytest.raises(EditError, match="share"):
        joint.keep_largest(torch.ones(2, 2), torch.ones(2, 2), share)


def test_prune_damps_what_exceeds_the_weight() -> None:
    weight = normal(D, F, seed=1)
    U_, _, Vh = torch.linalg.svd(normal(D, F, seed=2), full_matrices=False)
    top = float(torch.linalg.svdvals(weight)[0])
    wanted = torch.linspace(3 * top, 0.2 * top, D, dtype=torch.float64)
    pruned = joint.clip_singular((U_ * wanted) @ Vh, weight)
    damped = torch.where(wanted > top, wanted.log() - math.log(top) + top, wanted)
    near(torch.linalg.svdvals(pruned), damped.sort(descending=True).values)
    near(pruned, (U_ * damped) @ Vh)  # the same singular vectors
    assert 0 < int((wanted > top).sum()) < D


def test_prune_leaves_a_small_update_alone() -> None:
    weight = normal(D, F, seed=1)
    assert torch.equal(joint.clip_singular(weight / 2, weight), weight / 2)


def test_prune_needs_a_weight() -> None:
    with pytest.raises(EditError, match="zero"):
        joint.clip_singular(torch.ones(2, 3), torch.zeros(2, 3))


@contextmanager
def refused(said: str) -> Iterator[None]:
    """Expect a refusal; where signatures are checked at run time (`make shapes`) that is first."""
    with pytest.raises((EditError, TypeError)) as caught:
        yield
    assert not isinstance(caught.value, EditError) or re.search(said, str(caught.value))


@pytest.mark.parametrize("function", [joint.keep_largest, joint.clip_singular])
def test_shapes_have_to_agree(function) -> None:
    with refused("does not fit"):
        function(torch.ones(2, 3), torch.ones(3, 2))


# ---------------------------------------------------------------------- bad input


def test_single_precision_is_raised(p: Problem) -> None:
    B, A = joint.least_squares(p.R.float(), p.K.float(), p.factor, WEIGHT)
    near(B.T @ A, matrix(joint.least_squares(p.R, p.K, p.factor, WEIGHT)), 1e-5)
    assert A.dtype == torch.float64


def test_unfit_rows_are_refused(p: Problem) -> None:
    basis = basis_with(p.C, 12)
    for bad_R, bad_K, said in (
        (p.R[:3], p.K, "one row per edit"),
        (p.R, p.K[:, :-1], "length 39 do not fit"),
        (p.R[0], p.K[0], "one row per edit"),
    ):
        for call in (
            lambda R, K: joint.least_squares(R, K, p.factor, WEIGHT),
            lambda R, K: joint.equality(R, K, p.factor),
            lambda R, K: joint.null_space(R, K, basis, L2),
        ):
            with refused(said):
                call(bad_R, bad_K)


@pytest.mark.parametrize("what", ["key", "target value"])
def test_nan_names_the_edit(p: Problem, what: str) -> None:
    K, R = p.K.clone(), p.R.clone()
    (K if what == "key" else R)[2, 1] = math.nan
    with pytest.raises(RowsError, match=f"the {what} of edit 3 holds NaN") as caught:
        joint.least_squares(R, K, p.factor, WEIGHT)
    assert caught.value.rows == (2,)


def test_weights_below_zero_are_refused(p: Problem) -> None:
    for weight in (0.0, -1.0, math.nan):
        with pytest.raises(EditError, match="above 0"):
            joint.least_squares(p.R, p.K, p.factor, weight)
    with pytest.raises(EditError, match="slack"):
        joint.equality(p.R, p.K, p.factor, slack=-0.1)
    for l2 in (-1.0, math.nan):
        with pytest.raises(EditError, match="negative"):
            joint.null_space(p.R, p.K, basis_with(p.C, 12), l2)


def test_a_singular_system_gets_a_ridge_and_a_notice(
    p: Problem, caplog: pytest.LogCaptureFixture
) -> None:
    """Without l2 an edit given twice makes the system of the edits singular."""
    basis = basis_with(p.C, 12)
    K = torch.cat([p.K[:3], p.K[:3]])
    R = torch.cat([p.R[:3], p.R[:3]])
    with caplog.at_level(logging.WARNING):
        found = matrix(joint.null_space(R, K, basis, 0.0, form="dual"))
    assert "singular in float64" in caplog.text
    near(found, matrix(joint.null_space(R[:3], K[:3], basis, 0.0, form="dual")), 1e-5)
