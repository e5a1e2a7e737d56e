"""Updates kept apart: the request's own under its prompt, and not one bit anywhere else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.locate.samples import build
from torch import Tensor

from errata.errors import PatchError
from errata.model.lm import LM
from errata.patch import LowRank, Patch
from errata.patch.changes.retrieved import KeySpace, Lookup, Retrieved, Store
from errata.patch.stack import Stack

EXACT = 1e-10
"""Float64: the same product, on a row alone and in place in the weight."""

IN, NEAR, OUT = "Ada lives in", "Ben lives in", "The mayor of Oslo is"


@pytest.fixture(scope="module")
def lm() -> LM:
    return build("gpt2")


def low_rank(lm: LM, seed: int, rank: int = 2) -> list[LowRank]:
    g = torch.Generator().manual_seed(seed)
    made = []
    for layer in (1, 2):
        site = lm.site(layer)
        B, A = (
            torch.randn(*shape, generator=g, dtype=torch.float64)
            for shape in ((site.d_out, rank), (rank, site.d_in))
        )
        made.append(LowRank(site.path, 0.3 * B, 0.3 * A))
    return made


def memory(
    lm: LM,
    prompts: dict[str, list[LowRank]],
    threshold: float = 1 - 1e-9,
    space: KeySpace | None = None,
) -> Retrieved:
    space = space or KeySpace(lm.n_layers - 1)
    keys = space.of(lm, [lm.row(prompt).ids for prompt in prompts])
    paths = [change.path for change in next(iter(prompts.values()))]
    stores = {
        path: Store.joined([own[at] for own in prompts.values()]) for at, path in enumerate(paths)
    }
    return Retrieved(keys, stores, threshold, space)


def logits(lm: LM, prompts: list[str], patch: Patch | None = None, stack: bool = False) -> Tensor:
    rows = [lm.row(prompt) for prompt in prompts]
    found = []
    for row in rows:

        def run(row: Any = row) -> Tensor:
            batch = lm.batch([row], [0])
            return lm.logits(batch, torch.tensor([[0, len(row.ids) - 1]]))[0]

        if patch is None:
            found.append(run())
        elif stack:
            with Stack(lm, [patch]):
                found.append(run(replace(row, patch=0)))
        else:
            with patch.applied(lm):
                found.append(run())
    return torch.stack(found).detach()


@pytest.mark.parametrize("stack", [False, True])
def test_each_prompt_runs_under_its_own_update(lm: LM, stack: bool) -> None:
    both = {IN: low_rank(lm, 0), NEAR: low_rank(lm, 1, 3)}
    patch = Patch((memory(lm, both),))
    base = logits(lm, [IN, NEAR, OUT])
    found = logits(lm, [IN, NEAR, OUT], patch, stack)
    for number, prompt in enumerate((IN, NEAR)):
        alone = logits(lm, [prompt], Patch(tuple(both[prompt])))[0]
        assert float((found[number] - alone).abs().max()) < EXACT
        assert float((found[number] - base[number]).abs().max()) > 1e-3
    assert torch.equal(found[2], base[2])
    assert torch.equal(logits(lm, [IN, NEAR, OUT]), base)


def test_rows_side_by_side_each_have_their_memory(lm: LM) -> None:
    first, second = (Patch((memory(lm, {p: low_rank(lm, s)}),)) for p, s in ((IN, 0), (NEAR, 1)))
    rows = [replace(lm.row(p), patch=g) for g in (0, 1, -1) for p in (IN, NEAR)]
    with Stack(lm, [first, second]):
        batch = lm.batch(rows, range(len(rows)))
        at = torch.tensor([[i, len(row.ids) - 1] for i, row in enumerate(rows)])
        found = lm.logits(batch, at).detach()
    with torch.no_grad():
        base = lm.logits(lm.batch([replace(r, patch=-1) for r in rows], range(len(rows))), at)
    same = [torch.equal(a, b) for a, b in zip(found, base, strict=True)]
    assert same == [False, True, True, False, True, True]


def test_a_question_goes_on_under_the_update_of_its_prompt(lm: LM) -> None:
    """Answer tokens that are given, or were generated, do not change what a row is about."""
    patch = Patch((memory(lm, {IN: low_rank(lm, 0)}),))
    alone = Patch(tuple(low_rank(lm, 0)))
    rows = [lm.row(IN, "Rome"), lm.row(OUT, "Rome")]
    said = []
    for each in (patch, alone):
        with each.applied(lm):
            said.append((lm.score(rows), lm.generate([IN], 5)))
    assert said[0][1] == said[1][1]
    assert said[0][0][0].logprobs == pytest.approx(said[1][0][0].logprobs, abs=EXACT)
    assert said[0][0][1].logprobs == lm.score(rows)[1].logprobs


def test_it_comes_back_from_disk(lm: LM, tmp_path: Path) -> None:
    patch = Patch((memory(lm, {IN: low_rank(lm, 0), NEAR: low_rank(lm, 1, 3)}),))
    loaded = Patch.load(patch.save(tmp_path / "p"))
    assert torch.equal(logits(lm, [IN, NEAR], patch), logits(lm, [IN, NEAR], loaded))
    assert loaded.changes[0].describe() == patch.changes[0].describe()


def test_a_later_answer_to_a_prompt_takes_the_place_of_the_earlier(lm: LM) -> None:
    old = memory(lm, {IN: low_rank(lm, 0), NEAR: low_rank(lm, 1, 3)})
    new = memory(lm, {IN: low_rank(lm, 2)})
    grown = old.grown(new)
    assert len(grown) == 2
    want = logits(lm, [IN], Patch(tuple(low_rank(lm, 2))))
    assert float((logits(lm, [IN], Patch((grown,))) - want).abs().max()) < EXACT
    kept = logits(lm, [NEAR], Patch(tuple(low_rank(lm, 1, 3))))
    assert float((logits(lm, [NEAR], Patch((grown,))) - kept).abs().max()) < EXACT


def test_what_does_not_fit_is_refused(lm: LM) -> None:
    own = memory(lm, {IN: low_rank(lm, 0)})
    with pytest.raises(PatchError, match="compares prompts otherwise"):
        own.grown(replace(own, space=KeySpace(0)))
    with pytest.raises(PatchError, match=r"compares \d+ numbers"):
        replace(own, keys=own.keys[:, :-1]).check(lm)
    with pytest.raises(PatchError, match="LoRA cannot carry the memory of 1 updates"):
        own.projection(lm)
    entry, tensors = own.describe(), own.tensors()
    with pytest.raises(PatchError, match="of version 9"):
        Retrieved.from_entry({**entry, "version": 9}, tensors)
    with pytest.raises(PatchError, match="of different requests"):
        Retrieved.from_entry(entry, {**tensors, "A.0": tensors["A.0"][:1]})
    with pytest.raises(PatchError, match="'keys' is missing"):
        Retrieved.from_entry(entry, {k: v for k, v in tensors.items() if k != "keys"})


def test_the_nearest_of_many_keys_is_found_in_parts(
    lm: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded whatever the number of questions and keys; the choice is the same."""
    drawn = torch.randn(48, lm.embedding.shape[1], generator=torch.Generator().manual_seed(0))
    keys, states = torch.nn.functional.normalize(drawn.double(), dim=-1).split([37, 11])
    lookup = Lookup(lm, Retrieved(keys, {}, 0.2, KeySpace(lm.n_layers - 1)))
    whole = lookup.nearest(states)
    monkeypatch.setattr("errata.patch.changes.retrieved.PAIRS", 80)
    assert lookup.nearest(states) == whole
    for state, found in zip(states, whole, strict=True):
        products = [float(state @ key) for key in keys]
        best = products.index(max(products))
        assert found == (best if products[best] >= 0.2 else -1)
    assert -1 not in whole or len(set(whole)) > 2


