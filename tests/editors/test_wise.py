"""WISE on models: moving copies, the route, memories that close and merge, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.locate.samples import EDITS
from torch import Tensor

import errata
from errata.case import Edit
from errata.editors.base import Editor
from errata.editors.wise.editor import Wise
from errata.editors.wise.route import SideRoute
from errata.editors.wise.settings import WiseConfig
from errata.editors.wise.sides import Sides, ties
from errata.errors import ConfigError, EditError, PatchError
from errata.model.lm import LM
from errata.model.passes import Pass, capture
from errata.patch import Module, Patch
from errata.testing.measured import low_rank

SAME = 1e-9
"""Float64, relative: the same steps, each row alone instead of padded together."""

Make = Callable[..., Editor]
Tiny = Callable[..., LM]

MARGINS = {"alpha": 0.2, "beta": 1.0, "gamma": 0.5}


def wise(make: Make, **settings: Any) -> Wise:
    editor = make("wise", **{**MARGINS, "lr": 0.5, **settings})
    assert isinstance(editor, Wise)
    return editor


def module_of(patch: Patch) -> Module:
    (module,) = [change for change in patch.changes if isinstance(change, Module)]
    return module


def chosen(lm: LM, patch: Patch, text: str) -> int:
    """Return the memory that answers a text, -1: none."""
    change = module_of(patch)
    network: Any = change.build()
    assert isinstance(network, SideRoute)
    row = lm.row(text)
    batch, module = lm.batch([row], [0]), lm.module(change.path)
    with torch.no_grad():
        (given,), (output,) = capture(lm, batch, [module], [module])
    seen = Pass(batch.input_ids, batch.attention_mask.bool(), torch.tensor([len(row.ids)]))
    return int(network.chosen(given, output, seen)[0])


# ---------------------------------------------------------------------- moving a copy


def by_hand(lm: LM, editor: Wise, edit: Edit) -> tuple[Tensor, float]:
    """Move a copy with torch.optim, every row alone, losses as the paper states them."""
    from torch.nn import functional as F
    from transformers.activations import ACT2FN

    config, site = editor.config, lm.site(1)
    act = ACT2FN["gelu_new" if "gpt2" in lm.name else "silu"]
    rows = editor.rows_of(lm, edit, -1).rows
    mask = editor._mask(site, Sides.empty(site.d_out, site.d_in, torch.float64, lm.device))
    delta = torch.zeros(site.d_out, site.d_in, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([delta], config.lr)
    pairs: list[tuple[Tensor, Tensor]] = []

    def add(module: Any, args: Any, output: Tensor) -> Tensor:
        moved = output + args[0] @ delta.T
        pairs.append((output[0], moved[0]))
        return moved

    def distance(ids: tuple[int, ...], count: int) -> tuple[Tensor, Tensor]:
        pairs.clear()
        logits = lm.model(torch.tensor([ids])).logits[0]
        y, new = pairs[0]
        far = (act(new[:count]) - act(y[:count])).norm(dim=-1)
        return far.mean(), logits

    def forward() -> tuple[Tensor, list[Tensor], Tensor]:
        told, inside = [], []
        for row in rows[:-1]:
            far, logits = distance(row.ids, row.prompt_length)
            inside.append(far)
            told.append(F.cross_entropy(logits[list(row.positions)], torch.tensor(row.labels)))
        outside, _ = distance(rows[-1].ids, len(rows[-1].ids))
        return torch.stack(told).mean(), inside, outside

    def positive(values: list[Tensor]) -> Tensor:
        kept = [value for value in values if float(value.detach()) > 0]
        return torch.stack(kept).mean() if kept else torch.zeros((), dtype=torch.float64)

    assert isinstance(config.alpha, float)
    assert isinstance(config.beta, float)
    assert isinstance(config.gamma, float)
    handle = lm.module(site.path).register_forward_hook(add)
    try:
        for _ in range(config.steps):
            told, inside, out = forward()
            loss = told + positive([out - own + config.gamma for own in inside])
            loss = loss + positive([out - config.alpha])
            loss = loss + positive([config.beta - own for own in inside])
            optimizer.zero_grad()
            loss.backward()
            assert delta.grad is not None
            delta.grad.mul_(mask)
            optimizer.step()
            with torch.no_grad():
                delta.clamp_(-config.limit, config.limit)
        with torch.no_grad():
            _, inside, _ = forward()
    finally:
        handle.remove()
    return delta.detach(), float(torch.stack(inside).mean())


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
def test_a_copy_moves_as_the_losses_say(kind: str, tiny: Tiny, make: Make) -> None:
    lm = tiny(kind)
    editor = wise(make, weight_decay=0.0)
    delta, act = by_hand(lm, editor, EDITS[0])
    weights = module_of(editor.edit_one(lm, EDITS[:1])).weights
    error = (weights["deltas"][0] - delta).norm() / delta.norm()
    assert float(error) <= SAME
    assert float(weights["acts"][0]) == pytest.approx(act, rel=SAME)


def test_entries_that_may_not_move_stay_where_they_are(tiny: Tiny, make: Make) -> None:
    """Also with weight decay, which pulls what moved and nothing else."""
    lm = tiny("gpt2")
    editor = wise(make, weight_decay=0.1, mask_ratio=0.3)
    deltas = module_of(editor.edit_one(lm, EDITS)).weights["deltas"]
    site = lm.site(1)
    mask = editor._mask(site, Sides.empty(site.d_out, site.d_in, torch.float64, lm.device))
    assert 0.25 < float(mask.double().mean()) < 0.35
    assert bool((deltas[0][~mask] == 0).all())
    assert bool((deltas[0][mask] != 0).any())


def test_the_box_holds(tiny: Tiny, make: Make) -> None:
    patch = wise(make, limit=1e-3).edit_one(tiny("gpt2"), EDITS)
    assert float(module_of(patch).weights["deltas"].abs().max()) == 1e-3


def test_margins_are_measured_once(tiny: Tiny, make: Make) -> None:
    """On the first edit, and kept in the patch for all that follow."""
    lm = tiny("gpt2")
    editor = wise(make, alpha="auto", beta="auto", gamma="auto")
    first = editor.edit_one(lm, EDITS[:1])
    config = module_of(first).config
    assert config["beta"] > 0
    assert (config["alpha"], config["gamma"]) == (config["beta"] / 4, config["beta"] / 2)
    second = module_of(editor.edit_one(lm, EDITS[1:2], after=first)).config
    assert [second[name] for name in MARGINS] == [config[name] for name in MARGINS]


def test_an_answer_may_end_in_the_end_of_the_text(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    (row, *_) = wise(make, stop="eos").rows_of(lm, EDITS[0], -1).rows
    plain = lm.row_of(EDITS[0])
    assert row.labels == (*plain.labels, lm.tokenizer.eos_token_id)
    assert row.positions == (*plain.positions, plain.positions[-1] + 1)
    assert row.ids == (*plain.ids, plain.labels[-1], lm.tokenizer.eos_token_id)
    with pytest.raises(EditError, match="no token that ends a turn"):
        wise(make, stop="turn").edit_one(lm, EDITS[:1])


# ---------------------------------------------------------------------- the route


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
def test_what_no_memory_answers_keeps_its_bits(kind: str, tiny: Tiny, make: Make) -> None:
    lm = tiny(kind, "float32")
    patch = wise(make, act_ratio=0.8).edit_one(lm, EDITS[:1])
    assert chosen(lm, patch, EDITS[0].prompt) == 0
    texts = ["Is it?", "We saw the sea and the town.", EDITS[2].prompt, EDITS[0].prompt]
    rows = [lm.row(text) for text in texts]
    batch = lm.batch(rows, range(len(rows)))
    with torch.no_grad():
        before = lm.run(batch).logits
        with patch.applied(lm):
            after = lm.run(batch).logits
    same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert same == [chosen(lm, patch, text) < 0 for text in texts]
    assert not all(same)
    assert any(same)


def test_the_answer_is_that_of_the_copied_matrix(tiny: Tiny, make: Make) -> None:
    """Where a memory answers, the model is the one whose matrix is the memory."""
    lm = tiny("gpt2")
    patch = wise(make).edit_one(lm, EDITS[:1])
    row = lm.row_of(EDITS[0])
    with patch.applied(lm):
        (score,) = lm.score([row])
    delta = module_of(patch).weights["deltas"][0]
    whole = errata.Patch.for_model(
        lm, [errata.patch.Dense(lm.site(1).weight, delta.T)], editor="hand"
    )
    with whole.applied(lm):
        (expected,) = lm.score([row])
    assert score.logprobs == pytest.approx(expected.logprobs, rel=1e-10)


def test_a_text_that_grows_is_routed_by_its_prompt(tiny: Tiny, make: Make) -> None:
    """Generation decides as scoring does, at every step."""
    lm = tiny("gpt2")
    patch = wise(make).edit_one(lm, EDITS[:1])
    with patch.applied(lm):
        (text,) = lm.generate([EDITS[0]], 4)
        ids = lm.prompt_of(EDITS[0]).ids
        for _ in range(4):
            from errata.model.tokens import Row

            row = Row(ids, (len(ids) - 1,), (), lm.prompt_of(EDITS[0]).prompt_length)
            at = torch.tensor([[0, len(ids) - 1]])
            with torch.no_grad():
                ids = (*ids, int(lm.logits(lm.batch([row], [0]), at)[0].argmax()))
        assert lm.text(ids[len(lm.prompt_of(EDITS[0]).ids) :]).startswith(text)
        model: Any = lm.model
        with pytest.raises(PatchError, match="use_cache=False"):
            model.generate(torch.tensor([ids]), max_new_tokens=2, do_sample=False)


def test_the_open_memory_is_asked_first_then_the_others_by_distance() -> None:
    """Numbers by hand: three memories, the last one open."""
    config = {
        "version": 1, "open": 1, "count": 5, "activation": "none", "act_ratio": 0.5,
        "route_on": "prompt", "long": 100, "alpha": 0.0, "beta": 0.0, "gamma": 0.0,
    }  # fmt: skip
    eye = torch.eye(2)
    tensors = {
        "deltas": torch.stack([1.0 * eye, 3.0 * eye, 2.0 * eye]),
        "acts": torch.tensor([10.0, 4.0, 2.0]),
    }
    network = SideRoute(config, tensors)
    given = torch.tensor([[[1.0, 0.0]], [[0.6, 0.0]], [[0.4, 0.0]]])
    seen = Pass(
        torch.zeros(3, 1, dtype=torch.long), torch.ones(3, 1, dtype=torch.bool), torch.ones(3)
    )
    # distances 1, 3, 2 of the first row: the open one passes (2 >= 1), the second is farther and
    # passes too (3 > 2). 0.6, 1.8, 1.2: only the open one passes. 0.4, 1.2, 0.8: none does
    assert network.chosen(given, torch.zeros_like(given), seen).tolist() == [1, 2, -1]


# ---------------------------------------------------------------------- memories


def test_a_group_is_a_sequence(tiny: Tiny, make: Make, tmp_path: Path) -> None:
    """Bit for bit, from disk as well."""
    lm = tiny("gpt2", "float32")
    editor = wise(make, save_freq=2, merge_freq=4)
    whole = module_of(editor.edit_one(lm, EDITS))
    patch = None
    for number, edit in enumerate(EDITS):
        patch = editor.edit_one(lm, [edit], after=patch)
        patch = Patch.load(patch.save(tmp_path / str(number)))
    assert patch is not None
    grown = module_of(patch)
    assert grown.config == whole.config
    for name, tensor in whole.weights.items():
        assert torch.equal(grown.weights[name], tensor), name
    assert patch.edits == tuple(EDITS)


def test_memories_close_and_become_one(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    kept = wise(make, save_freq=1, merge_freq=2, merge="none")
    merged = wise(make, save_freq=1, merge_freq=2, density=1.0)
    two = module_of(kept.edit_one(lm, EDITS[:2])).weights
    one = module_of(merged.edit_one(lm, EDITS[:2])).weights
    assert len(two["deltas"]) == 2
    assert not torch.equal(two["deltas"][0] != 0, two["deltas"][1] != 0)  # masks of their own
    assert torch.equal(one["deltas"][0], ties(list(two["deltas"]), 1.0))
    assert float(one["acts"][0]) == float(two["acts"].min())
    three = module_of(merged.edit_one(lm, EDITS[:3]))
    assert len(three.weights["deltas"]) == 2
    mean = wise(make, save_freq=1, merge_freq=2, merge="mean").edit_one(lm, EDITS[:2])
    assert torch.equal(module_of(mean).weights["deltas"][0], two["deltas"].mean(0))


def test_ties_of_what_agrees_and_of_what_does_not() -> None:
    delta = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(ties([delta], 1.0), delta)
    assert torch.equal(ties([delta, delta], 1.0), delta)
    # a sum of zero counts as positive
    assert torch.equal(ties([delta, -delta], 1.0), delta.abs())
    half = ties([delta], 0.5)
    assert int((half != 0).sum()) == int(0.5 * delta.numel())
    assert float(half.abs()[half != 0].min()) >= float(delta.abs()[half == 0].max())


def test_it_stands_on_what_an_earlier_patch_left(tiny: Tiny, make: Make) -> None:
    """A change of the very matrix: the copy is a copy of the changed one."""
    lm = tiny("gpt2")
    after = low_rank(lm)
    editor = wise(make)
    patch = editor.edit_one(lm, EDITS[:1], after=after)
    with after.applied(lm):
        delta, _ = by_hand(lm, wise(make, weight_decay=0.0), EDITS[0])
    plain = module_of(wise(make, weight_decay=0.0).edit_one(lm, EDITS[:1], after=after))
    assert float((plain.weights["deltas"][0] - delta).norm() / delta.norm()) <= SAME
    assert patch.changes[0] is after.changes[0]


# ---------------------------------------------------------------------- what is refused


def test_what_cannot_be_extended_is_refused(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    first = wise(make).edit_one(lm, EDITS[:1])
    with pytest.raises(PatchError, match=r"act_ratio=0\.88, not with 0\.5"):
        wise(make, act_ratio=0.5).edit_one(lm, EDITS[1:2], after=first)
    with pytest.raises(PatchError, match="not at"):
        wise(make, layer=2).edit_one(lm, EDITS[1:2], after=first)
    with pytest.raises(PatchError, match="2 sets"):
        wise(make).edit_one(lm, EDITS[1:2], after=first + first)
    change = module_of(first)
    with pytest.raises(PatchError, match="format 9"):
        SideRoute({**change.config, "version": 9}, change.weights)
    with pytest.raises(PatchError, match="lack their acts"):
        SideRoute(change.config, {"deltas": change.weights["deltas"]})


def test_memories_beyond_the_room_are_refused_before_anything_is_edited(
    tiny: Tiny, make: Make
) -> None:
    lm = tiny("gpt2")
    site = lm.site(1)
    room = 1.5 * site.d_in * site.d_out * 8 / 1e9
    with pytest.raises(EditError, match="2 memories") as caught:
        wise(make, save_freq=1, merge="none", memory_gb=room).edit_one(lm, EDITS[:2])
    assert "memory_gb" in str(caught.value.hint)
    assert len(wise(make, save_freq=2, memory_gb=room).edit_one(lm, EDITS[:2]).changes) == 1


def test_merges_of_whole_memories_only() -> None:
    with pytest.raises((ConfigError, ValueError), match="no multiple"):
        WiseConfig(save_freq=3, merge_freq=5)


def test_an_unknown_activation_is_refused(tiny: Tiny, make: Make) -> None:
    with pytest.raises(errata.errors.ModelError, match="unknown activation"):
        wise(make, activation="nonsense").edit_one(tiny("gpt2"), EDITS[:1])
