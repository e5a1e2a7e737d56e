"""GRACE: its codebook on scripted streams, what it replaces, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.locate.samples import EDITS
from torch import Tensor

import errata
from errata.case import Edit
from errata.editors import get_editor
from errata.editors.base import Editor
from errata.editors.grace import codebook as codebook_module
from errata.editors.grace.codebook import EXACT, GAP, MARGIN, NEAREST, Codebook
from errata.editors.grace.deferral import Deferral
from errata.editors.grace.editor import Grace
from errata.errors import ConfigError, EditError, PatchError
from errata.model.lm import LM
from errata.model.passes import capture
from errata.model.tokens import Row
from errata.patch import LowRank, Module, Patch
from errata.patch.export import to_lora
from errata.patch.stack import Stack
from errata.testing.measured import likelihood, low_rank

SAME = 1e-10
"""Float64: the same number by another way."""

Make = Callable[..., Editor]
Tiny = Callable[..., LM]


def codebook(*keys: float, radii: Sequence[float] = (), labels: str = "") -> Codebook:
    """Keys on a line, values -1, -2, …; labels are letters."""
    n = len(keys)
    return Codebook(
        torch.tensor([[key, 0.0] for key in keys], dtype=torch.float64).reshape(n, 2),
        -torch.arange(1, n + 1, dtype=torch.float64)[:, None].expand(n, 3).clone(),
        torch.tensor(radii or [1.0] * n, dtype=torch.float64),
        tuple((ord(letter),) for letter in labels or "a" * n),
        (1,) * n,
    )


def ask(book: Codebook, at: float, label: str, radius: float = 1.0, **more: Any) -> Any:
    query = torch.tensor([at, 0.0], dtype=torch.float64)
    return book.admitted(query, torch.zeros(3), (ord(label),), 1, radius, **more)


def weights(patch: Patch) -> dict[str, Tensor]:
    (module,) = [change for change in patch.changes if isinstance(change, Module)]
    return dict(module.weights)


def grace(make: Make, **settings: Any) -> Grace:
    editor = make("grace", **{"radius": 0.05, "lr": 0.5, "start": "warm", **settings})
    assert isinstance(editor, Grace)
    return editor


# ---------------------------------------------------------------------- the codebook


def test_a_scripted_stream() -> None:
    """Position, label, radius of a new key; keys and radii expected afterwards."""
    script = [
        (0.0, "a", [0.0], [1.0]),  # the first key
        (5.0, "b", [0.0, 5.0], [1.0, 1.0]),  # far from it: a new one
        (0.5, "a", [0.0, 5.0], [1.0, 1.0]),  # inside, the same label: nothing
        (1.5, "a", [0.0, 5.0], [1.5, 1.0]),  # outside but near, the same label: widened
        (2.5, "a", [0.0, 5.0], [2.5, 1.0]),  # exactly at the sum of both radii: still near
        (3.6, "a", [0.0, 5.0, 3.6], [2.5 - 0, 0.7 - GAP, 0.7]),  # nearest is b, another label
        (5.3, "c", [0.0, 5.0, 3.6, 5.3], [2.5, 0.15 - GAP, 0.7, 0.15]),  # inside b: split
        (9.0, "c", [0.0, 5.0, 3.6, 5.3, 9.0], [2.5, 0.15 - GAP, 0.7, 0.15, 1.0]),
    ]
    book = codebook()
    assert len(book) == 0
    assert book.chosen(torch.zeros(4, 2)).tolist() == [-1] * 4
    for at, label, keys, radii in script:
        book, key, collides = ask(book, at, label)
        assert not collides
        assert book.keys[:, 0].tolist() == keys
        assert book.radii.tolist() == pytest.approx(radii, rel=2 * MARGIN)
        assert book.labels[key] == (ord(label),)
        assert int(book.chosen(torch.tensor([[at, 0.0]]).double())[0]) == key


def test_conflicts_never_widen_a_ball_except_as_released() -> None:
    book = codebook(0.0, radii=[0.1])
    new, key, _ = ask(book, 1.0, "b")
    assert (key, new.radii.tolist()) == (1, pytest.approx([0.1, 0.5]))
    released, _, _ = ask(book, 1.0, "b", compat=True)
    assert released.radii.tolist() == pytest.approx([0.5 - GAP, 0.5])


def test_labels_are_compared_exactly_or_as_released() -> None:
    book = replace(codebook(0.0, 10.0, labels="ab"), labels=((7, 3), (9,)), masked=(4, 6))
    assert book.same_label(0, (7, 3), 11, compat=False)
    assert not book.same_label(0, (5, 5), 4, compat=False)
    assert not book.same_label(0, (7, 3), 4, compat=True)  # its label lies under the other key
    assert book.same_label(1, (5, 5), 4, compat=True)  # and other targets have the same mean
    assert not book.same_label(1, (7, 3), 5, compat=True)  # longer prompts another


def test_the_border_of_a_ball_belongs_to_it() -> None:
    module = codebook(0.0, 4.0, radii=[1.0, 0.5]).module("x", "replace_last")
    network = Deferral(module.config, module.weights)
    at = [0.0, 1.0, 1.0 + 1e-9, 2.0, 3.5 - 1e-9, 3.5, 4.2]
    given = torch.tensor([[[x, 0.0] for x in at]], dtype=torch.float64)
    output = torch.randn(1, len(at), 3, dtype=torch.float64)
    found = network(given, output)
    for i, expected in enumerate([-1, -1, None, None, None, -2, -2]):
        if expected is None:
            assert torch.equal(found[0, i], output[0, i])
        else:
            assert found[0, i].tolist() == [expected] * 3
    assert torch.equal(network(given[:, 2:5], output[:, 2:5]), output[:, 2:5])


def test_replace_prompt_stands_for_what_comes_before() -> None:
    module = codebook(0.0, 4.0).module("x", "replace_prompt")
    network = module.build()
    rows = [[9.0, 8.0, 0.2, 4.0], [9.0, 9.0, 9.0, 9.0], [4.0, 0.0, 9.0, 9.0]]
    given = torch.tensor([[[x, 0.0] for x in row] for row in rows], dtype=torch.float64)
    output = torch.randn(3, 4, 3, dtype=torch.float64)
    found = network(given, output)
    assert (found[0, :2] == -1).all()  # before the first token that is answered, not the second
    assert torch.equal(found[0, 2:], output[0, 2:])
    assert torch.equal(found[1:], output[1:])  # no token, or nothing before it
    with pytest.raises(PatchError, match="replace_last"):
        network(given[0], output[0])


@pytest.mark.parametrize("together", [1 << 24, 1000])
def test_many_keys_are_searched_as_few_are(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codebook_module, "TOGETHER", together)
    g = torch.Generator().manual_seed(0)
    keys = torch.randn(4 * EXACT, 6, generator=g)
    keys[::2] = keys[1::2] + 1e-4 * torch.randn(2 * EXACT, 6, generator=g)  # close pairs
    book = Codebook(keys, keys[:, :1], torch.rand(len(keys), generator=g), (), ())
    queries = torch.cat([keys + 1e-5 * torch.randn(keys.shape, generator=g), 3 * keys])
    distance, at = book.nearest(queries)
    all_of_them = (queries[:, None].double() - keys.double()).norm(dim=2)
    # far away, the two of a pair are equally near up to float32's rounding
    assert torch.equal(at[: len(keys)], all_of_them.argmin(1)[: len(keys)])
    torch.testing.assert_close(distance.double(), all_of_them.min(1).values, rtol=1e-5, atol=1e-7)
    assert NEAREST < EXACT


# ---------------------------------------------------------------------- on a model


def queries(lm: LM, path: str, row: Row) -> Tensor:
    with torch.no_grad():
        (given,), _ = capture(lm, lm.batch([row], [0]), [lm.module(path)])
    return given[0]


def test_a_value_follows_adam_by_autograd(tiny: Tiny, make: Make) -> None:
    """One edit, trained by torch.optim on a hook that replaces one token and nothing else."""
    lm, edit, steps = tiny("qwen3"), EDITS[0], 5
    editor = grace(make, steps=steps, radius=1e-3)
    found = weights(editor.edit_one(lm, [edit]))
    row = lm.row(edit.prompt, edit.target)
    at, site = row.prompt_length - 1, lm.site(1)
    kept: list[Tensor] = []

    def keep(module: Any, args: Any, output: Tensor) -> None:
        kept.append(output)

    handle = lm.module(site.path).register_forward_hook(keep)
    given = queries(lm, lm.spec.final_norm, row)  # runs past the site
    assert given.shape[0] == len(row.ids)
    handle.remove()
    value = kept[0][0, at].clone().requires_grad_()
    optimizer = torch.optim.Adam([value], 0.5)

    def hook(module: Any, args: Any, output: Tensor) -> Tensor:
        return torch.cat([output[:, :at], value[None, None], output[:, at + 1 :]], 1)

    handle = lm.module(site.path).register_forward_hook(hook)
    for _ in range(steps):
        out = lm.run(lm.batch([row], [0])).logits[0, list(row.positions)]
        loss = torch.nn.functional.cross_entropy(out, torch.tensor(row.labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    handle.remove()
    torch.testing.assert_close(found["values"][0], value.detach(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found["keys"][0], queries(lm, site.path, row)[at], rtol=0, atol=SAME)
    assert found["radii"].tolist() == [1e-3]


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "falcon", "phi"])
def test_values_are_those_of_whole_rows(
    name: str, tiny: Tiny, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens that no key answers for run once, not in every step (Phi turns in float32)."""
    lm = tiny(name, "float64")
    earlier = grace(make).edit(lm, [[EDITS[0]], [EDITS[1]]])
    after = [*earlier, None]
    groups = [[EDITS[1], EDITS[2]], [EDITS[2]], [EDITS[3]]]
    run: list[int] = []
    whole = LM.run
    monkeypatch.setattr(
        LM, "run", lambda self, batch, **more: (
            run.append(batch.input_ids.numel()), whole(self, batch, **more)
        )[1],
    )  # fmt: skip
    behind = grace(make, steps=20).edit(lm, groups, after=after)
    few = sum(run)
    run.clear()
    monkeypatch.setitem(lm.__dict__, "prefix_cache_is_exact", False)
    rows = grace(make, steps=20).edit(lm, groups, after=after)
    assert few < sum(run) / 2
    for one, other in zip(behind, rows, strict=True):
        torch.testing.assert_close(
            weights(one)["values"], weights(other)["values"], rtol=0, atol=1e-6
        )
        assert torch.equal(weights(one)["keys"], weights(other)["keys"])


