"""LEMoE on models: training, growth, what routes, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.editors.test_lemoe_experts import plain_answer, plain_logits
from tests.locate.samples import EDITS
from torch import Tensor

import errata
from errata.case import Edit
from errata.editors import get_editor
from errata.editors.base import Editor
from errata.editors.lemoe.editor import Lemoe
from errata.editors.lemoe.experts import NAMES, Experts
from errata.editors.lemoe.training import Work
from errata.errors import EditError, PatchError
from errata.model.lm import LM
from errata.model.passes import capture
from errata.patch import Module, Patch
from errata.patch.export import to_lora
from errata.patch.stack import Stack
from errata.testing.measured import likelihood, low_rank

SAME = 1e-10
"""Float64: the same number by another way."""

Make = Callable[..., Editor]
Tiny = Callable[..., LM]

MORE = [
    Edit("The river through Vienna is", "Danube"),
    Edit("Peter plays the", "violin"),
]


def lemoe(make: Make, **settings: Any) -> Lemoe:
    editor = make("lemoe", **{"rank": 3, "init": 0.2, "batch": 2, "lr": 0.02, **settings})
    assert isinstance(editor, Lemoe)
    return editor


def experts_of(patch: Patch) -> dict[str, Tensor]:
    (module,) = [change for change in patch.changes if isinstance(change, Module)]
    return dict(module.weights)


# ---------------------------------------------------------------------- training


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
def test_a_new_expert_follows_adam_by_autograd(kind: str, tiny: Tiny, make: Make) -> None:
    """Two experts are there; the third is trained by torch.optim on hooks with plain loops."""
    lm, steps, lr = tiny(kind), 4, 0.02
    editor = lemoe(make, steps=steps, lr=lr)
    before = editor.edit_one(lm, EDITS)
    after = experts_of(editor.edit_one(lm, MORE, after=before))
    old = experts_of(before)
    drawn = editor._drawn(lm, 1, MORE, 2)
    new = {name: drawn[name].clone().requires_grad_(name != "keys") for name in NAMES}
    optimizer = torch.optim.Adam([new[name] for name in NAMES[:6]], lr)
    rows = [lm.row(edit.prompt, edit.target) for edit in MORE]
    given: list[Tensor] = []

    def keep(module: Any, args: Any) -> None:
        given[:] = [args[0]]

    def add(module: Any, args: Any, output: Tensor) -> Tensor:
        x, t = given[0][0], {n: torch.cat([old[n], new[n][None]]) for n in NAMES}
        weights = plain_logits(t, x[:prompt].mean(0)).softmax(0)
        return output + torch.stack([plain_answer(t, weights, token) for token in x])

    handles = [
        lm.module(lm.spec.ffn_in[1][0].path).register_forward_pre_hook(keep),
        lm.module(lm.site(1).path).register_forward_hook(add),
    ]
    for _ in range(steps):
        optimizer.zero_grad()
        for row in rows:
            prompt = row.prompt_length
            out = lm.run(lm.batch([row], [0])).logits[0, list(row.positions)]
            loss = torch.nn.functional.cross_entropy(out, torch.tensor(row.labels))
            (loss / len(rows)).backward()
        optimizer.step()
    for handle in handles:
        handle.remove()
    for name in NAMES:
        assert torch.equal(after[name][:2], old[name]), name  # earlier experts never change
        torch.testing.assert_close(after[name][2], new[name].detach(), rtol=1e-7, atol=1e-9)
    assert torch.equal(after["keys"][2], drawn["keys"])  # an anchor, not trained


def test_a_group_in_batches_is_a_sequence_of_batches(
    tiny: Tiny, make: Make, tmp_path: Path
) -> None:
    lm, everything = tiny("qwen3", "float32"), [*EDITS, *MORE]
    for top_k in ("all", 1):
        editor = lemoe(make, top_k=top_k)
        whole = editor.edit_one(lm, everything)
        patch: Patch | None = None
        seen: dict[str, Tensor] = {}
        for start in (0, 2, 4):
            patch = editor.edit_one(lm, everything[start : start + 2], after=patch)
            folder = patch.save(tmp_path / f"{top_k}-{start}")
            patch = Patch.load(folder)  # a sequence goes on from disk, to the same bits
            now = experts_of(patch)
            for name, tensor in seen.items():
                assert torch.equal(now[name][: len(tensor)], tensor), name
            seen = now
            assert len(now["keys"]) == start // 2 + 1
            assert len(patch.changes) == 1
        assert patch is not None
        assert patch.edits == whole.edits == tuple(everything)
        for name, tensor in experts_of(whole).items():
            torch.testing.assert_close(seen[name], tensor, rtol=1e-5, atol=1e-6)


def test_groups_that_are_done_keep_their_values(tiny: Tiny, make: Make) -> None:
    lm = tiny("qwen3")
    groups = [[edit] for edit in EDITS]
    before = lemoe(make, steps=2).edit_one(lm, MORE)
    after = [None, before, None, before]
    full = lemoe(make, steps=15, stop_loss=0.0).edit(lm, groups, after=after)
    losses = [loss_under(lm, patch, group) for patch, group in zip(full, groups, strict=True)]
    limit = sorted(losses)[2] + 0.3  # one group never gets there
    editor = lemoe(make, steps=15, stop_loss=limit)
    together = editor.edit(lm, groups, after=after)
    stopped = 0
    for i, group in enumerate(groups):
        found = experts_of(together[i])
        if losses[i] > limit:
            torch.testing.assert_close(found, experts_of(full[i]), rtol=1e-7, atol=1e-9)
        else:
            assert losses[i] < loss_under(lm, together[i], group) < limit
            stopped += 1
        alone = experts_of(editor.edit_one(lm, group, after=after[i]))
        torch.testing.assert_close(found, alone, rtol=1e-7, atol=1e-9)
    assert stopped == 3


def loss_under(lm: LM, patch: Patch, edits: Sequence[Edit]) -> float:
    with patch.applied(lm):
        return -likelihood(lm, edits)


def test_new_experts_depend_on_edits_number_and_seed_alone(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    editor = lemoe(make, steps=1, lr=1e-30)
    alone = experts_of(editor.edit_one(lm, EDITS[:2]))
    among = experts_of(editor.edit(lm, [MORE, EDITS[:2]])[1])
    other = experts_of(lemoe(make, steps=1, lr=1e-30, seed=1).edit_one(lm, EDITS[:2]))
    again = experts_of(editor.edit_one(lm, EDITS[:2], after=editor.edit_one(lm, EDITS[:2])))
    for name in NAMES:
        assert torch.equal(alone[name], among[name])
        assert not torch.equal(alone[name], other[name])
        assert not torch.equal(again[name][0], again[name][1])  # the same edits, another key
    wide = experts_of(lemoe(make, steps=1, init=0.5, rank=32).edit_one(lm, EDITS[:2]))
    assert float(wide["r1"].std()) == pytest.approx(0.5, rel=0.1)


def test_one_expert_of_many_answers_with_top_1(tiny: Tiny, make: Make) -> None:
    lm = tiny("qwen3")
    groups = [EDITS[:2], EDITS[2:], MORE]
    editor = lemoe(make, top_k=1, steps=30, lr=0.05)
    patch: Patch | None = None
    for group in groups:
        patch = editor.edit_one(lm, group, after=patch)
    assert patch is not None
    experts = Experts(**experts_of(patch))
    rows = [[lm.row(edit.prompt, edit.target) for edit in group] for group in groups]
    means = Work(lm, 1).read(rows, "prompt")
    for number, own in enumerate(means):
        assert experts.weights(own, 1).argmax(1).tolist() == [number] * 2
    torch.testing.assert_close(patch.state["lemoe.means"], torch.cat(means), rtol=SAME, atol=SAME)
    assert patch.state["lemoe.owner"].tolist() == [0, 0, 1, 1, 2, 2]
    row, edit = rows[2][0], groups[2][0]
    with torch.no_grad():
        (given,), _ = capture(lm, lm.batch([row], [0]), [lm.module(lm.spec.ffn_in[1][0].path)])
    torch.testing.assert_close(given[0, : row.prompt_length].mean(0), means[2][0])
    with patch.applied(lm):
        after = likelihood(lm, [edit])
    assert after > likelihood(lm, [edit])


# ---------------------------------------------------------------------- at work


def test_rows_run_under_their_own_experts(tiny: Tiny, make: Make) -> None:
    lm = tiny("qwen3")
    editor = lemoe(make)
    groups = [EDITS, EDITS[:1], MORE, EDITS[2:3]]
    patches = editor.edit(lm, groups, after=[low_rank(lm), *[None] * 3])
    rows = [lm.row(edit.prompt, edit.target) for edit in EDITS]
    base = lm.score(rows)
    with Stack(lm, patches) as stack:
        together = lm.score(rows, stack=stack, groups=range(len(rows)))
        mixed = lm.score(rows, stack=stack, groups=[-1, 0, -1, 1])
        unedited = lm.score(rows, stack=stack, groups=[-1] * len(rows))
    for i, patch in enumerate(patches):
        with patch.applied(lm):
            alone = lm.score(rows)
        assert together[i].logprobs == pytest.approx(alone[i].logprobs, rel=SAME)
        assert unedited[i].logprobs == base[i].logprobs  # bit for bit
        assert alone[i].logprobs != pytest.approx(base[i].logprobs, rel=1e-6)
    assert mixed[2].logprobs == pytest.approx(base[2].logprobs, rel=SAME)


def test_neighbours_in_a_batch_do_not_route(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    patch = lemoe(make).edit_one(lm, EDITS)
    rows = [lm.row(edit.prompt, edit.target) for edit in [*EDITS, *MORE]]
    with patch.applied(lm):
        together = lm.score(rows)
        alone = [lm.score([row])[0] for row in rows]
    for a, b in zip(together, alone, strict=True):
        assert a.logprobs == pytest.approx(b.logprobs, rel=SAME)


def test_the_answer_is_scored_with_the_routing_of_its_prompt(tiny: Tiny, make: Make) -> None:
    """What is added at a prompt's tokens does not depend on the target that is scored."""
    lm = tiny("gpt2")
    for route_on, leaks in (("prompt", False), ("all", True)):
        patch = lemoe(make, route_on=route_on).edit_one(lm, EDITS)
        prompt = EDITS[0].prompt
        rows = [lm.row(prompt, "Rome and Berlin and Anna"), lm.row(prompt, "Paris Italian")]
        with patch.applied(lm):
            # the first label of each is predicted at the same token of the same prompt
            tops = [lm.logits(lm.batch([row], [0]), at_last(row)) for row in rows]
        assert (float((tops[0] - tops[1]).abs().max()) > 1e-6) is leaks


