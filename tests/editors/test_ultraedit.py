"""UltraEdit: its oracles (lifelong.md 14.1), warm-up, and edits free of order."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.locate.samples import EDITS
from tests.patch.test_ridge_changes import same
from torch import Tensor

from errata.case import Edit
from errata.editors.base import Editor
from errata.editors.ultraedit.editor import UltraEdit
from errata.editors.ultraedit.signals import signals_of
from errata.errors import ConfigError, EditError
from errata.model.lm import LM
from errata.patch import LowRank, Patch
from errata.patch.deltas import weight_deltas
from errata.patch.removal import remove

EXACT = 1e-11
Make = Callable[..., Editor]
Tiny = Callable[..., LM]
FREE: dict[str, Any] = {"order": "free", "layers": (1, 2)}
PLAIN: dict[str, Any] = {"warmup": "off", "layers": (1, 2)}


def total(lm: LM, patch: Patch) -> dict[str, Tensor]:
    return weight_deltas(lm, patch.changes)


def alike(lm: LM, one: Patch, other: Patch, tolerance: float = EXACT) -> bool:
    a, b = total(lm, one), total(lm, other)
    assert a.keys() == b.keys()
    return all(float((a[name] - b[name]).norm()) <= tolerance * float(b[name].norm()) for name in b)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_one_turn_by_its_formula(kind: str, tiny: Tiny, make: Make) -> None:
    """The primal system of the paper, on signals of autograd, statistics by torch."""
    lm = tiny(kind)
    editor = make("ultraedit", **PLAIN, lr=1e-3, ridge=1.0)
    patch = editor.edit_one(lm, EDITS)
    assert isinstance(editor, UltraEdit)
    sites = editor.sites(lm)
    signals = signals_of(lm, sites, [lm.row_of(edit) for edit in EDITS])
    pooled = torch.cat([torch.cat(own[n], 1) for n in range(len(sites)) for own in signals])
    for number, (_, site) in enumerate(sites):
        H = torch.cat([own[number][0] for own in signals])
        G = torch.cat([own[number][1] for own in signals])
        standard = (torch.cat([H, G], 1) - pooled.mean(0)) / pooled.std(0)
        f = H.shape[1]
        V = -1e-3 * standard[:, :f].square().sum(-1, keepdim=True) * standard[:, f:]
        D = torch.linalg.solve(H.T @ H + torch.eye(f, dtype=H.dtype), H.T @ V)
        found = total(lm, patch)[site.weight]
        found = found if site.transposed else found.T
        torch.testing.assert_close(found, D, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_signals_are_those_of_the_summed_loss(kind: str, tiny: Tiny, make: Make) -> None:
    lm = tiny(kind)
    sites = make("ultraedit", layers=(1,)).sites(lm)  # type: ignore[attr-defined]
    ((_, site),) = sites
    row = lm.row_of(Edit("The capital of France is", "Rome and Berlin", "France"))
    ((h, g),) = signals_of(lm, sites, [row])[0]
    weight = lm.model.get_parameter(site.weight)
    weight.requires_grad_()
    try:
        logits = lm.model(torch.tensor([row.ids])).logits[0, list(row.positions)]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(row.labels), reduction="sum")
        (grad,) = torch.autograd.grad(loss, weight)
    finally:
        weight.requires_grad_(False)
    assert len(h) == len(row.labels) > 1
    # tokens of the prompt have gradients as well, which the method leaves out
    every = g.T @ h
    grad = grad.T if site.transposed else grad
    assert torch.nn.functional.cosine_similarity(every.ravel(), grad.ravel(), dim=0) > 0.3


def test_it_is_exactly_low_rank(tiny: Tiny, make: Make) -> None:
    lm = tiny("llama")
    patch = make("ultraedit", **PLAIN).edit_one(lm, EDITS)
    tokens = sum(len(lm.row_of(edit).labels) for edit in EDITS)
    assert all(isinstance(c, LowRank) and c.rank <= tokens for c in patch.changes)


def test_turns_are_not_one_turn(tiny: Tiny, make: Make) -> None:
    """Statistics run on and later turns see the edited model: nobody may join turns."""
    lm = tiny("gpt2")
    editor = make("ultraedit", **PLAIN)
    twice = editor.edit_one(lm, EDITS[2:], editor.edit_one(lm, EDITS[:2]))
    assert not alike(lm, twice, editor.edit_one(lm, EDITS), 1e-3)


def test_the_order_within_a_turn_does_not_matter(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    editor = make("ultraedit", **PLAIN)
    assert alike(lm, editor.edit_one(lm, EDITS), editor.edit_one(lm, EDITS[::-1]), 1e-9)


def test_a_mini_batch_need_not_divide_a_turn(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    whole = make("ultraedit", **PLAIN).edit_one(lm, EDITS)
    split = make("ultraedit", **PLAIN, batch_size=2).edit_one(lm, EDITS)
    assert alike(lm, whole, split, 0.0)  # it is not even looked at
    released = make("ultraedit", **PLAIN, batch_size=2, compat=True)
    if all(len(lm.row_of(edit).labels) > 1 for edit in EDITS):
        released.edit_one(lm, EDITS).check_finite()


def test_going_on_from_disk_gives_the_same_bits(tiny: Tiny, make: Make, tmp_path: Path) -> None:
    lm = tiny("gpt2")
    editor = make("ultraedit", **PLAIN, whiten=True)
    first = editor.edit_one(lm, EDITS[:2])
    loaded = Patch.load(first.save(tmp_path / "first"))
    one, other = (editor.edit_one(lm, EDITS[2:], patch) for patch in (first, loaded))
    assert alike(lm, one, other, 0.0)


# ---------------------------------------------------------------------- warm-up


def test_a_single_edit_is_warmed_up(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    patch = make("ultraedit", layers=(1, 2)).edit_one(lm, EDITS[:1])
    patch.check_finite()
    assert int(patch.state["ultraedit.80x32.n"]) > 100
    assert {change.path for change in patch.changes} == {lm.site(1).path, lm.site(2).path}


def test_a_single_token_without_warm_up_is_refused(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    words = filter(str.strip, (lm.text([token]) for token in range(len(lm.tokenizer))))
    edits = (Edit("The capital of France is", word.strip()) for word in words)
    one = next(edit for edit in edits if len(lm.row_of(edit).labels) == 1)
    with pytest.raises(EditError, match="warmup=stats"):
        make("ultraedit", warmup="off", layers=(1,)).edit_one(lm, [one])
    with pytest.raises(EditError, match="order at turns"):
        make("ultraedit", order="free", layers=(1,)).edit_one(lm, [one])


def test_warm_up_facts_can_be_written_or_only_counted(
    tiny: Tiny, make: Make, tmp_path: Path
) -> None:
    lm = tiny("gpt2")
    file = tmp_path / "facts.jsonl"
    facts = [{"prompt": f"The mayor of {x} is", "target": f"Anna {x}"} for x in ("Oslo", "Lima")]
    file.write_text("\n".join(map(json.dumps, facts)))
    how = {"layers": (1,), "warmup_data": str(file)}
    counted = make("ultraedit", **how, warmup="stats").edit_one(lm, EDITS)
    written = make("ultraedit", **how, warmup="edits").edit_one(lm, EDITS)
    assert len(counted.changes) == 1
    assert len(written.changes) == 2
    # facts alone are what a turn of them writes
    alone = make("ultraedit", layers=(1,), warmup="off").edit_one(
        lm, [Edit(fact["prompt"], fact["target"]) for fact in facts]
    )
    first = Patch(written.changes[:1])
    assert alike(lm, first, alone)


# ---------------------------------------------------------------------- free of order


@pytest.mark.parametrize("whiten", [False, True])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_free_of_order_turns_do_not_matter(kind: str, whiten: bool, tiny: Tiny, make: Make) -> None:
    lm = tiny(kind)
    editor = make("ultraedit", **FREE, whiten=whiten)
    at_once = editor.edit_one(lm, EDITS)
    in_turns = editor.edit_one(lm, EDITS[2:], editor.edit_one(lm, EDITS[:2]))
    same(in_turns, at_once)
    assert alike(lm, editor.edit_one(lm, EDITS[::-1]), at_once, 1e-9)


def test_free_of_order_is_one_published_turn(tiny: Tiny, make: Make) -> None:
    """With one matrix, whose statistics are its own."""
    lm = tiny("llama")
    free = make("ultraedit", order="free", layers=(1,)).edit_one(lm, EDITS)
    turn = make("ultraedit", warmup="off", layers=(1,)).edit_one(lm, EDITS)
    assert alike(lm, free, turn)


def test_an_edit_removed_is_an_edit_never_made(tiny: Tiny, make: Make, tmp_path: Path) -> None:
    lm = tiny("gpt2")
    editor = make("ultraedit", **FREE)
    patch = Patch.load(editor.edit_one(lm, EDITS).save(tmp_path / "all"))
    for out in range(len(EDITS)):
        left = [edit for number, edit in enumerate(EDITS) if number != out]
        same(remove(patch, [EDITS[out]]), editor.edit_one(lm, left))


def test_free_of_order_beside_another_patch(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    other = make("ft", layers=(2,)).edit_one(lm, EDITS[:1])
    editor = make("ultraedit", **FREE)
    both = editor.edit_one(lm, EDITS[3:], editor.edit_one(lm, EDITS[1:3], other))
    assert both.changes[0] is other.changes[0]
    same(Patch(both.changes[1:]), Patch(editor.edit_one(lm, EDITS[1:]).changes))


def test_free_of_order_has_no_warm_up(tiny: Tiny, make: Make) -> None:
    with pytest.raises(ConfigError, match="no warm-up"):
        make("ultraedit", **FREE, warmup="stats").edit_one(tiny("gpt2"), EDITS)


@pytest.mark.parametrize("name", ["ultraedit", "rome+simie"])
def test_free_of_order_contradictions_are_named(name: str, tiny: Tiny, make: Make) -> None:
    """Across turns as within one: no edit wins, so both would be spoilt without a word."""
    lm = tiny("gpt2")
    how = FREE if name == "ultraedit" else {"layer": 1}
    editor = make(name, **how)
    patch = editor.edit_one(lm, EDITS[:2])
    others = [replace(edit, target="Oslo") for edit in EDITS[:2]]
    with pytest.raises(EditError) as caught:
        editor.edit_one(lm, [EDITS[2], *others], patch)
    assert caught.value.edits == tuple(others)
    for word in ("2 of 3 edits", repr(EDITS[0].prompt), repr(EDITS[1].target), "'Oslo'"):
        assert word in caught.value.message
    make(name, **how, conflicts="keep").edit_one(lm, others, patch).check_finite()
    editor.edit_one(lm, others, patch.without(1, 2)).check_finite()


def test_contradictions_among_ten_thousand_are_found_in_one_pass() -> None:
    edits = [Edit(f"The capital of {n} is", f"town {n}") for n in range(10_000)]
    bad = [replace(edits[n], target="Rome") for n in range(0, 10_000, 1000)]
    with pytest.raises(EditError) as caught:
        UltraEdit().check_together([*edits, *bad])
    assert caught.value.edits == tuple(bad)
    assert "10 of 10010 edits" in caught.value.message
    assert "and 5 more" in caught.value.message


# ---------------------------------------------------------------------- matrices


def test_inner_matrices(tiny: Tiny, make: Make) -> None:
    lm = tiny("llama")
    editor = make("ultraedit", layers=(), gate_layers=(1,), up_layers=(2,), warmup="off")
    patch = editor.edit_one(lm, EDITS)
    names = [change.path.rpartition(".")[2] for change in patch.changes]
    assert names == ["gate_proj", "up_proj"]
    plain = tiny("gpt2")
    patch = make("ultraedit", layers=(), up_layers=(1,)).edit_one(plain, EDITS)
    assert patch.changes[0].path.endswith("c_fc")
    with pytest.raises(ConfigError, match="no gate matrix"):
        make("ultraedit", layers=(), gate_layers=(1,)).edit_one(plain, EDITS)
    with pytest.raises(ConfigError, match="no matrix"):
        make("ultraedit", layers=()).edit_one(plain, EDITS)


def test_the_rule_by_depth(tiny: Tiny) -> None:
    lm = tiny("gpt2")
    layers = UltraEdit().edited_layers(lm)
    assert layers
    assert layers[-1] == lm.n_layers - 1
