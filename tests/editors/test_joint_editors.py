"""The family that writes several blocks at once: schedules, memories, refusals, equivalences."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.editors.joint_samples import EXACT, SAME, Make, Tiny, built, deltas, distance
from tests.hooks import hooks
from tests.locate.samples import EDITS
from torch import Tensor

from errata.case import Edit
from errata.editors import joint_reads
from errata.editors.base_joint import JointEditor, Write
from errata.errors import ConfigError, EditError
from errata.locate.contexts import Contexts
from errata.locate.joint import KeyMemory
from errata.locate.keys import edit_keys
from errata.model.lm import LM
from errata.patch import Dense, LowRank, Patch
from errata.patch.deltas import bounded, weight_deltas

PATH = 1e-6
"""Edits that were found under differently rounded, equal weights: Adam amplifies roundings."""

# ---------------------------------------------------------------------- schedules


@pytest.mark.parametrize(("rule", "m", "shares"), [
    ("linear", 5, [0.2] * 5),
    ("sqrt", 5, [0.447, 0.276, 0.160, 0.083, 0.034]),
    ("linear", 1, [1.0]),
    ("sqrt", 1, [1.0]),
])  # fmt: skip
def test_T5_spreading_with_perfect_tracking(rule: Any, m: int, shares: list[float]) -> None:
    class Spread(JointEditor):
        def factors(self, lm: LM, write: Write) -> Any:
            raise NotImplementedError

    Spread.rule = rule
    share = Spread._share.__get__(Spread.__new__(Spread))
    missing, given = 1.0, []
    for position in range(m):  # a block that moves the value by exactly what it is asked to
        given.append(missing * share(m - position))
        missing -= given[-1]
    assert missing == pytest.approx(0.0, abs=1e-15)
    assert given == pytest.approx(shares, abs=6e-4)


def test_values_are_found_once_and_residuals_are_read_again(
    tiny: Tiny, make: Make, seen: list[tuple[str, Any]]
) -> None:
    lm = tiny("gpt2")
    patch = built(make, "memit").edit_one(lm, EDITS[:2])
    assert [kind for kind, _ in seen] == ["value", "write", "write"]
    layer, values = seen[0][1]
    assert layer == 1
    first, second = seen[1][1], seen[2][1]
    # one of two blocks left: half of the residual; then all of what is missing by then
    start = edit_keys(lm, EDITS[:2], Contexts(("",)), [1], hidden=True)[1].hidden
    assert start is not None
    torch.testing.assert_close(
        first.residual, (values.target("block") - start) / 2, rtol=EXACT, atol=EXACT
    )
    with Patch(patch.changes[:1]).applied(lm):
        later = edit_keys(lm, EDITS[:2], Contexts(("",)), [1], hidden=True)[1].hidden
    assert later is not None
    torch.testing.assert_close(
        second.residual, values.target("block") - later, rtol=SAME, atol=SAME
    )


@pytest.mark.parametrize(
    ("dtype", "near", "name"),
    [("float64", 1e-10, "memit"), ("float64", 1e-10, "alphaedit"), ("float32", 1e-4, "alphaedit"),
     ("float64", 1e-10, "pmet"), ("float64", 1e-10, "memit_seq")],
)  # fmt: skip
def test_passes_that_begin_at_the_changed_block_find_the_same(
    tiny: Tiny, make: Make, monkeypatch: pytest.MonkeyPatch, dtype: str, near: float, name: str
) -> None:
    """Two groups, twice in sequence: with all that passes share, and with whole passes."""
    lm = tiny("gpt2", dtype)
    runs: list[int] = []  # of the first block
    found: list[list[Patch]] = []
    counted: list[int] = []
    editor = built(make, name, layers=(0, 1, 2))
    first = editor.edit(lm, [EDITS[:2], EDITS[2:3]])
    with hooks(lm.module(lm.spec.blocks[0]).mlp.register_forward_hook(lambda *_: runs.append(1))):
        for shares in (True, False):
            if not shares:
                monkeypatch.setattr(joint_reads, "first_changed", lambda lm, patches: None)
            runs.clear()
            found.append(editor.edit(lm, [EDITS[3:], EDITS[1:2]], after=first))
            counted.append(len(runs))
    assert counted[0] < counted[1]
    for one, other in zip(*found, strict=True):
        for path, delta in deltas(lm, other).items():
            assert distance(deltas(lm, one)[path], delta) < near
        assert set(one.state) == set(other.state)
        for key, value in other.state.items():
            torch.testing.assert_close(one.state[key], value, rtol=near, atol=near)


# ---------------------------------------------------------------------- PMET


def test_T8_pmet_moves_attention_and_writes_only_the_ffn(
    tiny: Tiny, make: Make, seen: list[tuple[str, Any]]
) -> None:
    lm = tiny("gpt2")
    patch = built(make, "pmet", clamp=0.05).edit_one(lm, EDITS[:2])
    values = seen[0][1][1]
    assert set(values.delta) == {"ffn", "attn"}
    for place in ("ffn", "attn"):
        delta, start = values.delta[place], values.start[place]
        assert float(delta.norm(dim=-1).min()) > 0
        assert bool((delta.norm(dim=-1) <= 0.05 * start.norm(dim=-1) * (1 + 1e-9)).all())
    assert set(deltas(lm, patch)) == {lm.site(0).weight, lm.site(1).weight}
    read = edit_keys(lm, EDITS[:2], Contexts(("",)), [1])[1]
    torch.testing.assert_close(values.start["ffn"], read.value, rtol=SAME, atol=SAME)


def test_T8_the_likelihood_weighs_a_tenth_once_the_target_is_the_answer(
    tiny: Tiny, make: Make, seen: list[tuple[str, Any]]
) -> None:
    lm = tiny("llama")
    losses = []
    for easy in (1.0, 0.1):
        editor = built(
            make, "pmet", contexts="bare", layers=(0,), steps=12, lr=0.5, clamp=1e4,
            easy_factor=easy, stop_kl=0.0, weight_decay=0.0, kl_factor=0.0,
        )  # fmt: skip
        editor.edit_one(lm, EDITS[1:2])
    losses = [event[1].losses[0] for kind, event in seen if kind == "value"]
    # the weight of a step follows from the step before, so the first to differ is a tenth
    first = next(i for i, pair in enumerate(zip(*losses, strict=True)) if pair[0] != pair[1])
    assert losses[1][first] == pytest.approx(0.1 * losses[0][first], rel=EXACT)
    assert first > 1


def test_T8_an_edit_that_is_settled_stops(
    tiny: Tiny, make: Make, seen: list[tuple[str, Any]]
) -> None:
    lm = tiny("llama")
    for stop_kl in (0.0, 1e9):
        shared: dict[str, Any] = {
            "contexts": "bare",
            "steps": 12,
            "lr": 0.5,
            "clamp": 1e4,
            "layers": (0,),
        }
        built(make, "pmet", stop_kl=stop_kl, **shared).edit_one(lm, EDITS[1:2])
    never, soon = [event[1].updates[0] for kind, event in seen if kind == "value"]
    assert soon < never == 11


def test_T8_one_block_and_no_attention_is_memits_formula(
    tiny: Tiny, make: Make, seen: list[tuple[str, Any]]
) -> None:
    lm = tiny("gpt2")
    patch = built(make, "pmet", layers=(1,)).edit_one(lm, EDITS[:2])
    (write,) = [event for kind, event in seen if kind == "write"]
    editor = built(make, "memit", layers=(1,))
    B, A = editor.factors(lm, write)
    delta = deltas(lm, patch)[lm.site(1).weight]
    assert distance(delta.T, B.T @ A) < EXACT


# ---------------------------------------------------------------------- equivalences


def test_emmet_is_memit_with_lambda_w_mu(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    memit = built(make, "memit", layers=(1,), mom2_weight=2.0).edit_one(lm, EDITS[:3])
    emmet = built(make, "emmet", layers=(1,), mom2_weight=20.0, slack=0.1).edit_one(lm, EDITS[:3])
    name = lm.site(1).weight
    assert distance(deltas(lm, emmet)[name], deltas(lm, memit)[name]) < SAME


def test_one_exact_edit_of_emmet_is_r_rome(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    shared: dict[str, Any] = {"contexts": "bare", "steps": 8, "lr": 0.2, "clamp": 1e3}
    emmet = make("emmet", layers=(1,), slack=0.0, **shared).edit_one(lm, EDITS[:1])
    rome = make("r_rome", layer=1, **shared).edit_one(lm, EDITS[:1])
    name = lm.site(1).weight
    # one finds the block's value and the other the FFN's: without clamp and decay, which refer to
    # the size of either, a plain block moves by what its FFN moves
    assert distance(deltas(lm, emmet)[name], deltas(lm, rome)[name]) < SAME


def test_without_memory_memit_seq_is_memit(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    first = built(make, "memit").edit_one(lm, EDITS[:2])
    again = built(make, "memit_seq").edit_one(lm, EDITS[:2])
    for name, delta in deltas(lm, first).items():
        assert torch.equal(delta, deltas(lm, again)[name])
    # the second batch differs: it spares the keys of the first
    plain = built(make, "memit").edit_one(lm, EDITS[2:], after=first)
    spared = built(make, "memit_seq").edit_one(lm, EDITS[2:], after=again)
    name = lm.site(0).weight
    assert distance(deltas(lm, spared)[name], deltas(lm, plain)[name]) > 1e-3


# ---------------------------------------------------------------------- sequences


@pytest.mark.parametrize("name", ["alphaedit", "memit_seq", "alphaedit+blue", "prune", "rect"])
def test_a_sequence_goes_on_from_disk(name: str, tiny: Tiny, make: Make, tmp_path: Path) -> None:
    lm = tiny("gpt2", "float32")
    editor = built(make, name)
    straight = editor.edit_one(lm, EDITS[2:], after=editor.edit_one(lm, EDITS[:2]))
    stored = Patch.load(editor.edit_one(lm, EDITS[:2]).save(tmp_path / "patch"))
    resumed = built(make, name).edit_one(lm, EDITS[2:], after=stored)
    assert straight.state.keys() == resumed.state.keys()
    for key, value in straight.state.items():
        same = torch.equal(value, resumed.state[key]) if isinstance(value, Tensor) else True
        assert same, key
    for key, delta in deltas(lm, straight).items():
        assert torch.equal(delta, deltas(lm, resumed)[key])


def test_the_memory_holds_the_keys_of_the_edited_model(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    editor = built(make, "alphaedit")
    first = editor.edit_one(lm, EDITS[:2])
    both = editor.edit_one(lm, EDITS[2:4], after=first)
    contexts = editor.prepared(lm).contexts
    total = 0.0
    for patch, group in ((first, EDITS[:2]), (both, EDITS[2:4])):
        with patch.applied(lm):
            keys = edit_keys(lm, group, contexts, [1], mean="two_level")[1].mean_key
        total = total + keys.T @ keys
    held = KeyMemory.from_tensors(both.state, "memory.1").total()
    assert held is not None
    assert distance(held, total) < SAME


@pytest.mark.parametrize("name", ["alphaedit", "memit_seq+blue"])
def test_a_memory_goes_on_beyond_the_units_of_the_ffn(name: str, tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    editor = built(make, name, steps=2)
    size = lm.site(0).d_in
    patch = editor.edit_one(lm, EDITS[:1])
    filled = KeyMemory.empty().add(torch.eye(size, dtype=torch.float64)[: size - 2])
    near = {**patch.state}
    for layer in (0, 1):
        near |= filled.tensors(f"memory.{layer}")
    patch = replace(patch, state=near)
    for group in (EDITS[1:2], EDITS[2:4], EDITS[:1]):  # the second one fills it
        patch = editor.edit_one(lm, group, after=patch)
    memory = KeyMemory.from_tensors(patch.state, "memory.1")
    assert memory.count == size + 2
    assert memory.keys is None
    assert "memory.1.keys" not in patch.state


def test_prune_clips_the_total_and_goes_on_from_the_unclipped(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    free, clipped = built(make, "memit", mom2_weight=1e-3), built(make, "prune", mom2_weight=1e-3)
    wanted = free.edit_one(lm, EDITS[2:4], after=free.edit_one(lm, EDITS[:2]))
    patch = clipped.edit_one(lm, EDITS[2:4], after=clipped.edit_one(lm, EDITS[:2]))
    touched = False
    for name, total in deltas(lm, wanted).items():
        limit = float(torch.linalg.matrix_norm(lm.model.get_parameter(name), 2))
        left, sizes, right = torch.linalg.svd(total, full_matrices=False)
        small = torch.where(sizes > limit, sizes.log() - torch.tensor(limit).log() + limit, sizes)
        touched |= bool((sizes > limit).any())
        assert distance(deltas(lm, patch)[name], left * small @ right) < PATH
    assert touched


def test_rect_keeps_the_largest_entries_in_proportion(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    full = built(make, "memit", layers=(1,)).edit_one(lm, EDITS[:2])
    kept = built(make, "rect", layers=(1,), keep=0.25).edit_one(lm, EDITS[:2])
    name = lm.site(1).weight
    delta, rest = deltas(lm, full)[name], deltas(lm, kept)[name]
    mask = rest != 0
    assert float(mask.double().mean()) == pytest.approx(0.25, abs=0.01)
    torch.testing.assert_close(rest[mask], delta[mask], rtol=SAME, atol=SAME)
    size = (delta / (lm.model.get_parameter(name) + 1e-8)).abs()
    assert float(size[mask].min()) >= float(size[~mask].max())


def test_a_patch_stays_within_twice_its_matrices(tiny: Tiny) -> None:
    lm = tiny("gpt2")
    site = lm.site(1)
    g = torch.Generator().manual_seed(0)

    def one(rank: int) -> LowRank:
        B = torch.randn(site.d_out, rank, generator=g, dtype=torch.float64)
        return LowRank(site.path, B, torch.randn(rank, site.d_in, generator=g, dtype=torch.float64))

    # the largest rank whose two factors hold at most twice the numbers of the matrix
    full = 2 * site.d_in * site.d_out // (site.d_in + site.d_out)
    few = Patch((one(full - 2), one(2)))
    assert bounded(lm, few) is few
    over = bounded(lm, Patch((one(full - 1), one(2))))
    assert [type(change) for change in over.changes] == [Dense]
    assert over.changes[0].tensors()["delta"].numel() == site.d_in * site.d_out
    other = LowRank(lm.site(0).path, one(1).B, one(1).A)
    many = Patch((one(1), other, one(200), one(3)))
    small = bounded(lm, many)
    assert [type(change) for change in small.changes] == [Dense, LowRank]
    assert small.changes[1] is other
    for name, delta in weight_deltas(lm, many.changes).items():
        assert distance(weight_deltas(lm, small.changes)[name], delta) < EXACT
    assert bounded(lm, small) is small


# ---------------------------------------------------------------------- refusals


def test_contradicting_edits_are_refused_and_named(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    other = Edit(EDITS[0].prompt, "Atlantis", EDITS[0].subject)
    with pytest.raises(EditError, match="conflict") as caught:
        built(make, "memit").edit_one(lm, [*EDITS[:2], other])
    assert caught.value.edits == (other,)
    patch = built(make, "memit", conflicts="keep").edit_one(lm, [*EDITS[:2], other])
    assert len(patch.edits) == 3
    # one after the other is no conflict: the later one wins
    editor = built(make, "memit")
    editor.edit_one(lm, [other], after=editor.edit_one(lm, EDITS[:1]))


def test_exact_equalities_of_contradicting_edits_are_refused(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    other = Edit(EDITS[0].prompt, "Atlantis", EDITS[0].subject)
    with pytest.raises(EditError) as caught:
        built(make, "emmet", conflicts="keep", slack=0.0, layers=(1,)).edit_one(
            lm, [EDITS[1], EDITS[0], other]
        )
    assert set(caught.value.edits) <= {EDITS[0], other}
    assert caught.value.edits


def test_no_null_space_means_no_update(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    editor = built(make, "alphaedit", nullspace_threshold=1e-30, nullspace_scale="absolute")
    patch = editor.edit_one(lm, EDITS[:1])
    assert patch.state["null_space_rank.1"] == 0
    assert all(float(delta.abs().max()) == 0 for delta in deltas(lm, patch).values())


def test_layers_are_checked(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    with pytest.raises(ConfigError, match="does not exist"):
        built(make, "memit", layers=(0, 99)).edit_one(lm, EDITS[:1])
    with pytest.raises(ConfigError, match="layers"):
        built(make, "memit", layers=())
    assert built(make, "memit", layers=(-1, 0, 0)).edited_layers(lm) == (0, lm.n_layers - 1)