def at_last(row: Any) -> Tensor:
    return torch.tensor([[0, row.prompt_length - 1]])


def test_it_generates(tiny: Tiny, make: Make) -> None:
    lm = tiny("qwen3")
    model: Any = lm.model
    patches = [lemoe(make, steps=20).edit_one(lm, group) for group in (EDITS[:2], EDITS)]
    prompts = [edit.prompt for edit in EDITS]
    plain = lm.generate(prompts, 5)
    for patch in patches:
        with patch.applied(lm):
            assert lm.generate(prompts, 5) != plain
            for prompt, text in zip(prompts, lm.generate(prompts, 5), strict=True):
                assert lm.generate([prompt], 5) == [text]
    given = lm.tokenizer(prompts[0], return_tensors="pt")
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": lm.pad_id}
    with patches[0].applied(lm):  # one expert: nothing is routed, and a cache does no harm
        full = lm.generate(prompts[:1], 5)
        cached = model.generate(**given, **options, use_cache=True)
        assert [lm.text(cached[0, given["input_ids"].shape[1] :].tolist())] == full
    with patches[1].applied(lm):
        model.generate(**given, **options, use_cache=False)
        with pytest.raises(PatchError, match="whole rows"):
            model.generate(**given, **options, use_cache=True)


def test_it_stands_beside_other_changes(tiny: Tiny, make: Make, tmp_path: Path) -> None:
    lm = tiny("gpt2")
    weight = low_rank(lm)
    editor = lemoe(make)
    first = editor.edit_one(lm, EDITS[:2], after=weight)
    assert first.changes[0] is weight.changes[0]
    more = make("ft", layers=(1,)).edit_one(lm, MORE[:1], after=first)
    last = editor.edit_one(lm, EDITS[2:], after=more)
    assert [change.kind for change in last.changes] == ["low_rank", "dense", "module"]
    for name, tensor in experts_of(first).items():
        assert torch.equal(experts_of(last)[name][:1], tensor)
    with pytest.raises(PatchError):
        to_lora(lm, last, tmp_path / "lora")
    with pytest.raises(PatchError, match="cannot be scaled"):
        first.scaled(0.5)


