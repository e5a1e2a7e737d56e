"""Memory and module editors beside weight patches and beside each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from tests.locate.samples import EDITS
from torch import Tensor

from errata.editors import editors
from errata.editors.base import Editor
from errata.errors import PatchError
from errata.model.lm import LM
from errata.model.tokens import positions_of
from errata.patch import Change, Patch
from errata.patch.export import to_lora
from errata.patch.folder import same_tensors
from errata.patch.stack import Stack

MODULES = [
    name
    for name, entry in editors.entries.items()
    if entry.is_own and not entry.facts["weights"] and name != "none"
]
WEIGHTS = ["ft", "rome", "mend"]
NEVER = {"serac": {"threshold": 1e6}, "rag": {"threshold": 2.0}}
"""Settings under which the earlier patch leaves answers to the later one: on a random model a
router takes every question."""
CLOSE = 1e-9
"""Float64 logits in a stack against in place."""

Make = Callable[..., Editor]
Tiny = Callable[..., LM]


def answers(lm: LM, patch: Patch, stacked: bool = False) -> Tensor:
    rows = [lm.row(edit.prompt, edit.target) for edit in EDITS]
    batch, at = lm.batch(rows, range(len(rows))), positions_of(rows, range(len(rows)))
    with torch.no_grad():
        if not stacked:
            with patch.applied(lm):
                return lm.logits(batch, at)
        with Stack(lm, [None, patch]):
            return lm.logits(replace(batch, patches=(1,) * len(rows)), at)


def holds(patch: Patch, change: Change) -> bool:
    return any(
        change.describe() == own.describe() and same_tensors(change.tensors(), own.tensors())
        for own in patch.changes
    )


def check(lm: LM, first: Patch, both: Patch) -> None:
    """The later patch holds the earlier one, works in a stack, and leaves nothing behind."""
    assert all(holds(both, change) for change in first.changes)
    assert len(both.changes) > len(first.changes)
    assert both.edits[: len(first.edits)] == first.edits
    before = answers(lm, Patch())
    edited = answers(lm, both)
    torch.testing.assert_close(answers(lm, both, stacked=True), edited, rtol=0, atol=CLOSE)
    assert not torch.equal(edited, answers(lm, first))
    assert torch.equal(answers(lm, Patch()), before)


def test_there_are_nine() -> None:
    assert sorted(MODULES) == [
        "grace", "ibke-retrieval", "ike", "lemoe", "memoir", "rag", "serac", "t_patcher", "wise",
    ]  # fmt: skip


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", MODULES)
def test_a_module_after_a_weight_patch(name: str, weights: str, tiny: Tiny, make: Make) -> None:
    lm = tiny("qwen3")
    first = make(weights).edit_one(lm, EDITS[:1])
    check(lm, first, make(name).edit_one(lm, EDITS[1:2], after=first))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("name", MODULES)
def test_a_weight_patch_after_a_module(name: str, weights: str, tiny: Tiny, make: Make) -> None:
    lm = tiny("qwen3")
    first = make(name, **NEVER.get(name, {})).edit_one(lm, EDITS[:1])
    check(lm, first, make(weights).edit_one(lm, EDITS[1:2], after=first))


@pytest.mark.parametrize(("one", "other"), list(permutations(MODULES, 2)))
def test_one_kind_after_another(one: str, other: str, tiny: Tiny, make: Make) -> None:
    lm = tiny("qwen3")
    first = make(one, **NEVER.get(one, {})).edit_one(lm, EDITS[:1])
    check(lm, first, make(other).edit_one(lm, EDITS[1:2], after=first))


@pytest.mark.parametrize("name", MODULES)
def test_weights_and_modules_add_up_in_any_order(name: str, tiny: Tiny, make: Make) -> None:
    lm = tiny("qwen3")
    module = make(name).edit_one(lm, EDITS[:1])
    weights = make("rome").edit_one(lm, EDITS[1:2])
    left, right = answers(lm, module + weights), answers(lm, weights + module)
    torch.testing.assert_close(left, right, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("name", MODULES)
def test_two_that_were_added_can_be_used_or_are_refused(name: str, tiny: Tiny, make: Make) -> None:
    lm = tiny("qwen3")
    editor = make(name)
    both = editor.edit_one(lm, EDITS[:1]) + editor.edit_one(lm, EDITS[1:2])
    edited = answers(lm, both)
    torch.testing.assert_close(answers(lm, both, stacked=True), edited, rtol=0, atol=CLOSE)
    extended = refused = None
    try:
        extended = editor.edit_one(lm, EDITS[2:3], after=both)
    except PatchError as error:
        refused = error
    assert (extended is not None and len(extended.edits) == 3) or (refused and refused.hint)


@pytest.mark.parametrize("name", MODULES)
def test_no_lora_adapter_carries_it(name: str, tiny: Tiny, make: Make, tmp_path) -> None:
    lm = tiny("qwen3")
    patch = make(name).edit_one(lm, EDITS[:1])
    with pytest.raises(PatchError, match="LoRA cannot carry") as refused:
        to_lora(lm, patch, tmp_path / "adapter")
    assert refused.value.hint
    assert not (tmp_path / "adapter").exists()
