"""Oracle T9 and what is REP's own: adapters, gates, training, patches with them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.editors.conftest import *  # noqa: F403 -- the fixtures that build small editors
from tests.locate.samples import EDITS
from torch import Tensor

from errata.case import Edit
from errata.editors import editors, get_editor
from errata.editors.base import Editor
from errata.errors import ConfigError, PatchError
from errata.locate.contexts import given_contexts
from errata.locate.keys import edit_keys
from errata.locate.solve import factor, unit, whiten
from errata.model.lm import LM
from errata.model.passes import module_at
from errata.model.tokens import positions_of
from errata.patch import Module, Patch
from errata.patch.export import to_lora, to_merged
from errata.patch.stack import Stack
from errata.strategies.rep import data, training
from errata.strategies.rep.adapter import KIND, Adapters, GatedAdapters, merge, split

HOSTS = ("rome", "r_rome", "memit", "emmet")
STEPS = (0, 10, 20, 40, 80)
ALONE = 1e-8
"""Float64: groups together against alone, as for every editor."""
SINGLE = 2e-4
"""Float32, after ten steps of Adam, whose first steps are of size lr however small the gradient:
relative difference of adapters trained together and alone."""
EXACT = 1e-6
"""Float32: a few roundings of numbers of size one."""
CLOSE = 1e-3
"""Consistency: relative length by which the original key may move once trained."""

SIZE, RANK = 40, 3
INNER = SIZE // 10
CONTEXTS = ("{}", "I think so. {}")
QUICK = {"rep_contexts": CONTEXTS, "rep_rank": 4, "rep_steps": 3, "rep_words": 20, "rep_long": 2}
"""Small settings of REP, besides those that every editor gets."""

Make = Callable[..., Editor]
Tiny = Callable[..., LM]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def adapters(count: int = 1, seed: int = 0, B: float = 0.3) -> Adapters:
    """Adapters with a second factor, as if they were trained."""
    fresh = Adapters.new(SIZE, RANK, INNER, [generator(seed + i) for i in range(count)])
    return replace(fresh, B=B * torch.randn(fresh.B.shape, generator=generator(99)))


def network(stacked: Adapters, threshold: float = 0.9, scale: float = 1.0) -> GatedAdapters:
    built = stacked.module("somewhere", scale, threshold).build()
    assert isinstance(built, GatedAdapters)
    return built


def keys(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, SIZE, generator=generator(seed))


def rep(make: Make, host: str, **settings: Any) -> Editor:
    return make(f"{host}+rep", **{**QUICK, **settings})


def opened(patch: Patch, threshold: float = 0.0) -> Patch:
    """The same patch with other thresholds; 0: every gate is open, 1: none is."""
    changes = [
        replace(c, weights={**c.weights, "threshold": torch.full_like(c.weights["b2"], threshold)})
        if getattr(c, "name", None) == KIND
        else c
        for c in patch.changes
    ]
    return replace(patch, changes=tuple(changes))


def modules(patch: Patch) -> tuple[Module, ...]:
    return split(patch)[1]


def logits(lm: LM, patch: Patch, edits: list[Edit] = EDITS) -> Tensor:
    rows = [lm.row(edit.prompt, edit.target) for edit in edits]
    batch = lm.batch(rows, range(len(rows)))
    with torch.no_grad(), patch.applied(lm):
        return lm.logits(batch, positions_of(rows, range(len(rows))))


def all_logits(lm: LM, patch: Patch, prompt: str) -> Tensor:
    with torch.no_grad(), patch.applied(lm):
        return lm.run(lm.batch([lm.row(prompt)], [0])).logits[0]


# ---------------------------------------------------------------------- the network (T9)


def test_T9_a_new_adapter_changes_nothing() -> None:
    fresh = Adapters.new(SIZE, RANK, INNER, [generator(), generator(1)])
    own = keys(2, 5)
    kept = (torch.rand(own.shape, generator=generator()) < 0.9) / 0.9
    assert torch.equal(fresh.move(own, 1.0), own)
    assert torch.equal(fresh.move(own, 1.0, kept), own)
    assert torch.equal(network(fresh, threshold=0.0)(own), own)


def test_T9_parameters_are_counted_as_published() -> None:
    count = sum(
        tensor.numel() for tensor in Adapters.new(SIZE, 32, INNER, [generator()]).tensors().values()
    )
    assert count == 2 * SIZE * 32 + SIZE * INNER + INNER + INNER + 1


def test_the_start_is_that_of_torchs_linear_layers() -> None:
    fresh = Adapters.new(2000, 32, 200, [generator()])
    linear, gate = torch.nn.Linear(2000, 32), torch.nn.Linear(200, 1)
    for mine, theirs in [
        (fresh.A, linear.weight),
        (fresh.W1, linear.weight),
        (fresh.w2, gate.weight),
    ]:
        assert mine.abs().max() <= theirs.abs().max() * 1.05
        assert float(mine.std()) == pytest.approx(float(theirs.detach().std()), rel=0.15)


def test_the_network_is_the_published_formula() -> None:
    """Against torch's own layers, one adapter at a time, with a gate that is open for some."""
    own = adapters()
    mlp = torch.nn.Sequential(
        torch.nn.Linear(SIZE, INNER), torch.nn.GELU(), torch.nn.Linear(INNER, 1), torch.nn.Sigmoid()
    )
    with torch.no_grad():
        for parameter, value in zip(
            mlp.parameters(), (own.W1[0], own.b1[0], own.w2, own.b2), strict=True
        ):
            parameter.copy_(value)
    k = keys(30)
    with torch.no_grad():
        gate = mlp(k)
    threshold = float(gate.sort(0).values[14:16].mean())  # between two of them
    proj = 0.5 * (k @ own.A[0].T) @ own.B[0].T
    soft = own.move(k[None], 0.5)[0]
    torch.testing.assert_close(soft, k + gate * proj, rtol=EXACT, atol=EXACT)
    hard = network(own, threshold, 0.5)(k)
    torch.testing.assert_close(hard, k + (gate > threshold) * proj, rtol=EXACT, atol=EXACT)
    shut = gate[:, 0] <= threshold
    assert shut.any()
    assert not shut.all()
    assert torch.equal(hard[shut], k[shut])


