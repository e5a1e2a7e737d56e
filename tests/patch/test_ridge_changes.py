"""Changes that keep what each edit asked for: two forms of one solve, and edits taken back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from errata.case import Edit
from errata.errors import PatchError
from errata.patch import LowRank, Patch, Ridge
from errata.patch.changes.ridge import Rows, ridge_factors
from errata.patch.removal import edit_key, find_edit, removable, remove

EXACT = 1e-12
F, D = 9, 4
EDITS = [Edit(f"The capital of {name} is", "Rome", id=name) for name in "ABCDE"]


def rows(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, F, generator=generator, dtype=torch.float64),
        torch.randn(count, D, generator=generator, dtype=torch.float64),
    )


def of_edits(edits: list[Edit], tokens: int) -> list[Rows]:
    return [(edit_key(edit), *rows(tokens, ord(edit.id or "") - 64)) for edit in edits]


def patch_of(edits: list[Edit], tokens: int = 2, path: str = "a.b") -> Patch:
    own = of_edits(edits, tokens)
    return Patch((Ridge.of(path, own, 0.5, "hand"),), tuple(edits))


def same(a: Patch, b: Patch) -> None:
    assert a.edits == b.edits
    assert [change.describe() for change in a.changes] == [c.describe() for c in b.changes]
    for one, other in zip(a.changes, b.changes, strict=True):
        mine, theirs = one.tensors(), other.tensors()
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.mark.parametrize("count", [1, 3, 4, 7, 9, 30])  # few, more than d, more than f
def test_both_forms_are_one_solution(count: int) -> None:
    K, V = rows(count)
    primal = torch.linalg.solve(K.T @ K + 0.5 * torch.eye(F, dtype=K.dtype), K.T @ V).T
    B, A = ridge_factors(K, V, 0.5)
    torch.testing.assert_close(B @ A, primal, rtol=EXACT, atol=EXACT)
    assert B.shape[1] == A.shape[0] == min(count, D)


def test_numbers_by_hand() -> None:
    B, A = ridge_factors(torch.tensor([[1.0, 0], [0, 2]]), torch.tensor([[1.0], [5]]), 1.0)
    torch.testing.assert_close(B @ A, torch.tensor([[0.5, 2.0]]))
    k, v = rows(1)
    B, A = ridge_factors(k, v, 1.0)
    torch.testing.assert_close(B @ A, v.T @ k / (1 + k.square().sum()), rtol=EXACT, atol=0)


def test_the_same_edit_twice_is_no_singular_system() -> None:
    K, V = rows(2)
    twice = ridge_factors(torch.cat([K, K]).float(), torch.cat([V, V]).float(), 1.0)
    assert all(bool(torch.isfinite(part).all()) for part in twice)


def test_a_system_that_is_not_finite_is_refused() -> None:
    K, V = rows(2)
    with pytest.raises(PatchError, match="not finite"):
        ridge_factors(K * float("nan"), V, 1.0)


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_order_does_not_matter(tokens: int) -> None:
    one = patch_of(EDITS, tokens).changes[0]
    other = patch_of(EDITS[::-1], tokens).changes[0]
    assert isinstance(one, LowRank)
    assert isinstance(other, LowRank)
    torch.testing.assert_close(one.B @ one.A, other.B @ other.A, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("tokens", [1, 2, 5])
@pytest.mark.parametrize("out", [[0], [4], [1, 3]])
def test_without_an_edit_it_is_as_if_it_had_never_been(tokens: int, out: list[int]) -> None:
    left = [edit for number, edit in enumerate(EDITS) if number not in out]
    found = remove(patch_of(EDITS, tokens), [EDITS[number] for number in out])
    same(found, patch_of(left, tokens))


def test_in_steps_it_is_what_it_is_at_once() -> None:
    first = patch_of(EDITS[:2]).changes[0]
    assert isinstance(first, Ridge)
    both = replace(patch_of(EDITS), changes=(first.with_rows(of_edits(EDITS[2:], 2)),))
    same(both, patch_of(EDITS))


def test_the_last_edit_takes_the_change_along() -> None:
    assert remove(patch_of(EDITS[:1]), [1]).is_empty


@pytest.mark.parametrize("tokens", [1, 5])
def test_saved_and_loaded_edits_can_be_taken_back(tokens: int, tmp_path: Path) -> None:
    loaded = Patch.load(patch_of(EDITS, tokens).save(tmp_path / "patch"))
    same(loaded, patch_of(EDITS, tokens))
    same(remove(loaded, ["B"]), patch_of([e for e in EDITS if e.id != "B"], tokens))


def test_composed_patches_keep_it_and_other_changes_stay() -> None:
    other = LowRank("a.b", torch.ones(D, 1).double(), torch.ones(1, F).double())
    both = patch_of(EDITS[:3]) + Patch((other,), (EDITS[3],))
    assert removable(both) == [True, True, True, False]
    assert both.compact().changes[-1] is both.changes[0]
    assert sum(isinstance(change, Ridge) for change in both.compact().changes) == 1
    found = remove(both, ["A"])
    assert found.changes[1] is other
    same(replace(found, changes=found.changes[:1], edits=found.edits[:2]), patch_of(EDITS[1:3]))
    with pytest.raises(PatchError, match="depend on the edits before them") as caught:
        remove(both, ["D"])
    assert caught.value.hint is not None
    assert "--rebuild" in caught.value.hint


def test_an_edit_that_another_editor_made_as_well_stays() -> None:
    """Which of two equal edits is whose is not known, so neither is said to be gone."""
    other = LowRank("a.b", torch.ones(D, 1).double(), torch.ones(1, F).double())
    both = Patch((other,), (EDITS[0],)) + patch_of(EDITS[:2])
    assert removable(both) == [False, False, True]


def test_scaled_nothing_can_be_taken_back() -> None:
    half = patch_of(EDITS).scaled(0.5)
    assert removable(half) == [False] * 5


def test_edits_by_name() -> None:
    patch = patch_of(EDITS)
    for name in ("C", "#3", "3", 3, EDITS[2].prompt, EDITS[2]):
        assert find_edit(patch, name) == 2
    with pytest.raises(PatchError, match="no edit 'F'"):
        find_edit(patch, "F")
    with pytest.raises(PatchError, match="no edit '#6'"):
        find_edit(patch, "#6")
    with pytest.raises(PatchError, match="2 edits of this patch"):
        find_edit(patch_of([EDITS[0], EDITS[1], EDITS[0]]), "A")
    with pytest.raises(PatchError, match="no edit is named"):
        remove(patch, [])


def test_damaged_rows_are_refused(tmp_path: Path) -> None:
    change = patch_of(EDITS).changes[0]
    entry, tensors = change.describe(), change.tensors()
    for broken in ({"rows": [1, 2]}, {"rows": "many"}, {"holds": [1]}, {"ridge": None}):
        with pytest.raises(PatchError, match=r"a\.b"):
            Ridge.from_entry({**entry, **broken}, tensors)