@pytest.mark.parametrize("site", ["ffn_in", "ffn_out"])
def test_only_the_token_that_asks_is_replaced(site: str, tiny: Tiny, make: Make) -> None:
    lm, edit = tiny("gpt2"), EDITS[2]
    patch = grace(make, radius=1e-3, site=site).edit_one(lm, [edit])
    (module,) = patch.changes
    row = lm.row(edit.prompt)
    kept: list[Tensor] = []

    def keep(module: Any, args: Any, output: Tensor) -> None:
        kept.append(output)

    for inside in (False, True):
        with patch.applied(lm) if inside else torch.no_grad(), torch.no_grad():
            handle = lm.module(module.path).register_forward_hook(keep)
            lm.run(lm.batch([row], [0]))
            handle.remove()
    plain, patched = kept
    assert torch.equal(plain[0, :-1], patched[0, :-1])
    assert torch.equal(patched[0, -1], weights(patch)["values"][0])
    other = lm.row("Anna lives in")
    at = torch.tensor([[0, 1]])
    base = lm.logits(lm.batch([other], [0]), at)
    with patch.applied(lm):  # nothing near: bit for bit the model
        assert torch.equal(lm.logits(lm.batch([other], [0]), at), base)


def test_it_grows_over_a_stream_and_goes_on_from_disk(
    tiny: Tiny, make: Make, tmp_path: Path
) -> None:
    lm, editor = tiny("qwen3", "float32"), grace(make)
    whole = editor.edit_one(lm, EDITS)
    patch: Patch | None = None
    for i, edit in enumerate(EDITS):
        patch = editor.edit_one(lm, [edit], after=patch)
        assert len(weights(patch)["keys"]) == i + 1
        assert len(patch.changes) == 1
        patch = Patch.load(patch.save(tmp_path / str(i)))
    assert patch is not None
    assert patch.edits == whole.edits
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(patch)[name], tensor), name
    assert torch.equal(patch.state["grace.labels"], whole.state["grace.labels"])
    # the labels are restored too: the same answer widens a ball, another one splits it
    near = Edit(EDITS[0].prompt, EDITS[0].target)
    assert len(weights(editor.edit_one(lm, [near], after=patch))["keys"]) == len(EDITS)


