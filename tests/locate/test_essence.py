"""The essence row: no more of it is run than is read, and often none of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.locate.samples import EDITS

from errata.case import Edit
from errata.locate.contexts import given_contexts
from errata.locate.essence import run_rows
from errata.locate.rows import Savings, edit_rows
from errata.locate.values import ValueSettings, optimise_values
from errata.model.lm import LM

CONTEXTS = given_contexts(["{}", "I think so. {}"])
INSIDE = Edit("The capital of France is", "Rome", subject="France")
FIRST = Edit("France has the capital", "Rome", subject="France")
# a strong KL term, so that a wrong essence would move the value
SETTINGS = ValueSettings(steps=6, clamp=4.0, kl_factor=2.0)


def rows_of(lm: LM, *edits: Edit) -> list:
    return [row for edit in edits for row in edit_rows(lm, edit, CONTEXTS)]


def test_a_prompt_that_begins_with_its_subject_holds_the_essence(
    tiny: Callable[..., LM],
) -> None:
    lm = tiny("gpt2")
    given = rows_of(lm, FIRST, INSIDE)
    rows, owner, read = run_rows(lm, given, 3, spare=True)
    assert owner == [0, 0, 1, 1, 1]
    assert read == [0, 4]  # the bare prompt's row, and one of its own
    assert rows[:4] == [*given[:2], *given[3:5]]
    end = given[5].subject_last + 1
    assert rows[4].ids == given[5].ids[:end]
    assert len(given[5].ids) > end


def test_without_the_saving_every_row_is_run_whole(tiny: Callable[..., LM]) -> None:
    lm = tiny("gpt2")
    given = rows_of(lm, FIRST, INSIDE)
    assert run_rows(lm, given, 3, spare=False) == (given, [0, 0, 0, 1, 1, 1], [2, 5])


@pytest.mark.parametrize(("dtype", "near"), [("float64", 1e-10), ("float32", 1e-4)])
def test_values_of_both_kinds_of_edits_are_the_same(
    tiny: Callable[..., LM], dtype: str, near: float
) -> None:
    lm = tiny("qwen3", dtype)
    edits = [FIRST, INSIDE, *EDITS]
    plain, spared = (
        optimise_values(
            lm, edits, CONTEXTS, 1, SETTINGS, savings=Savings(answer_only=answer_only)
        )
        for answer_only in (False, True)
    )  # fmt: skip
    assert plain.updates == spared.updates
    gap = (plain.delta["ffn"] - spared.delta["ffn"]).norm(dim=-1)
    assert float((gap / plain.delta["ffn"].norm(dim=-1)).max()) < near
    torch.testing.assert_close(spared.start["ffn"], plain.start["ffn"], rtol=near, atol=near)
