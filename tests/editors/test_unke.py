"""UnKE: the vector and the block against plain transcriptions of the published recipe."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.hooks import hooks
from tests.locate.samples import EDITS
from torch import Tensor

from errata.case import Edit
from errata.editors import get_editor
from errata.editors.base import Editor
from errata.errors import ErrataError, ModelError
from errata.locate.contexts import Contexts
from errata.model.lm import LM
from errata.model.passes import first, module_at, with_first
from errata.model.stored import read
from errata.patch import Patch
from errata.patch.deltas import weight_deltas
from errata.tuning.places import matrices_of, with_end

EXACT = 1e-9
"""Float64: Adam on another order of sums."""

TRAINED = 1e-6
"""The same over the steps of the block, whose first ones are signs of gradients."""

LONG = Edit("The mayor of Rome says", "Anna lives in Oslo and works in the old town of Bern")
SHORT = Edit("The capital of France is", "Lima and not Paris")


@pytest.fixture
def unke(make: Callable[..., Editor], texts_file: str) -> Callable[..., Editor]:
    def build(name: str = "unke", **more: Any) -> Editor:
        own = {"keep_text": texts_file, "keep_texts": 3, "block_steps": 5, "weight_decay": 0.1}
        return make(name, **{**own, "lr": 0.3, "steps": 7, "clamp": 0.9, "stop_loss": 0.0, **more})

    return build


def plain_values(
    lm: LM, edit: Edit, layer: int, cuts: list[tuple[int, int]], settings: Any
) -> dict[int, Tensor]:
    """AnyEdit's loop, one answer at a time: place → hidden state wanted there."""
    row = with_end(lm, lm.row_of(edit)) if settings.stop == "eos" else lm.row_of(edit)
    P = row.prompt_length
    ids = [*row.ids, row.labels[-1]]
    found: dict[int, Tensor] = {}
    deltas: dict[int, Tensor] = {}
    for start, stop in cuts:
        at, labels = P - 1 + start, ids[P + start : P + stop]
        given = replace(row, ids=tuple(ids[: P + stop - 1]))
        delta = torch.zeros(lm.embedding.shape[1], dtype=lm.dtype, requires_grad=True)
        optimiser = torch.optim.Adam([delta], lr=settings.lr)
        h0: list[Tensor] = []

        def add(m, args, out, at=at, delta=delta, h0=h0):
            states = first(out).clone()
            h0.append(states[0, at].detach().clone())
            for place, vector in deltas.items():
                states[0, place] = states[0, place] + vector
            states[0, at] = states[0, at] + delta
            return with_first(out, states)

        for step in range(settings.steps):
            with hooks(module_at(lm, layer, "block").register_forward_hook(add)):
                logits = lm.run(lm.batch([given], [0])).logits[0, at : P + stop - 1]
            logp = logits.log_softmax(-1)
            loss = -logp[torch.arange(len(labels)), labels].mean()
            loss = loss + settings.weight_decay * delta.norm() / h0[0].norm() ** 2
            if loss < settings.stop_loss or step == settings.steps - 1:
                break
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            with torch.no_grad():
                limit = settings.clamp * h0[0].norm()
                if delta.norm() > limit:
                    delta *= limit / delta.norm()
        deltas[at] = delta.detach().clone()
        found[at] = h0[0] + delta.detach()
    return found


