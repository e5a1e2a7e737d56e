"""Oracle T6: AlphaEdit's update, and the memory of earlier edits; float64, relative 1e-8."""

from __future__ import annotations

import logging
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tests.locate.problems import (
    FORMS,
    L2,
    PAST,
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
from torch import Tensor

from errata.errors import EditError, PatchError
from errata.locate import joint
from errata.locate.joint import KeyMemory
from errata.locate.spectrum import NullSpace, null_space_of, spectrum


@pytest.fixture(scope="module")
def p() -> Problem:
    return problem()


# ---------------------------------------------------------------------- T6: AlphaEdit

RANKS = [12, 30]  # held as a basis and as its complement


@pytest.fixture(params=RANKS)
def basis(p: Problem, request: pytest.FixtureRequest) -> NullSpace:
    found = basis_with(p.C, request.param)
    assert found.rank == request.param
    assert found.complement == (request.param > F / 2)
    return found


def all_forms(p: Problem, basis: NullSpace, l2: float = L2) -> dict[str, Tensor]:
    """The update with memory, by every way to compute it."""
    found = {
        form: matrix(joint.null_space(p.R, p.K, basis, l2, p.memory, form=form)) for form in FORMS
    }
    found["summed"] = matrix(joint.null_space(p.R, p.K, basis, l2, p.summed))
    return found


def test_T6_all_forms_agree_with_the_published_one(p: Problem, basis: NullSpace) -> None:
    P, S = basis.projector(), p.past.T @ p.past
    for found in all_forms(p, basis).values():
        near(found, joint.null_space_as_published(p.R, p.K, P, L2, S))
    zero = torch.zeros_like(S)
    for form in FORMS:
        found = matrix(joint.null_space(p.R, p.K, basis, L2, form=form))
        near(found, joint.null_space_as_published(p.R, p.K, P, L2, zero))


def test_T6_without_l2_the_system_is_regular_in_the_null_space(
    p: Problem, basis: NullSpace, caplog: pytest.LogCaptureFixture
) -> None:
    """As many keys as the null space has dimensions hold exactly; outside of it nothing lies."""
    K, R = normal(basis.rank, F, seed=70), normal(basis.rank, D, seed=71)
    for form in FORMS:
        near(K @ matrix(joint.null_space(R, K, basis, 0.0, form=form)).T, R, 1e-6)
    past = normal(F, F, seed=72)
    memory = KeyMemory(None, past.T @ past, F)
    listed = KeyMemory(past, None, F)
    near(
        matrix(joint.null_space(p.R, p.K, basis, 0.0, memory)),
        matrix(joint.null_space(p.R, p.K, basis, 0.0, listed, form="primal")),
    )
    assert not caplog.records


def test_T6_the_gradient_vanishes(p: Problem, basis: NullSpace) -> None:
    P, S = basis.projector(), p.past.T @ p.past
    for delta in all_forms(p, basis).values():
        gradient = (delta @ p.K.T - p.R.T) @ p.K @ P + delta @ S @ P + L2 * delta
        assert float(gradient.norm()) < TOLERANCE * float((p.R.T @ p.K).norm())


def test_T6_the_update_stays_in_the_null_space(p: Problem, basis: NullSpace) -> None:
    P = basis.projector()
    _, vectors = spectrum(p.C)
    for delta in all_forms(p, basis).values():
        near(delta @ P, delta)
        assert float((delta @ vectors[:, basis.rank :]).norm()) < TOLERANCE * float(delta.norm())
        cost = float(torch.trace(delta @ p.C @ delta.T))
        assert 0 < cost <= basis.threshold * float(delta.norm()) ** 2


def everything(size: int) -> NullSpace:
    """P = I."""
    eye = torch.eye(size, dtype=torch.float64)
    return NullSpace(eye[:, :0], True, size, math.inf, torch.zeros(size, dtype=torch.float64))


def test_T6_without_projection_it_is_least_squares(p: Problem) -> None:
    past = KeyMemory(None, WEIGHT * p.C, F)
    found = matrix(joint.null_space(p.R, p.K, everything(F), 1e-13, past))
    near(found, matrix(joint.least_squares(p.R, p.K, p.factor, WEIGHT)))
    eye = torch.eye(F, dtype=torch.float64)
    as_basis = NullSpace(eye, False, F, math.inf, eye.diagonal())
    near(matrix(joint.null_space(p.R, p.K, as_basis, 0.0, past)), found)


def test_T6_more_memory_moves_past_keys_less(p: Problem, basis: NullSpace) -> None:
    moved = []
    for times in (0, 1, 10, 100, 1000):
        past = KeyMemory(None, times * p.past.T @ p.past, PAST)
        delta = matrix(joint.null_space(p.R, p.K, basis, L2, past))
        moved.append(float((delta @ p.past.T).norm()))
    assert all(b < 0.9 * a for a, b in pairwise(moved))


def test_T6_no_null_space_no_update(p: Problem, caplog: pytest.LogCaptureFixture) -> None:
    values, vectors = spectrum(p.C)
    with caplog.at_level(logging.WARNING):
        none = null_space_of(values, vectors, 0.0)
        B, A = joint.null_space(p.R, p.K, none, L2, p.memory)
    assert none.rank == 0
    assert not none.projector().any()
    assert not (B.T @ A).any()
    assert A.shape == (U, F)
    assert "the update is zero" in caplog.text


def test_float32_solves_are_the_weak_point() -> None:
    """Why everything here is float64: the released precision on a moment of condition 1e7."""
    A = normal(F, 3 * F, seed=1) * torch.logspace(0, -3.5, F, dtype=torch.float64)[:, None]
    C = A @ A.T / (3 * F)
    K, R = normal(U, F, seed=3) @ C * 100, normal(U, D, seed=4)
    exact, single = (
        joint.null_space_as_published(R, K, torch.eye(F, dtype=dtype), 1e-6, C)
        for dtype in (torch.float64, torch.float32)
    )
    ours = matrix(joint.null_space(R, K, everything(F), 1e-6, KeyMemory(None, C, F)))
    near(ours, exact)
    assert float((single - exact).norm() / exact.norm()) > 1e-5


# ---------------------------------------------------------------------- memory


def test_memory_is_the_sum_of_products_of_what_was_added(p: Problem) -> None:
    memory = KeyMemory.empty()
    batches = [normal(7, F, seed=40 + i) for i in range(9)]
    every = torch.cat(batches)
    assert memory.total() is None
    for i, batch in enumerate(batches, 1):
        before = memory
        memory = before.add(batch)
        assert memory.count == 7 * i == before.count + 7
        total = memory.total()
        assert total is not None
        near(total, every[: 7 * i].T @ every[: 7 * i], 1e-12)
        # bounded: keys while they are fewer than f, their sum afterwards
        assert (memory.gram is None) == (7 * i < F)
        assert (memory.keys is None) == (7 * i >= F)


def test_the_switch_of_memory_does_not_change_solutions(p: Problem) -> None:
    basis = basis_with(p.C, 12)
    few, one = normal(F - 1, F, seed=50), normal(1, F, seed=51)
    held = KeyMemory.empty().add(few)
    assert held.keys is not None
    full = held.add(one)
    assert full.gram is not None
    listed = KeyMemory(torch.cat([few, one]), None, F)
    for form in FORMS:
        near(
            matrix(joint.least_squares(p.R, p.K, p.factor, WEIGHT, listed, form=form)),
            matrix(joint.least_squares(p.R, p.K, p.factor, WEIGHT, full)),
        )
        near(
            matrix(joint.null_space(p.R, p.K, basis, L2, listed, form=form)),
            matrix(joint.null_space(p.R, p.K, basis, L2, full)),
        )
    with pytest.raises(EditError, match="dual form needs the keys"):
        joint.least_squares(p.R, p.K, p.factor, WEIGHT, full, form="dual")


@pytest.mark.parametrize("count", [0, 5, F + 3])
def test_memory_survives_a_file(p: Problem, tmp_path: Path, count: int) -> None:
    from safetensors.torch import load_file, save_file

    memory = KeyMemory.empty().add(normal(count, F, seed=60).float())
    save_file(memory.tensors("memory.3"), tmp_path / "m.safetensors")
    stored = load_file(tmp_path / "m.safetensors")
    assert stored["memory.3.count"].dtype == torch.int64
    again = KeyMemory.from_tensors(stored, "memory.3")
    assert again.count == count
    for one, other in ((memory.keys, again.keys), (memory.gram, again.gram)):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            assert one.dtype == torch.float64
            assert torch.equal(one, other)
    assert KeyMemory.from_tensors(stored, "memory.4").count == 0


@pytest.mark.parametrize(
    "change",
    [
        {"m.count": torch.tensor(4)},
        {"m.count": torch.tensor([5, 5])},
        {"m.gram": torch.eye(F)},
        {"m.keys": torch.zeros(5)},
        {"m.keys": None},
        {"m.keys": None, "m.gram": torch.zeros(2, F)},
    ],
)
def test_a_state_that_contradicts_itself_is_refused(change: dict[str, Tensor | None]) -> None:
    stored = KeyMemory.empty().add(normal(5, F)).tensors("m") | change
    with pytest.raises(PatchError, match="contradicts itself"):
        KeyMemory.from_tensors({k: v for k, v in stored.items() if v is not None}, "m")


def test_memory_of_another_layer_is_refused(p: Problem) -> None:
    other = KeyMemory.empty().add(normal(3, F + 1))
    summed = KeyMemory(None, torch.eye(F + 1, dtype=torch.float64), F + 1)
    for memory in (other, summed):
        with pytest.raises(EditError, match="another layer"):
            memory.add(p.K)
        with pytest.raises(EditError, match="another layer"):
            joint.least_squares(p.R, p.K, p.factor, WEIGHT, memory)
        with pytest.raises(EditError, match="another layer"):
            joint.null_space(p.R, p.K, basis_with(p.C, 12), L2, memory)