def test_closed_gates_return_the_same_tensor() -> None:
    k = keys(4, 6)
    assert network(adapters(3), threshold=1.0)(k) is k


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_types_keep_theirs(dtype: torch.dtype) -> None:
    k = keys(6).to(dtype)
    moved = network(adapters(), threshold=0.0)(k)
    assert moved.dtype == dtype
    assert not torch.equal(moved, k)


def test_the_widest_open_gate_moves_the_key() -> None:
    three, k = adapters(3), 3 * keys(50)
    three = replace(three, b2=torch.zeros(3))
    alone = [Adapters(*(t[i : i + 1] for t in three.tensors().values())) for i in range(3)]
    gates = torch.stack([a.gate(k[None])[0] for a in alone], 1)
    best = gates.argmax(1)
    assert len(best.unique()) == 3
    moved = torch.stack([network(a, threshold=0.0)(k) for a in alone])
    torch.testing.assert_close(
        network(three, threshold=0.0)(k), moved[best, torch.arange(50)], rtol=EXACT, atol=EXACT
    )


def test_many_adapters_are_gated_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    many, k = network(adapters(7), threshold=0.5), keys(9)
    whole = many.gates(k)
    monkeypatch.setattr("errata.strategies.rep.adapter.GATED_AT_ONCE", 2 * 9 * INNER)
    torch.testing.assert_close(many.gates(k), whole, rtol=EXACT, atol=EXACT)


def test_merged_adapters_act_as_they_are() -> None:
    """Of other rank, gate and threshold too: each keeps its own."""
    small = adapters().module("here", 1.0, 0.4)
    large = Adapters.new(SIZE, 5, 9, [generator(5), generator(6)])
    large = replace(large, B=torch.randn(large.B.shape, generator=generator(7)))
    there = large.module("there", 1.0, 0.4)
    both = merge([small, there, large.module("here", 2.0, 0.6)])
    assert [m.path for m in both] == ["here", "there"]
    assert torch.equal(both[1].weights["A"], there.weights["A"])
    built, k = both[0].build(), keys(40)
    assert isinstance(built, GatedAdapters)
    assert built.count == 3
    parts = torch.cat([adapters().gate(k[None]), large.gate(k[None].expand(2, -1, -1))]).T
    torch.testing.assert_close(built.gates(k), parts, rtol=EXACT, atol=EXACT)
    limits = torch.tensor([0.4, 0.6, 0.6])
    for own, number in zip(parts, built.chosen(k).tolist(), strict=True):
        open_ = own.sigmoid() > limits
        want = int(torch.where(open_, own, -torch.inf).argmax()) if open_.any() else -1
        assert number == want


