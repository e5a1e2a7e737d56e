"""Fine-tuning's options against torch's own optimisers on a copy of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.locate.samples import EDITS
from torch import Tensor

from errata.case import Edit
from errata.editors.base import Editor
from errata.editors.ft import FineTuning, FtConfig
from errata.errors import ConfigError
from errata.model.lm import LM
from errata.patch import Dense, Patch
from errata.tuning.places import matrices_of, with_end

SAME = 1e-8
"""Float64 against torch.optim; Adam divides by small gradients and so amplifies rounding."""
Make = Callable[..., Editor]
Tiny = Callable[..., LM]


def by_torch(
    lm: LM,
    names: Sequence[str],
    batches: Sequence[Sequence[Edit]],
    *,
    end: int | None = None,
    lr: float = 0.01,
) -> dict[str, Tensor]:
    """One Adam over the given batches, in order."""
    model = copy.deepcopy(lm.model)
    parameters = {name: model.get_parameter(name).requires_grad_() for name in names}
    start = {name: p.detach().clone() for name, p in parameters.items()}
    adam = torch.optim.Adam(parameters.values(), lr=lr)
    for batch in batches:
        losses = []
        for edit in batch:
            row = lm.row_of(edit)
            ids, labels = [*row.ids, row.labels[-1]], list(row.labels)
            labels += [] if end is None else [end]
            logits = model(torch.tensor([ids])).logits[0]
            at = list(range(row.prompt_length - 1, row.prompt_length - 1 + len(labels)))
            losses.append(torch.nn.functional.cross_entropy(logits[at], torch.tensor(labels)))
        adam.zero_grad()
        torch.stack(losses).mean().backward()
        adam.step()
    return {name: p.detach() - start[name] for name, p in parameters.items()}


def close(patch: Patch, expected: dict[str, Tensor]) -> None:
    found: dict[str, Tensor] = {}
    for change in patch.changes:
        assert isinstance(change, Dense)
        found[change.path] = found.get(change.path, torch.zeros(())) + change.delta
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        assert float((found[name] - delta).norm()) <= SAME * float(delta.norm())


def test_the_answer_ends(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    end = lm.tokenizer.eos_token_id
    assert isinstance(end, int)
    patch = make("ft", layers=(1,), lr=0.01, steps=3, stop="eos").edit_one(lm, EDITS[:2])
    close(patch, by_torch(lm, [lm.site(1).weight], [EDITS[:2]] * 3, end=end))
    row = with_end(lm, lm.row_of(EDITS[0]))
    assert row.labels[-1] == end
    assert with_end(lm, row) is row  # not twice


def test_an_end_has_to_exist(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    tokenizer = copy.deepcopy(lm.tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="no token that ends a text"):
        make("ft", layers=(1,), stop="eos").edit_one(
            LM(lm.model, tokenizer, name="endless"), EDITS[:1]
        )


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("which", ["ffn", "block"])
def test_more_matrices(kind: str, which: str, tiny: Tiny, make: Make) -> None:
    lm = tiny(kind)
    patch = make("ft", layers=(1,), lr=0.01, steps=2, matrices=which).edit_one(lm, EDITS[:2])
    names = [site.weight for _, site in matrices_of(lm, [1], which)]  # type: ignore[arg-type]
    assert (
        len(names) == {"gpt2": {"ffn": 2, "block": 4}, "llama": {"ffn": 3, "block": 7}}[kind][which]
    )
    close(patch, by_torch(lm, names, [EDITS[:2]] * 2))


def test_a_block_is_one_block_not_those_whose_number_begins_alike(tiny: Tiny) -> None:
    """The released filter of names would take 10 to 19 along with 1."""
    lm = tiny("gpt2")
    found = matrices_of(lm, [1], "block")
    assert {lm.spec.layer_of(site.path) for _, site in found} == {1}


def test_another_order_in_every_pass(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    how = {"layers": (1,), "lr": 0.01, "steps": 3, "batch_size": 2, "shuffle": True, "seed": 5}
    generator = torch.Generator().manual_seed(5)
    batches = []
    for _ in range(3):
        order = torch.randperm(len(EDITS), generator=generator).tolist()
        batches += [[EDITS[i] for i in order[at : at + 2]] for at in range(0, len(order), 2)]
    patch = make("ft", **how).edit_one(lm, EDITS)
    close(patch, by_torch(lm, [lm.site(1).weight], batches))
    # a group's orders do not depend on the groups beside it
    beside = make("ft", **how).edit(lm, [EDITS[:3], EDITS])[1]
    close(beside, {c.path: c.delta for c in patch.changes if isinstance(c, Dense)})


def test_one_optimiser_over_a_sequence(tiny: Tiny, make: Make, tmp_path: Path) -> None:
    """Steps with kept moments are one run of Adam; from disk to the same bits."""
    lm = tiny("gpt2")
    editor = make("ft", layers=(1,), lr=0.01, steps=2, state="keep")
    first = editor.edit_one(lm, EDITS[:2])
    both = editor.edit_one(lm, EDITS[2:4], first)
    batches = [EDITS[:2], EDITS[:2], EDITS[2:4], EDITS[2:4]]
    close(both, by_torch(lm, [lm.site(1).weight], batches))
    loaded = Patch.load(first.save(tmp_path / "first"))
    again = editor.edit_one(lm, EDITS[2:4], loaded)
    assert all(
        torch.equal(a.tensors()["delta"], b.tensors()["delta"])
        for a, b in zip(both.changes, again.changes, strict=True)
    )
    fresh = make("ft", layers=(1,), lr=0.01, steps=2).edit_one(lm, EDITS[2:4], first)
    assert not torch.equal(
        fresh.changes[-1].tensors()["delta"], both.changes[-1].tensors()["delta"]
    )
    # moments of other matrices are not taken for these
    other = make("ft", layers=(2,), lr=0.01, steps=2, state="keep")
    other.edit_one(lm, EDITS[2:4], first).check_finite()


def test_earlier_edits_are_trained_on_again(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    how = {"layers": (1,), "lr": 0.01, "steps": 2}
    first = make("ft", **how).edit_one(lm, EDITS[:2])
    patch = make("ft", **how, replay=5).edit_one(lm, EDITS[2:3], first)
    assert patch.edits == (*EDITS[:2], EDITS[2])
    mixed = make("ft", **how).edit_one(lm, [EDITS[2], *EDITS[:2]], first)
    assert torch.equal(patch.changes[-1].tensors()["delta"], mixed.changes[-1].tensors()["delta"])
    # of one prompt the last answer
    second = make("ft", **how).edit_one(lm, [replace(EDITS[0], target="Oslo")], first)
    editor = make("ft", **how, replay=5)
    assert isinstance(editor, FineTuning)
    again = editor._replayed(second)
    assert [edit.target for edit in again if edit.prompt == EDITS[0].prompt] == ["Oslo"]


def test_breadth_first_by_name() -> None:
    from errata.editors import get_editor

    editor = get_editor("ft", as_published="locft")
    assert isinstance(editor.config, FtConfig)
    assert (editor.config.stop, editor.config.batch_size, editor.config.shuffle) == (
        "eos", 100, True,
    )  # fmt: skip
    other = get_editor("ft", as_published="locft-mistral-7b").config
    assert isinstance(other, FtConfig)
    assert (other.layers, other.matrices) == ((23,), "block")