def test_how_prompts_are_compared_is_saved(lm: LM, tmp_path: Path) -> None:
    width = lm.embedding.shape[1]
    g = torch.Generator().manual_seed(3)
    space = KeySpace(
        1, "mean", torch.randn(width, generator=g), torch.randn(width, width, generator=g)
    )
    own = memory(lm, {IN: low_rank(lm, 0), NEAR: low_rank(lm, 1)}, 0.99, space)
    patch = Patch((own,))
    loaded = Patch.load(patch.save(tmp_path / "p"))
    back = loaded.changes[0]
    assert isinstance(back, Retrieved)
    assert back.space.same(space)
    assert torch.equal(logits(lm, [IN, NEAR, OUT], loaded), logits(lm, [IN, NEAR, OUT], patch))
    assert not torch.equal(logits(lm, [IN], patch), logits(lm, [IN]))
    assert torch.equal(logits(lm, [OUT], patch), logits(lm, [OUT]))


def test_a_memory_of_before_compares_last_tokens(lm: LM) -> None:
    own = memory(lm, {IN: low_rank(lm, 0)})
    entry = own.describe()
    del entry["pool"]
    assert Retrieved.from_entry(entry, own.tensors()).space.same(own.space)


@pytest.mark.parametrize(
    ("pool", "tensors"),
    [
        ("first", {}),
        (7, {}),
        ("mean", {"centre": torch.zeros(3)}),
        ("mean", {"white": torch.zeros(3, 3)}),
        ("mean", {"white": torch.zeros(2, dtype=torch.int64)}),
    ],
)
def test_a_damaged_way_to_compare_is_refused(lm: LM, pool: Any, tensors: dict[str, Tensor]) -> None:
    own = memory(lm, {IN: low_rank(lm, 0)})
    with pytest.raises(PatchError):
        Retrieved.from_entry({**own.describe(), "pool": pool}, {**own.tensors(), **tensors})