# ---------------------------------------------------------------------- training on clusters


def cluster(count: int, seed: int) -> tuple[data.Keys, Tensor]:
    """Keys of one fact around a centre, with other tokens around the origin, and its target."""
    centre = keys(1, seed=seed)
    near = centre + 0.5 * keys(count, seed=seed + 1)
    return data.Keys(centre[0], near, keys(80, seed=seed + 2)), unit(keys(1, seed=seed + 3)).float()


CLUSTERS = [cluster(20, 10 * n) for n in range(3)]
TARGETS = torch.cat([target for _, target in CLUSTERS])


def settings(**values: Any) -> data.RepSettings:
    return data.RepSettings(**{"rep_rank": 8, **values})


def trained(which: list[int], **values: Any) -> Adapters:
    return training.train(
        [EDITS[i] for i in which], [CLUSTERS[i][0] for i in which], TARGETS[which],
        layer=1, moment=None, ordinary=None, settings=settings(**values),
    )  # fmt: skip


def similarity(own: Adapters) -> list[float]:
    """Mean similarity of each cluster's moved keys to its target, by the soft gate of training."""
    moved = own.move(torch.stack([k.perturbed for k, _ in CLUSTERS]), 32 / 8)
    return torch.einsum("nbf,nf->nb", unit(moved), TARGETS).mean(1).tolist()


def test_T9_similarity_grows_over_training() -> None:
    by_step = [similarity(trained([0, 1, 2], rep_steps=n, rep_cons=1.0)) for n in STEPS]
    for earlier, later in pairwise(by_step):
        assert all(b >= a for a, b in zip(earlier, later, strict=True))
    assert all(last > first + 0.3 for first, last in zip(by_step[0], by_step[-1], strict=True))


def drift(own: Adapters) -> Tensor:
    """By how much of its length the original key moves, for each cluster."""
    native = torch.stack([k.original for k, _ in CLUSTERS])
    moved = own.move(native[:, None], 32 / 8)[:, 0]
    return (moved - native).norm(dim=1) / native.norm(dim=1)


def test_T9_the_original_key_stays_where_it_is() -> None:
    held = drift(trained([0, 1, 2], rep_steps=80))
    free = drift(trained([0, 1, 2], rep_steps=80, rep_cons=0.0))
    assert bool((held < CLOSE).all()), held
    assert bool((free > 0.1).all()), free


def test_together_is_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"rep_cls": 1.0, "rep_spread": 0.1, "rep_others": 8}
    together = trained([0, 1, 2], **values)
    alone = [trained([i], **values) for i in range(3)]
    monkeypatch.setattr(training, "TRAINED_AT_ONCE", 1)
    in_parts = trained([0, 1, 2], **values)
    for name, tensor in together.tensors().items():
        single = torch.cat([one.tensors()[name] for one in alone])
        scale = float(tensor.abs().max())
        assert float((tensor - single).abs().max()) <= SINGLE * scale, name
        assert torch.equal(single, in_parts.tensors()[name]), name


def test_training_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = trained([0, 1])
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    for name, tensor in trained([0, 1]).tensors().items():
        assert torch.equal(tensor, first.tensors()[name])
    assert not torch.equal(trained([0, 1], rep_seed=1).A, first.A)


