"""Edits of trained editors, joined by ridge regression: against dense systems of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.locate.samples import build
from torch import Tensor

from errata.case import Edit
from errata.editors.base import Editor
from errata.errors import PatchError
from errata.model.lm import LM
from errata.nets.capture import edit_rows
from errata.patch import Dense, Patch
from errata.patch.deltas import weight_deltas

Make = Callable[..., Editor]

CLOSE = 1e-9
"""Float64, relative to the largest entry: the same system, set up in two ways."""

NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn")
EDITS = [
    Edit(f"{name} lives in", town, name)
    for name, town in zip(NAMES, ("Rome", "Oslo", "Lima", "Paris", "Berlin", "Rome"), strict=True)
]
EDITORS = ("ibke", "mend")


@pytest.fixture(scope="module")
def lm() -> LM:
    return build("gpt2")


def delta(lm: LM, patch: Patch) -> Tensor:
    (found,) = weight_deltas(lm, patch.changes).values()
    return found


def close(found: Tensor, want: Tensor) -> bool:
    return float((found - want).abs().max()) <= CLOSE * float(want.abs().max())


def ridge(make: Make, name: str, **settings: Any) -> Any:
    return make(name, matrices="out", joint="ridge", **settings)


@pytest.mark.parametrize("name", EDITORS)
def test_few_edits_are_added_up_bit_for_bit(name: str, lm: LM, make: Make) -> None:
    joined, added = ridge(make, name), make(name, matrices="out", joint="sum")
    added.adopt(lm, _network(joined, lm))
    for count in (1, 2):
        a, b = (e.edit_one(lm, EDITS[:count]) for e in (joined, added))
        assert torch.equal(delta(lm, a), delta(lm, b))
    in_turn = [None, None]
    for edit in EDITS[:2]:
        in_turn = [e.edit_one(lm, [edit], p) for e, p in zip((joined, added), in_turn, strict=True)]
    assert torch.equal(delta(lm, in_turn[0]), delta(lm, in_turn[1]))


def _network(editor: Any, lm: LM) -> Any:
    editor.prepare(lm)
    return editor.network(lm)


@pytest.mark.parametrize("name", EDITORS)
@pytest.mark.parametrize("others", [0.0, 0.5])
def test_the_update_solves_the_dense_system(name: str, others: float, lm: LM, make: Make) -> None:
    """Keys and wanted outputs are read with plain hooks, one edit at a time, in place."""
    editor = ridge(make, name, joint_weight=2.0, joint_others=others)
    edits = EDITS[:5]
    found = delta(lm, editor.edit_one(lm, edits))
    path = editor.sites(lm)[0][1].path
    seen: list[tuple[Tensor, Tensor]] = []

    def run(row: Any) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            lm.model(input_ids=torch.tensor([row.ids]))
        x, y = seen.pop()
        return x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])

    keys, wanted, weights = [], [], []
    handle = lm.module(path).register_forward_hook(lambda m, a, y: seen.append((a[0], y)))
    try:
        for edit, row in zip(edits, edit_rows(lm, edits), strict=True):
            h, y = run(row)
            with editor.edit_one(lm, [edit]).applied(lm):
                _, then = run(row)
            keys.append(h[:-1])
            wanted.append((then - y)[:-1])
            own = torch.full((len(row.ids) - 1,), others, dtype=torch.float64)
            own[list(row.positions)] = 1.0
            weights.append(own)
    finally:
        handle.remove()
    H, V, w = torch.cat(keys), torch.cat(wanted), torch.cat(weights)
    square = (w @ H.square()).sum() / (w.sum() * H.shape[1])
    system = H.T @ (w[:, None] * H) + 2.0 * square * torch.eye(H.shape[1], dtype=H.dtype)
    want = torch.linalg.solve(system, H.T @ (w[:, None] * V))  # stored as inputs x outputs
    assert close(found, want)


@pytest.mark.parametrize("name", EDITORS)
def test_one_matrix_forgets_the_order(name: str, lm: LM, make: Make) -> None:
    """Keys of the lowest matrix do not depend on what is written above: its state adds up."""
    editor = ridge(make, name)
    at_once = delta(lm, editor.edit_one(lm, EDITS))
    for groups in ([[e] for e in EDITS], [EDITS[3:], EDITS[:3]], [EDITS[:4], EDITS[4:]]):
        patch = None
        for group in groups:
            patch = editor.edit_one(lm, group, patch)
        assert patch is not None
        assert len(patch.changes) == 1
        assert len(patch.edits) == len(EDITS)
        assert close(delta(lm, patch), at_once)


def test_groups_side_by_side_are_groups_alone(lm: LM, make: Make) -> None:
    editor = ridge(make, "ibke", layers=(1, 2))
    groups = [EDITS[:4], EDITS[4:5], EDITS[1:]]
    side_by_side = editor.edit(lm, groups)
    for group, patch in zip(groups, side_by_side, strict=True):
        alone = weight_deltas(lm, editor.edit_one(lm, group).changes)
        for path, found in weight_deltas(lm, patch.changes).items():
            assert close(found, alone[path])


def test_a_patch_from_disk_goes_on_as_it_was(lm: LM, make: Make, tmp_path: Path) -> None:
    editor = ridge(make, "ibke", layers=(1, 2))
    for number, count in enumerate((2, 5)):
        patch = editor.edit_one(lm, EDITS[:count])
        loaded = Patch.load(patch.save(tmp_path / str(number)))
        here, there = (editor.edit_one(lm, EDITS[count:], p) for p in (patch, loaded))
        assert [c.path for c in here.changes] == [c.path for c in there.changes]
        for a, b in zip(here.changes, there.changes, strict=True):
            assert all(torch.equal(x, b.tensors()[k]) for k, x in a.tensors().items())


def test_what_others_wrote_stays(lm: LM, make: Make) -> None:
    editor = ridge(make, "ibke")
    (_, site) = editor.sites(lm)[0]
    shape = lm.module(site.path).weight.shape
    foreign = Patch((Dense(site.weight, torch.full(shape, 1e-3, dtype=torch.float64)),))
    patch = editor.edit_one(lm, EDITS[4:], editor.edit_one(lm, EDITS[:4], foreign))
    assert patch.changes[0] is foreign.changes[0]
    assert len(patch.changes) == 2


def test_a_write_that_was_altered_is_not_replaced(lm: LM, make: Make) -> None:
    editor = ridge(make, "ibke")
    patch = editor.edit_one(lm, EDITS[:4])
    with pytest.raises(PatchError, match="not as they were written"):
        editor.edit_one(lm, EDITS[4:], patch.scaled(0.5))
    added = make("ibke", matrices="out", joint="sum")
    added.adopt(lm, editor.network(lm))
    assert len(added.edit_one(lm, EDITS[4:], patch.scaled(0.5)).changes) == 2


def test_it_says_whether_it_is_fit_for_sequences(make: Make) -> None:
    assert make("ibke").lasts
    assert not make("ibke", joint="sum").lasts
    assert not make("malmen").lasts
