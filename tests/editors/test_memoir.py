"""MEMOIR on models: writing, masks, the route, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.locate.samples import EDITS
from torch import Tensor

from errata.case import Edit
from errata.editors.base import Editor
from errata.editors.memoir.editor import Memoir
from errata.editors.memoir.memory import (
    Memory,
    ResidualMemory,
    Use,
    masks_of,
    packed,
    unpacked,
)
from errata.errors import EditError, PatchError
from errata.model.lm import LM
from errata.model.passes import Pass, capture
from errata.patch import Module, Patch

SAME = 1e-9
"""Float64, relative: the same steps, each row alone instead of padded together."""

Make = Callable[..., Editor]
Tiny = Callable[..., LM]


def memoir(make: Make, **settings: Any) -> Memoir:
    editor = make("memoir", **{"lr": 0.5, "tau": 0.6, **settings})
    assert isinstance(editor, Memoir)
    return editor


def module_of(patch: Patch) -> Module:
    (module,) = [change for change in patch.changes if isinstance(change, Module)]
    return module


def memory_of(patch: Patch) -> Memory:
    change = module_of(patch)
    return Memory.restored(change.config, change.weights)


def chosen(lm: LM, patch: Patch, text: str) -> int:
    """Return the edit whose mask a text reads with, -1: none."""
    network: Any = module_of(patch).build()
    assert isinstance(network, ResidualMemory)
    row = lm.row(text)
    batch = lm.batch([row], [0])
    with torch.no_grad():
        (given,), _ = capture(lm, batch, [lm.module(module_of(patch).path)])
    seen = Pass(batch.input_ids, batch.attention_mask.bool(), torch.tensor([len(row.ids)]))
    return int(network.chosen(given, seen)[0])


# ---------------------------------------------------------------------- writing


def by_hand(lm: LM, editor: Memoir, edit: Edit, mask: Tensor) -> Tensor:
    """Write with torch's own optimiser and clipping, every row alone."""
    from torch.nn import functional as F

    site, config = lm.site(1), editor.config
    rows = editor.rows_of(lm, edit, -1).rows[:-1]
    matrix = torch.zeros(site.d_out, site.d_in, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([matrix], config.lr, weight_decay=config.weight_decay)

    def add(module: Any, args: Any, output: Tensor) -> Tensor:
        return output + (args[0] * mask) @ matrix.T

    handle = lm.module(site.path).register_forward_hook(add)
    try:
        for _ in range(config.steps):
            losses = []
            for row in rows:
                logits = lm.model(torch.tensor([row.ids])).logits[0]
                losses.append(
                    F.cross_entropy(logits[list(row.positions)], torch.tensor(row.labels))
                )
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            assert matrix.grad is not None
            size = matrix.grad.norm()
            matrix.grad.mul_(config.clip / size.clamp(min=config.clip))
            optimizer.step()
    finally:
        handle.remove()
    return matrix.detach()


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_an_edit_is_written_as_the_recipe_says(
    kind: str, decay: float, tiny: Tiny, make: Make
) -> None:
    lm = tiny(kind)
    editor = memoir(make, weight_decay=decay)
    memory = memory_of(editor.edit_one(lm, EDITS[:1]))
    assert len(memory) == 1
    expected = by_hand(lm, editor, EDITS[0], memory.masks[0].double())
    assert float((memory.matrix - expected).norm() / expected.norm()) <= SAME


def test_the_mask_by_its_definition(tiny: Tiny, make: Make) -> None:
    """The most active entries of the mean input less that of other texts, permuted."""
    lm = tiny("gpt2")
    editor = memoir(make, share=0.25)
    memory = memory_of(editor.edit_one(lm, EDITS[:1]))
    site = lm.site(1)
    module = lm.module(site.path)

    def mean(row: Any) -> Tensor:
        with torch.no_grad():
            (given,), _ = capture(lm, lm.batch([row], [0]), [module])
        return given[0].mean(0)

    centre = torch.stack([mean(row) for row in editor.texts(lm)]).mean(0)
    torch.testing.assert_close(memory.centre, centre, rtol=1e-12, atol=1e-12)
    phi = mean(lm.row(EDITS[0].prompt)) - centre
    k = round(0.25 * site.d_in)
    best = sorted(range(site.d_in), key=lambda i: (-abs(float(phi[i])), i))[:k]
    assert sorted(memory.order.tolist()) == list(range(site.d_in))
    wanted = {int(memory.order[i]) for i in best}
    assert set(memory.masks[0].nonzero()[:, 0].tolist()) == wanted


def test_columns_that_no_edit_holds_stay_zero(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    patch = memoir(make, weight_decay=0.1, share=0.1).edit_one(lm, EDITS)
    memory = memory_of(patch)
    union = memory.masks.any(0)
    assert 0 < int(union.sum()) < union.numel()
    assert bool((memory.matrix[:, ~union] == 0).all())
    assert len(module_of(patch).weights["columns"]) <= int(union.sum())


# ---------------------------------------------------------------------- the route


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
def test_what_is_like_no_edit_keeps_its_bits(kind: str, tiny: Tiny, make: Make) -> None:
    lm = tiny(kind, "float32")
    patch = memoir(make, tau=0.95).edit_one(lm, EDITS[:2])
    texts = [*(edit.prompt for edit in EDITS[:2]), "Is it?", "We saw the sea and the town."]
    rows = [lm.row(text) for text in texts]
    batch = lm.batch(rows, range(len(rows)))
    with torch.no_grad():
        before = lm.run(batch).logits
        with patch.applied(lm):
            after = lm.run(batch).logits
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [
        False, False, True, True,
    ]  # fmt: skip
    assert [chosen(lm, patch, text) for text in texts] == [0, 1, -1, -1]


def test_overlaps_are_counted() -> None:
    """By hand: eight entries, masks of two, an identity permutation."""
    order = torch.arange(8)
    masks = masks_of(
        torch.tensor([[0.0, -5, 3, 0, 0, 0, 0, 1], [2.0, 2, 2, 0, 0, 0, 0, 0]]), order, 2
    )
    assert masks.nonzero().tolist() == [[0, 1], [0, 2], [1, 0], [1, 1]]  # ties: the first ones
    memory = Memory(torch.zeros(3, 8), masks, order, torch.zeros(8))
    assert memory.overlaps(masks).tolist() == [[2.0, 1.0], [1.0, 2.0]]
    assert torch.equal(unpacked(packed(masks), 8), masks)
    odd = torch.rand(3, 13) > 0.5
    assert torch.equal(unpacked(packed(odd), 13), odd)


def test_overlap_by_chance(tiny: Tiny) -> None:
    """Two unrelated masks share k/f of their columns, whatever the permutation."""
    generator = torch.Generator().manual_seed(0)
    phi = torch.randn(200, 500, generator=generator)
    shares = []
    for order in (torch.arange(500), torch.randperm(500, generator=generator)):
        masks = masks_of(phi, order, 100).double()
        shared = (masks @ masks.T / 100)[~torch.eye(200, dtype=torch.bool)]
        shares.append(float(shared.mean()))
    assert shares[0] == pytest.approx(0.2, abs=0.01)
    assert shares[0] == pytest.approx(shares[1], abs=1e-12)


def test_tau_lies_between_other_texts_and_the_edit(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    editor = memoir(make, tau="auto")
    first = editor.edit_one(lm, EDITS[:1])
    tau = module_of(first).config["tau"]
    assert 0.25 < tau <= 1
    later = editor.edit_one(lm, EDITS[1:2], after=first)
    assert module_of(later).config["tau"] == tau


# ---------------------------------------------------------------------- patches


def test_a_group_is_a_sequence(tiny: Tiny, make: Make, tmp_path: Path) -> None:
    """Bit for bit, from disk as well; an edit that is there already has its mask once."""
    lm = tiny("gpt2", "float32")
    editor = memoir(make)
    edits = [*EDITS[:3], EDITS[0]]
    whole = module_of(editor.edit_one(lm, edits))
    patch = None
    for number, edit in enumerate(edits):
        patch = editor.edit_one(lm, [edit], after=patch)
        patch = Patch.load(patch.save(tmp_path / str(number)))
    assert patch is not None
    grown = module_of(patch)
    assert grown.config == whole.config
    for name, tensor in whole.weights.items():
        assert torch.equal(grown.weights[name], tensor), name
    assert len(memory_of(patch)) == 3


def test_what_cannot_be_extended_is_refused(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    first = memoir(make).edit_one(lm, EDITS[:1])
    with pytest.raises(PatchError, match="masks of 20 columns"):
        memoir(make, share=0.5).edit_one(lm, EDITS[1:2], after=first)
    with pytest.raises(PatchError, match="not at"):
        memoir(make, layer=2).edit_one(lm, EDITS[1:2], after=first)
    with pytest.raises(PatchError, match="2 memories"):
        memoir(make).edit_one(lm, EDITS[1:2], after=first + first)
    change = module_of(first)
    with pytest.raises(PatchError, match="format 9"):
        ResidualMemory({**change.config, "version": 9}, change.weights)
    names = {name: t for name, t in change.weights.items() if name != "order"}
    with pytest.raises(PatchError, match="lacks its order"):
        ResidualMemory(change.config, names)
    with pytest.raises(EditError, match="limit"):
        memoir(make, memory_gb=1e-7).edit_one(lm, EDITS[:1])
    assert Use.of(change.config).k == 20