def test_the_losses_are_their_formulas() -> None:
    """One adapter, written out with torch's own functions in float64."""
    own = Adapters(*(t.double() for t in adapters(2).tensors().values()))
    rows, others = keys(2, 6).double(), keys(2, 9, seed=4).double()
    root = torch.randn(SIZE, 60, generator=generator(3)).double()
    moment = factor(root @ root.T / 60)
    target = keys(2, seed=8).double()
    chosen = settings(
        rep_rank=RANK, rep_alpha=2 * RANK, rep_agg=1, rep_cons=1, rep_spread=1, rep_kl=1, rep_cls=1
    )
    found = training.losses(own, training.KeyBatch(rows, others), target, moment, chosen)
    inverse = torch.linalg.inv(moment.matrix())
    for n in range(2):

        def gate(k: Tensor, n: int = n) -> Tensor:
            inner = torch.nn.functional.gelu(k @ own.W1[n].T + own.b1[n])
            return inner @ own.w2[n] + own.b2[n]

        def hat(k: Tensor, n: int = n) -> Tensor:
            return k + gate(k, n).sigmoid()[:, None] * 2 * (k @ own.A[n].T) @ own.B[n].T

        want = {
            "agg": -torch.cosine_similarity(hat(rows[n, :-1]), target[n : n + 1]).mean()
            * target[n].norm(),
            "cons": torch.nn.functional.mse_loss(hat(rows[n])[-1], rows[n, -1]),
            "spread": (hat(others[n]) @ target[n]).abs().mean(),
            "kl": (others[n] @ inverse @ (hat(others[n]) - others[n]).T).abs().mean(),
            "cls": -(
                gate(rows[n, :-1]).sigmoid().log().mean()
                + (1 - gate(others[n]).sigmoid()).log().mean()
            )
            / 2,
        }
        assert found.keys() == want.keys()
        for name, value in want.items():
            torch.testing.assert_close(found[name][n], value, rtol=1e-10, atol=1e-12, msg=name)
    for kind in ("whiten", "mse"):
        other = chosen.model_copy(update={"rep_kl_kind": kind})
        drift = training.losses(own, training.KeyBatch(rows, others), target, moment, other)["kl"]
        away = own.move(others, 2.0)
        want = (
            -torch.stack([(o @ inverse @ a.T).mean() for o, a in zip(others, away, strict=True)])
            if kind == "whiten"
            else (away - others).square().mean((1, 2))
        )
        torch.testing.assert_close(drift, want, rtol=1e-10, atol=1e-12)


def test_terms_of_weight_zero_are_not_computed() -> None:
    batch = training.KeyBatch(keys(1, 3), None)
    found = training.losses(adapters(), batch, TARGETS[:1], None, settings())
    assert found.keys() == {"agg", "cons"}


def test_rows_are_taken_in_order_and_shuffled_anew() -> None:
    stream = training.shuffled(10, 4, generator())
    taken = torch.cat([next(stream) for _ in range(5)])
    assert sorted(taken[:10].tolist()) == sorted(taken[10:].tolist()) == list(range(10))
    assert len(next(training.shuffled(3, 15, generator()))) == 15


def test_a_taught_gate_opens_where_it_should() -> None:
    own = trained([0, 1, 2], rep_cls=1.0, rep_cons=0.0, rep_steps=150, rep_lr=5e-3)
    built = network(own)
    for n, (k, _) in enumerate(CLUSTERS):
        assert (built.chosen(k.perturbed) == n).float().mean() > 0.9
        assert (built.chosen(k.others) == -1).float().mean() > 0.9


# ---------------------------------------------------------------------- the rows


def test_the_forms_of_an_edit(tiny: Tiny) -> None:
    lm = tiny("gpt2")
    edit = Edit("Paris: where is Rome Berlin? In", "x", "Rome Berlin", subject_rephrases=("Paris",))
    texts = [f"word{i} more words {i}" for i in range(30)]
    chosen = data.RepSettings(rep_words=12, rep_long=3)
    forms = data.forms_of(lm, edit, given_contexts(CONTEXTS), texts, chosen)
    names = ("Rome Berlin", "Paris", "Berlin Rome")
    said = [lm.text(row.ids) for row in forms.perturbed]
    assert said[:-3] == [
        f"{prefix}Paris: where is {name}? In" for name in names for prefix in ("", "I think so. ")
    ]
    assert forms.long == 3
    assert all(text.endswith(f" {edit.prompt}") and "word" in text for text in said[-3:])
    for i, row in enumerate(forms.perturbed[:-3]):
        # the name where the subject stood, not the same word at the start
        assert lm.text(row.ids[: row.subject_last + 1]).endswith(f"where is {names[i // 2]}")
    released = data.forms_of(
        lm,
        edit,
        given_contexts(CONTEXTS),
        texts,
        chosen.model_copy(update={"rep_compat": "released"}),
    )
    assert released.long == 0
    assert released.perturbed == forms.perturbed[:-3]
    bare = data.forms_of(
        lm, edit, given_contexts(CONTEXTS), texts,
        chosen.model_copy(update={"rep_subjects": False, "rep_long": 0}),
    )  # fmt: skip
    assert bare.perturbed == forms.perturbed[:2]