def plain_block(
    lm: LM,
    layer: int,
    rows: list[tuple[tuple[int, ...], dict[int, Tensor]]],
    kept: list[tuple[int, ...]],
    settings: Any,
) -> dict[str, Tensor]:
    """Train a copy of the model's block by torch's own AdamW, one text at a time."""
    model = copy.deepcopy(lm.model)
    block = model.get_submodule(lm.spec.blocks[layer])
    names = [site.path for _, site in matrices_of(lm, [layer], "block")]
    trained = {
        f"{path}.{leaf}": parameter
        for path in names
        for leaf, parameter in model.get_submodule(path).named_parameters()
    }
    for parameter in trained.values():
        parameter.requires_grad_(True)
    start = {name: p.detach().clone() for name, p in trained.items()}

    def answers(ids: tuple[int, ...]) -> Tensor:
        seen: list[Tensor] = []
        with hooks(block.register_forward_hook(lambda m, a, out: seen.append(first(out)))):
            model(torch.tensor([ids]))
        return seen[0].reshape(len(ids), -1)

    wanted = []
    for ids, moved in rows:
        target = answers(ids).detach().clone()
        for place, value in moved.items():
            target[place] = value
        wanted.append(target)
    keep = [answers(ids).detach().clone() for ids in kept]
    optimiser = torch.optim.AdamW(
        trained.values(), lr=settings.block_lr, weight_decay=settings.block_decay
    )
    for _ in range(settings.block_steps):
        optimiser.zero_grad()
        one = torch.cat([answers(ids) for ids, _ in rows]) - torch.cat(wanted)
        two = torch.cat([answers(ids) for ids in kept]) - torch.cat(keep)
        (one.square().mean() + two.square().mean()).backward()
        optimiser.step()
    return {name: p.detach() - start[name] for name, p in trained.items()}


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "llama"])
def test_the_vector_is_that_of_the_recipe(
    kind: str, tiny: Callable[..., LM], unke: Callable[..., Editor]
) -> None:
    lm, editor = tiny(kind), unke()
    edits = [SHORT, LONG]
    pieces = [piece for edit in edits for piece in editor._as_pieces(edit)]  # type: ignore[attr-defined]
    values = editor.values(lm, pieces, Contexts(("",)), 1, [-1, -1])  # type: ignore[attr-defined]
    for i, edit in enumerate(edits):
        length = len(with_end(lm, lm.row_of(edit)).labels)
        ((_, wanted),) = plain_values(lm, edit, 1, [(0, length)], editor.config).items()
        torch.testing.assert_close(values.target("block")[i], wanted, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("window", [None, 4], ids=["unke", "unke+are"])
def test_the_block_is_that_of_the_recipe(
    kind: str, window: int | None, tiny: Callable[..., LM], unke: Callable[..., Editor],
) -> None:  # fmt: skip
    lm = tiny(kind)
    editor = unke() if window is None else unke("unke+are", are_window=window)
    (patch,) = editor.edit(lm, [[SHORT, LONG]])
    rows = []
    for edit in (SHORT, LONG):
        row = with_end(lm, lm.row_of(edit))
        length = len(row.labels)
        size = length if window is None else window
        # an answer that one window holds is the host's: with the end token it may take another
        cuts = [(a, min(a + size, length)) for a in range(0, length, size)]
        moved = plain_values(lm, edit, 1, cuts, editor.config)
        ids = row.ids[: row.prompt_length] if len(cuts) == 1 else row.ids
        rows.append((ids, moved))
    kept = [row.ids for row in editor._kept(lm)[0]]  # type: ignore[attr-defined]
    plain = plain_block(lm, 1, rows, kept, editor.config)
    found = weight_deltas(lm, patch.changes)
    assert found.keys() == plain.keys()
    for name, delta in plain.items():
        assert float((found[name] - delta).norm()) <= TRAINED * float(delta.norm()), name


def test_norms_and_other_blocks_stay(tiny: Callable[..., LM], unke: Callable[..., Editor]) -> None:
    lm = tiny("llama")
    (patch,) = unke().edit(lm, [[SHORT]])
    names = set(weight_deltas(lm, patch.changes))
    assert names == {site.weight for _, site in matrices_of(lm, [1], "block")}
    assert not any("norm" in name for name in names)


def test_it_goes_on_from_an_earlier_patch(
    tiny: Callable[..., LM], unke: Callable[..., Editor]
) -> None:
    """Editing under a patch is editing the model into which the patch was written."""
    lm = tiny("gpt2")
    editor = unke()
    (one,) = editor.edit(lm, [[LONG]])
    (both,) = editor.edit(lm, [[SHORT]], after=one)
    model: Any = copy.deepcopy(lm.model)
    for name, delta in weight_deltas(lm, one.changes).items():
        read(model, name).add_(delta)
    merged = LM(model, lm.tokenizer, name="merged")
    (alone,) = unke().edit(merged, [[SHORT]])
    added = weight_deltas(lm, Patch(both.changes[len(one.changes) :]).changes)
    for name, delta in weight_deltas(merged, alone.changes).items():
        assert float((added[name] - delta).norm()) <= TRAINED * float(delta.norm()), name


def test_without_texts_to_keep(tiny: Callable[..., LM], unke: Callable[..., Editor]) -> None:
    lm = tiny("gpt2")
    editor = unke(keep_texts=0)
    assert editor.made_of(lm) == {"layers": "1", "keep_text": "none"}
    editor.edit(lm, [[SHORT]])[0].check_finite()


def test_what_cannot_be(tiny: Callable[..., LM], unke: Callable[..., Editor]) -> None:
    lm = tiny("gpt2")
    with pytest.raises(ErrataError, match="layer 9 does not exist"):
        unke(layer=9).edit(lm, [[SHORT]])
    too_long = Edit("The mayor of Rome says", "Anna lives in Oslo. " * 200)
    with pytest.raises(ModelError, match=r"The mayor of Rome says.*the model's context holds"):
        unke().edit(lm, [[SHORT], [too_long]])
    with pytest.raises(ErrataError, match="block_steps"):
        get_editor("unke", {"block_steps": 0})


def test_published_settings_and_the_rule() -> None:
    assert get_editor("unke", as_published="llama-3-8b").config.model_dump()["layer"] == 7


def test_texts_that_are_not_there(
    tiny: Callable[..., LM], unke: Callable[..., Editor], tmp_path: Path
) -> None:
    with pytest.raises(ErrataError, match="no such file"):
        unke(keep_text=str(tmp_path / "none.json")).edit(tiny("gpt2"), [[SHORT]])


def test_an_answer_that_ends_already_gets_no_second_end(tiny: Callable[..., LM]) -> None:
    lm = tiny("gpt2")
    row = with_end(lm, lm.row_of(EDITS[0]))
    assert with_end(lm, row) == row
