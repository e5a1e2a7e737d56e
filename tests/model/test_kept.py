"""Hidden states kept between passes: what a pass gives from there on is what it gives whole."""

from __future__ import annotations

import pytest
import torch
from tests.locate.samples import build

from errata.model.kept import Kept, putting, resuming
from errata.model.lm import LM
from errata.model.passes import capture, module_at

TEXTS = ("France is", "The capital of France is", "Who is the mayor of Berlin")
EXACT = {"float64": 1e-12, "float32": 1e-5}


def logits(lm: LM, texts: tuple[str, ...], kept: Kept | None, put: bool) -> list[torch.Tensor]:
    rows = [lm.row(text) for text in texts]
    batch = lm.batch(rows, range(len(rows)))
    at = torch.tensor([(i, len(row.ids) - 1) for i, row in enumerate(rows)])
    names = [row.ids for row in rows]
    with torch.no_grad():
        if put:
            assert kept is not None
            with putting(lm, kept, names, batch):
                return list(lm.logits(batch, at))
        with resuming(lm, kept, names, batch):
            return list(lm.logits(batch, at))


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "bloom"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_resumed_pass_is_the_whole_one(name: str, dtype: str) -> None:
    lm = build(name, dtype)
    kept = Kept(0)
    whole = logits(lm, TEXTS, kept, put=True)
    assert len(kept.rows) == 3
    # other rows beside it, padded to another width
    for some in (TEXTS, TEXTS[:1], TEXTS[1:]):
        again = logits(lm, some, kept, put=False)
        for text, found in zip(some, again, strict=True):
            near = EXACT[dtype]
            torch.testing.assert_close(found, whole[TEXTS.index(text)], rtol=near, atol=near)


def test_the_blocks_below_do_not_run() -> None:
    lm, kept = build("gpt2", "float64"), Kept(0)
    logits(lm, TEXTS, kept, put=True)
    for states in kept.rows.values():
        states.zero_()  # a mark: if block 0 ran, nothing would change
    whole = logits(lm, TEXTS, None, put=False)
    assert not torch.allclose(logits(lm, TEXTS, kept, put=False)[0], whole[0])


def test_a_batch_with_a_row_that_was_not_kept_runs_whole() -> None:
    lm = build("gpt2", "float64")
    row, other = lm.row(TEXTS[0]), lm.row(TEXTS[1])
    batch = lm.batch([row, other], range(2))
    _, (hidden,) = capture(lm, batch, outputs=[module_at(lm, 0, "block")])
    small = Kept(0, budget=len(row.ids) * hidden.shape[-1] * 8)
    small.put([row.ids, other.ids], [len(row.ids), len(other.ids)], hidden)
    assert list(small.rows) == [row.ids]
    assert small.held == small.budget
    assert small.of([row.ids, other.ids], 9) is None
    found = small.of([row.ids], 9)
    assert found is not None
    assert found.shape[1] == 9
    assert bool((found[0, len(row.ids) :] == 0).all())
    torch.testing.assert_close(found[0, : len(row.ids)], hidden[0, : len(row.ids)])


def test_nothing_is_kept_in_front_of_the_first_block() -> None:
    lm, kept = build("gpt2", "float64"), Kept(-1)
    first = logits(lm, TEXTS, kept, put=True)
    assert not kept.rows
    assert torch.equal(logits(lm, TEXTS, kept, put=False)[0], first[0])