def test_keys_are_what_the_projection_sees(tiny: Tiny) -> None:
    lm = tiny("llama")
    rows = [lm.row(edit.prompt) for edit in EDITS]
    at = [[0, 2], [1], [], [len(rows[3].ids) - 1, 0]]
    found = data.keys_at(lm, rows, at, 1)
    for row, positions, own in zip(rows, at, found, strict=True):
        seen: list[Tensor] = []
        handle = module_at(lm, 1, "ffn").register_forward_pre_hook(
            lambda m, a, s=seen: s.append(a[0])
        )
        with torch.no_grad():
            lm.run(lm.batch([row], [0]))
        handle.remove()
        torch.testing.assert_close(own, seen[0][0][positions], rtol=1e-10, atol=1e-10)


def test_texts_that_name_the_subject_are_no_counterexamples(tiny: Tiny) -> None:
    texts = ["I love paris.", "Rome is here.", "The mayor."]
    read = data.Ordinary.read(tiny("gpt2"), texts, 1)
    assert len(read.keys) == len(read.text_of) == sum(len(tiny("gpt2").row(t).ids) for t in texts)
    edit = Edit("The mayor of Paris is", "x", "Paris", subject_rephrases=("Rome",))
    assert set(read.text_of[read.without(edit)].tolist()) == {2}


# ---------------------------------------------------------------------- editing