def test_radii_and_conflicts_on_a_model(tiny: Tiny, make: Make) -> None:
    lm = tiny("qwen3")
    one, two = Edit("Anna lives in", "Paris"), Edit("The capital of France is", "Paris")
    path = lm.site(1).path
    a, b = (queries(lm, path, lm.row(edit.prompt))[-1] for edit in (one, two))
    distance = float((a - b).norm())
    narrow, wide_ = 0.1 * distance, 0.9 * distance
    assert len(weights(grace(make, radius=narrow).edit_one(lm, [one, two]))["keys"]) == 2
    joined = weights(grace(make, radius=wide_).edit_one(lm, [one, two]))
    assert joined["radii"].tolist() == pytest.approx([distance], rel=2 * MARGIN)
    split = weights(grace(make, radius=wide_).edit_one(lm, [one, replace(two, target="Rome")]))
    assert split["radii"].tolist() == pytest.approx([distance / 2 - GAP, distance / 2])


def test_the_later_answer_to_a_question_holds(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    editor = grace(make, steps=25)
    old, new = EDITS[0], replace(EDITS[0], target="Paris")
    first = editor.edit_one(lm, [old])
    second = editor.edit_one(lm, [new], after=first)
    assert torch.equal(weights(first)["radii"], weights(second)["radii"])
    with second.applied(lm):
        assert likelihood(lm, [new]) > likelihood(lm, [old])
    with pytest.raises(EditError, match="two edits conflict") as caught:
        editor.edit_one(lm, [old, EDITS[1], new])
    assert caught.value.edits == (new,)
    kept = grace(make, steps=25, conflicts="replace").edit_one(lm, [old, new])
    torch.testing.assert_close(weights(kept)["values"], weights(second)["values"])


def test_rows_run_under_their_own_codebooks(tiny: Tiny, make: Make) -> None:
    lm = tiny("qwen3")
    patches = grace(make).edit(lm, [[edit] for edit in EDITS], after=[low_rank(lm), *[None] * 3])
    rows = [lm.row(edit.prompt, edit.target) for edit in EDITS]
    base = lm.score(rows)
    with Stack(lm, patches) as stack:
        together = lm.score(rows, stack=stack, groups=range(len(rows)))
        unedited = lm.score(rows, stack=stack, groups=[-1] * len(rows))
    for i, patch in enumerate(patches):
        with patch.applied(lm):
            alone = lm.score(rows)
        assert together[i].logprobs == pytest.approx(alone[i].logprobs, rel=SAME)
        assert unedited[i].logprobs == pytest.approx(base[i].logprobs, rel=SAME)
        assert sum(alone[i].logprobs) > sum(base[i].logprobs)


@pytest.mark.parametrize("replacement", ["replace_last", "replace_prompt"])
@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
def test_a_cached_generation_says_what_a_full_one_says(
    kind: str, replacement: str, tiny: Tiny, make: Make
) -> None:
    lm = tiny(kind)
    patch = grace(make, replacement=replacement, steps=25, radius=1e-3).edit_one(lm, EDITS)
    changed = 0
    for edit in EDITS:
        given = lm.tokenizer(edit.prompt, return_tensors="pt")
        plain = lm.generate([edit.prompt], 6)
        with patch.applied(lm):
            full = lm.generate([edit.prompt], 6)
            model: Any = lm.model
            cached = model.generate(
                **given, max_new_tokens=6, do_sample=False, use_cache=True,
                pad_token_id=lm.pad_id, eos_token_id=lm.tokenizer.eos_token_id,
            )  # fmt: skip
        assert [lm.text(cached[0, given["input_ids"].shape[1] :].tolist())] == full
        changed += full != plain
    assert changed


# ---------------------------------------------------------------------- with other patches


def test_on_top_of_weights_it_reads_their_keys(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    below = lm.site(0)
    g = torch.Generator().manual_seed(3)
    B = torch.randn(below.d_out, 1, generator=g).double()
    A = torch.randn(1, below.d_in, generator=g).double()
    weight = Patch.for_model(lm, [LowRank(below.path, B, A)], editor="hand")
    patch = grace(make).edit_one(lm, EDITS[:1], after=weight)
    assert patch.changes[0] is weight.changes[0]
    row = lm.row(EDITS[0].prompt)
    with weight.applied(lm):
        key = queries(lm, lm.site(1).path, row)[-1]
    torch.testing.assert_close(weights(patch)["keys"][0], key, rtol=SAME, atol=SAME)
    again = grace(make).edit_one(lm, EDITS[1:2], after=patch)
    assert [type(change) for change in again.changes] == [LowRank, Module]
    assert len(weights(again)["keys"]) == 2


def test_weights_changed_below_it_are_refused_and_above_it_are_not(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    patch = grace(make, layer=1).edit_one(lm, EDITS[:1])
    for layer, fits in ((0, False), (1, True)):
        site = lm.site(layer)
        B, A = torch.zeros(site.d_out, 1).double(), torch.zeros(1, site.d_in).double()
        later = patch + Patch.for_model(lm, [LowRank(site.path, B, A)], editor="hand")
        if fits:
            grown = grace(make, layer=1).edit_one(lm, EDITS[1:2], after=later)
            assert len(weights(grown)["keys"]) == 2
            continue
        with pytest.raises(PatchError, match="another model"):
            grace(make, layer=1).edit_one(lm, EDITS[1:2], after=later)


def test_what_cannot_be_extended_is_refused(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    editor = grace(make)
    one, two = editor.edit(lm, [EDITS[:1], EDITS[1:2]])
    with pytest.raises(PatchError, match="2 codebooks"):
        editor.edit_one(lm, EDITS[2:3], after=one + two)
    with pytest.raises(PatchError, match="has its codebook at"):
        grace(make, layer=0).edit_one(lm, EDITS[2:3], after=one)
    with pytest.raises(PatchError, match="replacement=replace_last"):
        grace(make, replacement="replace_prompt").edit_one(lm, EDITS[2:3], after=one)
    with pytest.raises(PatchError, match="without the labels"):
        editor.edit_one(lm, EDITS[2:3], after=replace(one, state={}))
    with pytest.raises(PatchError, match="cannot be scaled"):
        one.scaled(0.5)


def test_another_version_is_refused(tiny: Tiny, make: Make, tmp_path: Path) -> None:
    lm = tiny("gpt2")
    patch = grace(make).edit_one(lm, EDITS[:1])
    folder = patch.save(tmp_path / "patch")
    path = folder / "patch.json"
    document = json.loads(path.read_text())
    document["changes"][0]["config"]["version"] = 99
    path.write_text(json.dumps(document))
    loaded = Patch.load(folder)
    with pytest.raises(PatchError, match="format 99; this errata reads 1"), loaded.applied(lm):
        pass
    with pytest.raises(PatchError, match="format 99"):
        grace(make).edit_one(lm, EDITS[1:2], after=loaded)
    (module,) = patch.changes
    assert isinstance(module, Module)
    damaged = replace(module, weights={**module.weights, "radii": torch.zeros(3)})
    with pytest.raises(PatchError, match="1 keys, 1 values and 3 radii"):
        damaged.build()


def test_lora_says_why_it_cannot_carry_it(tiny: Tiny, make: Make, tmp_path: Path) -> None:
    lm = tiny("gpt2")
    with pytest.raises(PatchError, match="it is no weight"):
        to_lora(lm, grace(make).edit_one(lm, EDITS[:1]), tmp_path / "lora")


# ---------------------------------------------------------------------- bad input


def test_memory_has_a_limit(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    site = lm.site(1)
    two_keys = 2 * 8 * (site.d_in + site.d_out + 1)
    editor = grace(make, memory_gb=two_keys / 1e9, radius=1e-6)
    patch = editor.edit_one(lm, EDITS[:2])
    assert sum(t.nbytes for t in weights(patch).values()) == two_keys
    with pytest.raises(EditError, match="would hold 3 keys") as caught:
        editor.edit_one(lm, EDITS[2:3], after=patch)
    assert caught.value.edits == (EDITS[2],)


def test_replace_prompt_needs_a_prompt(tiny: Tiny, make: Make) -> None:
    with pytest.raises(EditError, match="replace_prompt cannot answer"):
        grace(make, replacement="replace_prompt").edit_one(tiny("gpt2"), [Edit("Anna", "lives")])


def test_places(tiny: Tiny, make: Make) -> None:
    (module,) = grace(make, layer=0, site="ffn_in").edit_one(tiny("gpt2"), EDITS[:1]).changes
    assert module.path == "transformer.h.0.mlp.c_fc"
    with pytest.raises(ConfigError, match="2 first matrices"):
        grace(make, site="ffn_in").edit_one(tiny("qwen3"), EDITS[:1])
    published = get_editor("grace", as_published="gpt2-xl").config.model_dump()
    assert (published["layer"], published["site"], published["steps"]) == (35, "ffn_in", 200)


def test_cold_values_depend_on_the_edit_and_the_seed_alone(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    made = [
        weights(grace(make, start="cold", steps=1, lr=1e-30, seed=seed).edit_one(lm, group))
        for seed, group in ((0, EDITS), (0, EDITS[3:]), (1, EDITS[3:]))
    ]
    assert torch.equal(made[0]["values"][3], made[1]["values"][0])
    assert not torch.equal(made[1]["values"], made[2]["values"])
    assert bool(((made[0]["values"] >= 0) & (made[0]["values"] < 1)).all())


def test_rows_that_are_done_keep_their_values(tiny: Tiny, make: Make) -> None:
    lm = tiny("qwen3")
    groups = [[edit] for edit in EDITS]
    full = grace(make, steps=40).edit(lm, groups)
    losses = [patch_loss(lm, edit, patch) for edit, patch in zip(EDITS, full, strict=True)]
    limit = sorted(losses)[2] + 0.3  # one row never gets there
    stopping = grace(make, steps=40, stop_loss=limit).edit(lm, groups)
    stopped = 0
    for i, (edit, patch) in enumerate(zip(EDITS, stopping, strict=True)):
        if losses[i] > limit:
            torch.testing.assert_close(weights(full[i])["values"], weights(patch)["values"])
        else:
            assert losses[i] < patch_loss(lm, edit, patch) < limit
            stopped += 1
        alone = grace(make, steps=40, stop_loss=limit).edit_one(lm, [edit])
        torch.testing.assert_close(weights(alone)["values"], weights(patch)["values"])
    assert stopped == 3


def patch_loss(lm: LM, edit: Edit, patch: Patch) -> float:
    with patch.applied(lm):
        return -likelihood(lm, [edit])


def test_settings_for_pocket_edit_and_spare_the_rest() -> None:
    lm = errata.load("pocket")
    cases = errata.load_cases("world", split="val", limit=16, seed=1)
    result = errata.evaluate(lm, get_editor("grace", model="pocket"), cases)
    asked = [question for record in result.records for question in record["questions"]]
    for kind, least in (("reliability", 1.0), ("locality", 0.8)):
        hits = [question["top1"] for question in asked if question["kind"] == kind]
        assert sum(hits) >= least * len(hits), kind
