"""Editing with products in bfloat16: what is written, what is recorded, what stays as it was."""

from __future__ import annotations

import pytest
import torch

import errata
from errata.case import Edit
from errata.editors import get_editor
from errata.evaluation.configuration import _model
from errata.model.lm import LM

EDIT = Edit("The capital of France is", "Rome", subject="France")


@pytest.fixture(scope="module")
def pocket() -> LM:
    return errata.load("pocket")


def taken(lm: LM, patch: errata.Patch) -> float:
    with patch.applied(lm):
        (score,) = lm.score([lm.row_of(EDIT)])
    return sum(score.logprobs) / len(score.logprobs)


@pytest.mark.parametrize(
    "name", [pytest.param("rome", marks=pytest.mark.slow), "memit", "ft", "grace", "t_patcher"]
)
def test_rough_searches_write_the_edit_as_well(pocket: LM, name: str) -> None:
    weights = {key: value.clone() for key, value in pocket.model.state_dict().items()}
    editor = get_editor(name, model="pocket")
    exact = editor.edit_one(pocket, [EDIT])
    pocket.compute = "bfloat16"
    try:
        rough = editor.edit_one(pocket, [EDIT])
    finally:
        pocket.compute = "float32"
    assert all(torch.equal(v, weights[k]) for k, v in pocket.model.state_dict().items())
    assert (exact.meta.get("compute"), rough.meta.get("compute")) == (None, "bfloat16")
    # e-fold: where a search stops, at a loss of a few hundredths, rounding moves it by as much
    assert taken(pocket, rough) == pytest.approx(taken(pocket, exact), abs=0.1)
    again = taken(pocket, editor.edit_one(pocket, [EDIT]))
    assert again == taken(pocket, exact), "the rough search left something behind"


def test_a_run_says_what_it_multiplied_in(pocket: LM) -> None:
    assert "compute" not in _model(pocket)
    pocket.compute = "bfloat16"
    try:
        assert _model(pocket)["compute"] == "bfloat16"
        pocket.compute = "auto"  # pocket is small
        assert "compute" not in _model(pocket)
    finally:
        pocket.compute = "float32"


def test_a_patch_that_nothing_was_searched_for_says_nothing_of_it(pocket: LM) -> None:
    pocket.compute = "bfloat16"
    try:
        made = {
            name: get_editor(name, model="pocket").edit_one(pocket, [EDIT])
            for name in ("ft", "ibke", "rome", "none")
        }
    finally:
        pocket.compute = "float32"
    said = {name for name, patch in made.items() if patch.meta.get("compute") == "bfloat16"}
    assert said == {"ft", "rome"}