@pytest.mark.parametrize("host", HOSTS)
def test_T9_closed_gates_are_the_host_bit_for_bit(host: str, tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2", "float32")
    groups = [EDITS[:1], EDITS[1:3]]
    for plain, patch in zip(
        make(host).edit(lm, groups), rep(make, host).edit(lm, groups), strict=True
    ):
        rest, own = split(patch)
        assert [m.path for m in own] == [lm.site(1).path]
        assert own[0].where == "input"
        for mine, theirs in zip(rest.changes, plain.changes, strict=True):
            for name, tensor in theirs.tensors().items():
                assert torch.equal(mine.tensors()[name], tensor)
        assert torch.equal(logits(lm, opened(patch, 1.0)), logits(lm, plain))
        assert torch.equal(logits(lm, rest), logits(lm, plain))  # hooks removed
        assert not torch.equal(logits(lm, opened(patch)), logits(lm, plain))


def test_one_adapter_per_edit_each_with_its_own_parameters(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2", "float32")
    (patch,) = rep(make, "rome").edit(lm, [EDITS[:3]])
    (module,) = modules(patch)
    f = lm.site(1).d_in
    inner = f // 10
    assert len(module.weights["A"]) == 3
    counted = sum(t.numel() for name, t in module.weights.items() if name != "threshold")
    assert counted == 3 * (2 * f * 4 + f * inner + inner + inner + 1)
    assert all(t.dtype == torch.float32 for t in module.weights.values())


def same(one: Patch, other: Patch) -> None:
    for left, right in zip(modules(one), modules(other), strict=True):
        assert left.path == right.path
        for name, tensor in left.weights.items():
            scale = float(tensor.abs().max())
            diff = float((tensor - right.weights[name]).abs().max())
            assert diff <= ALONE * scale, (name, diff, scale)


@pytest.mark.parametrize("host", ["rome", "memit"])
def test_groups_together_give_what_they_give_alone(host: str, tiny: Tiny, make: Make) -> None:
    lm = tiny("qwen3")
    groups = [EDITS[:1], EDITS[1:3], EDITS[3:]]
    chosen = {"layers": (0, 1)} if host == "memit" else {}
    editor = rep(make, host, rep_cls=1.0, rep_others=8, **chosen)
    for group, patch in zip(groups, editor.edit(lm, groups), strict=True):
        same(patch, editor.edit_one(lm, group))


@pytest.mark.parametrize("host", HOSTS)
def test_one_after_the_other_is_one_module(host: str, tiny: Tiny, make: Make) -> None:
    """Adapters of a sequence are those of one group: the host and they see native keys."""
    lm = tiny("gpt2")
    editor = rep(make, host)
    first = editor.edit_one(lm, EDITS[:1])
    both = editor.edit_one(lm, EDITS[1:2], after=opened(first))
    (module,) = modules(both)
    assert len(module.weights["A"]) == 2
    assert both.edits == tuple(EDITS[:2])
    plain = make(host).edit_one(lm, EDITS[1:2], after=make(host).edit_one(lm, EDITS[:1]))
    assert torch.equal(logits(lm, opened(both, 1.0)), logits(lm, plain))
    (apart,) = modules(editor.edit_one(lm, EDITS[1:2]))
    same(
        Patch((apart,)),
        Patch((replace(module, weights={n: t[1:] for n, t in module.weights.items()}),)),
    )


def test_T9_an_open_gate_acts_from_its_token_on(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2", "float32")
    prompt = EDITS[0].prompt
    patch = rep(make, "rome").edit_one(lm, EDITS[:1])
    bare, (module,) = split(patch)
    native = data.keys_at(lm, [lm.row(prompt)], [range(len(lm.row(prompt).ids))], 1)[0]
    at = 3
    # a gate that opens for the key of one token alone: w2 GELU(W1 k + b1) with W1 that key
    others = (native @ native[at]).scatter(0, torch.tensor([at]), -torch.inf).max()
    W1 = torch.zeros_like(module.weights["W1"])
    W1[0, 0] = native[at]
    b1 = torch.zeros_like(module.weights["b1"])
    b1[0, 0] = -(others + native[at] @ native[at]) / 2
    gate = {"W1": W1, "b1": b1, "w2": torch.ones_like(b1), "b2": torch.full((1,), -1e-3)}
    chosen = replace(
        module,
        weights={**module.weights, **gate, "threshold": torch.full((1,), 0.5)},
    )
    fired = chosen.build().chosen(native)
    assert (fired >= 0).nonzero()[:, 0].tolist() == [at]
    with_it = all_logits(lm, replace(patch, changes=(*bare.changes, chosen)), prompt)
    without = all_logits(lm, bare, prompt)
    assert torch.equal(with_it[:at], without[:at])
    assert not torch.allclose(with_it[at], without[at])


def test_adapters_act_in_place_stacked_and_in_generation(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    patches = [opened(p) for p in rep(make, "rome", rep_lr=0.5).edit(lm, [EDITS[:1], EDITS[1:2]])]
    prompts = [edit.prompt for edit in EDITS[:2]]
    rows = [lm.row(edit.prompt, edit.target) for edit in EDITS[:2]]
    with Stack(lm, patches) as stack:
        stacked = lm.score(rows, stack=stack, groups=[0, 1])
        said = lm.generate(prompts, 5, stack=stack, groups=[0, 1])
        base = lm.generate(prompts, 5, stack=stack, groups=[-1, -1])
    assert base == lm.generate(prompts, 5)
    for i, patch in enumerate(patches):
        with patch.applied(lm):
            assert lm.generate(prompts[i : i + 1], 5) == said[i : i + 1]
            (alone,) = lm.score(rows[i : i + 1])
        assert alone.logprobs == pytest.approx(stacked[i].logprobs, rel=1e-9)
        with split(patch)[0].applied(lm):
            (closed,) = lm.score(rows[i : i + 1])
            silent = lm.generate(prompts[i : i + 1], 5)
        assert closed.logprobs != pytest.approx(alone.logprobs, rel=1e-3)
        if i == 0:
            assert silent != said[:1]


def test_T9_inference_is_deterministic_and_without_dropout(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2", "float32")
    patch = opened(rep(make, "rome", rep_dropout=0.5).edit_one(lm, EDITS[:1]))
    assert torch.equal(logits(lm, patch), logits(lm, patch))
    assert not any(m.training for c in modules(patch) for m in c.build().modules())


LOADER = """
import sys, torch
from errata.patch import Patch, Module
patch = Patch.load(sys.argv[1])
assert not any(name.startswith("errata.strategies") for name in sys.modules)
(module,) = [c for c in patch.changes if isinstance(c, Module)]
network = module.build()
k = torch.ones(2, module.weights["A"].shape[2])
print(float(network(k).double().sum()))
"""


def test_a_patch_is_loaded_where_nobody_edits(tiny: Tiny, make: Make, tmp_path: Path) -> None:
    lm = tiny("gpt2", "float32")
    patch = opened(rep(make, "rome").edit_one(lm, EDITS[:2]))
    patch.save(tmp_path / "patch")
    loaded = Patch.load(tmp_path / "patch")
    for mine, theirs in zip(loaded.changes, patch.changes, strict=True):
        assert mine.describe() == theirs.describe()
        for name, tensor in theirs.tensors().items():
            assert torch.equal(mine.tensors()[name], tensor)
    assert torch.equal(logits(lm, loaded), logits(lm, patch))
    run = subprocess.run(
        [sys.executable, "-c", LOADER, str(tmp_path / "patch")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    (module,) = modules(patch)
    want = module.build()(torch.ones(2, module.weights["A"].shape[2])).double().sum()
    assert float(run.stdout) == pytest.approx(float(want), rel=1e-5)


def test_a_patch_with_adapters_is_no_weight_change(tiny: Tiny, make: Make, tmp_path: Path) -> None:
    lm = tiny("gpt2", "float32")
    patch = rep(make, "rome").edit_one(lm, EDITS[:1])
    assert not editors.load("rome+rep").weights
    for write in (to_lora, to_merged):
        with pytest.raises(PatchError, match="rep module"):
            write(lm, patch, tmp_path / write.__name__)


# ---------------------------------------------------------------------- targets


def spy_targets(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    seen: list[Tensor] = []
    real = training.train

    def train(edits, keys, target, *args, **more):
        seen.append(target)
        return real(edits, keys, target, *args, **more)

    monkeypatch.setattr("errata.strategies.rep.strategy.train", train)
    return seen


@pytest.mark.parametrize("host", HOSTS)
def test_targets_are_what_the_update_answers_to(
    host: str, tiny: Tiny, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny("gpt2")
    seen = spy_targets(monkeypatch)
    editor = rep(make, host)
    patch = editor.edit_one(lm, EDITS[:1])
    ((target,),) = seen
    at = editor.prepared(lm)
    mean_key = edit_keys(lm, EDITS[:1], at.contexts, [1], mean=editor.mean)[1].mean_key
    white = unit(whiten(mean_key, at.moments[1]))[0]
    torch.testing.assert_close(target, white, rtol=1e-9, atol=1e-12)
    # the row space of a single edit's update is that direction
    row = patch.changes[0].A[0]
    assert abs(float(unit(row.double()[None])[0] @ target)) == pytest.approx(1, abs=1e-9)
    rep(make, host, rep_compat="released").edit_one(lm, EDITS[:1])
    raw = mean_key[0] if host in {"memit", "emmet"} else white
    torch.testing.assert_close(seen[1][0].double(), raw.double(), rtol=1e-9, atol=1e-12)
    rep(make, host, rep_target="key").edit_one(lm, EDITS[:1])
    torch.testing.assert_close(seen[2][0], unit(mean_key)[0], rtol=1e-9, atol=1e-12)


def test_higher_blocks_are_read_with_lower_adapters_at_work(
    tiny: Tiny, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny("gpt2")
    seen = spy_targets(monkeypatch)
    natives: list[list[data.Keys]] = []
    real = data.read_forms

    def read(*args):
        natives.append(real(*args))
        return natives[-1]

    monkeypatch.setattr("errata.strategies.rep.strategy.read_forms", read)
    values = {"layers": (0, 1), "rep_lr": 0.1}
    closed = rep(make, "memit", rep_threshold=1.0, **values).edit_one(lm, EDITS[:1])
    open_ = rep(make, "memit", rep_threshold=0.0, **values).edit_one(lm, EDITS[:1])
    assert [len(seen), len(natives)] == [4, 4]
    assert torch.equal(seen[1], seen[3])  # the host's keys are native whatever the gates do
    torch.testing.assert_close(natives[0][0].perturbed, natives[2][0].perturbed)
    assert not torch.allclose(natives[1][0].perturbed, natives[3][0].perturbed)
    host = make("memit", layers=(0, 1)).edit_one(lm, EDITS[:1])
    assert torch.equal(logits(lm, closed), logits(lm, host))
    assert [m.path for m in modules(open_)] == [lm.site(0).path, lm.site(1).path]


def test_only_some_hosts() -> None:
    assert {name for name in editors.pairs if name.endswith("+rep")} == {f"{h}+rep" for h in HOSTS}
    with pytest.raises(ConfigError, match="rep does not work on ft"):
        get_editor("ft+rep")
    assert KIND == "rep"


def test_short_texts_make_short_contexts(caplog: pytest.LogCaptureFixture) -> None:
    assert data.enough_words(["a b c", "d"], 3) == 3
    assert not caplog.records
    assert data.enough_words(["a b c", "d"], 9) == 4
    assert "4 words" in caplog.text