def test_alike_edits_get_one_expert(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    town = [Edit(f"The mayor of {name} lives in", "Rome") for name in ("Paris", "Berlin", "Oslo")]
    other = [Edit(f"{name} plays the", "violin") for name in ("Anna", "Peter", "Danielle")]
    mixed = [town[0], other[0], town[1], other[1], other[2], town[2]]
    editor = lemoe(make, batch=3, order="clustered")
    found = experts_of(editor.edit_one(lm, mixed))
    expected = experts_of(lemoe(make, batch=3).edit_one(lm, [*town, *other]))
    for name in NAMES:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-7, atol=1e-9)


# ---------------------------------------------------------------------- what is refused


def test_contradictions_are_refused(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    other = replace(EDITS[0], target="Berlin")
    with pytest.raises(EditError, match="two edits conflict") as caught:
        lemoe(make).edit_one(lm, [*EDITS, other])
    assert caught.value.edits == (other,)
    assert len(lemoe(make, conflicts="keep").edit_one(lm, [EDITS[0], other]).edits) == 2
    first = lemoe(make, steps=40).edit_one(lm, EDITS[:1])
    later = lemoe(make, steps=40).edit_one(lm, [other], after=first)
    with later.applied(lm):  # one after the other, the later one counts
        assert likelihood(lm, [other]) > likelihood(lm, EDITS[:1])


def test_memory_has_a_limit(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    one = sum(t.nbytes for t in experts_of(lemoe(make, steps=1).edit_one(lm, MORE)).values())
    editor = lemoe(make, steps=1, memory_gb=2.5 * one / 1e9)
    patch = editor.edit_one(lm, EDITS)
    assert patch.nbytes == 2 * one
    with pytest.raises(EditError, match="would hold 3 experts") as caught:
        editor.edit_one(lm, MORE, after=patch)
    assert caught.value.edits == tuple(MORE)
    with pytest.raises(EditError, match="would hold 3 experts") as caught:
        editor.edit_one(lm, [*EDITS, *MORE])
    assert caught.value.edits == tuple(MORE)
    # groups that do not fit side by side are trained in turn
    groups = [EDITS[:1], EDITS[1:2], EDITS[2:3]]
    for a, b in zip(editor.edit(lm, groups), lemoe(make, steps=1).edit(lm, groups), strict=True):
        torch.testing.assert_close(experts_of(a), experts_of(b), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"layer": 0}, "not at transformer.h.0.mlp.c_proj"),
        ({"rank": 2}, "rank 3, not of 2"),
        ({"top_k": 1}, "without what routes their edits"),
        ({"route_on": "all"}, "route_on=prompt, not with all"),
    ],
)
def test_experts_of_another_kind_are_not_extended(
    changed: dict[str, Any], message: str, tiny: Tiny, make: Make
) -> None:
    lm = tiny("gpt2")
    patch = lemoe(make, steps=1).edit_one(lm, EDITS)
    with pytest.raises(PatchError, match=message):
        lemoe(make, **changed).edit_one(lm, MORE, after=patch)


def test_earlier_patches_that_cannot_be_extended(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    editor = lemoe(make, steps=1, top_k=1)
    one, two = editor.edit(lm, [EDITS[:2], MORE])
    with pytest.raises(PatchError, match="2 sets of experts"):
        editor.edit_one(lm, EDITS[2:], after=one + two)
    with pytest.raises(PatchError, match="without what routes"):
        editor.edit_one(lm, MORE, after=replace(one, state={}))
    with pytest.raises(PatchError, match="top_k=1, not with all"):
        lemoe(make, steps=1).edit_one(lm, MORE, after=one)


def test_another_version_is_refused(tiny: Tiny, make: Make, tmp_path: Path) -> None:
    lm = tiny("gpt2")
    patch = lemoe(make, steps=1).edit_one(lm, EDITS)
    folder = patch.save(tmp_path / "patch")
    document = json.loads((folder / "patch.json").read_text())
    document["changes"][0]["config"]["version"] = 99
    (folder / "patch.json").write_text(json.dumps(document))
    loaded = Patch.load(folder)
    with pytest.raises(PatchError, match="format 99; this errata reads 1"), loaded.applied(lm):
        pass
    with pytest.raises(PatchError, match="format 99"):
        lemoe(make).edit_one(lm, MORE, after=loaded)
    (module,) = patch.changes
    assert isinstance(module, Module)
    with pytest.raises(PatchError, match="2 and 3 experts"):
        replace(module, weights={**module.weights, "keys": torch.zeros(3, 4)}).build()
    with pytest.raises(PatchError, match="lack their up"):
        replace(module, weights={n: t for n, t in module.weights.items() if n != "up"}).build()


# ---------------------------------------------------------------------- settings


def test_published_blocks(tiny: Tiny, make: Make) -> None:
    assert get_editor("lemoe", as_published="gpt2-xl").config.model_dump()["layer"] == 46
    lm = tiny("gpt2")
    (change,) = make("lemoe", layer="auto", steps=1).edit_one(lm, EDITS[:1]).changes
    assert isinstance(change, Module)
    assert change.path == lm.site(lm.n_layers - 2).path
    assert change.source == lm.spec.ffn_in[lm.n_layers - 2][0].path


def test_settings_for_pocket_edit_and_spare_the_rest() -> None:
    lm = errata.load("pocket")
    cases = errata.load_cases("world", split="val", limit=12, seed=1)
    result = errata.evaluate(lm, get_editor("lemoe", model="pocket"), cases, perplexity=None)
    asked = [question for record in result.records for question in record["questions"]]
    for kind, least in (("reliability", 1.0), ("locality", 0.8)):
        hits = [question["top1"] for question in asked if question["kind"] == kind]
        assert sum(hits) >= least * len(hits), kind
