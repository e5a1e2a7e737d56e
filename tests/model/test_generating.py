"""Texts that grow behind cached keys and values say what whole rows and transformers say."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.locate.samples import EDITS

from errata.editors import get_editor
from errata.errors import ModelError
from errata.model import generating
from errata.model.generating import Growing, before_stop, continuations
from errata.model.lm import LM
from errata.model.tokens import Row, patched, positions_of
from errata.patch import Context, Patch
from errata.patch.around import AroundModel
from errata.patch.stack import Stack

PROMPTS = ["The capital of France is", "Who", "Anna lives in Berlin and works for the city. Anna"]


def whole_rows(lm: LM, rows: list[Row], limits: list[int]) -> list[list[int]]:
    """Return new tokens, each found by running the row from its beginning, alone."""
    said = []
    for row, limit in zip(rows, limits, strict=True):
        ids = list(row.ids)
        for _ in range(limit):
            now = [replace(row, ids=tuple(ids), positions=(len(ids) - 1,), labels=())]
            at = positions_of(now, [0], lm.device)
            token = int(lm.logits(lm.batch(now, [0]), at).argmax())
            if token == lm.tokenizer.eos_token_id:
                break
            ids.append(token)
        said.append(ids[len(row.ids) :])
    return said


def patches_for(lm: LM) -> list[Patch]:
    editor = get_editor("ft", {"layers": (1,), "steps": 4, "lr": 0.05})
    return editor.edit(lm, [[edit] for edit in EDITS[:3]])


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "llama", "gemma3", "bloom", "opt", "mistral"])
@torch.no_grad()
def test_stacked_rows_say_what_each_says_alone(tiny: Callable[..., LM], name: str) -> None:
    lm = tiny(name, "float64")
    rows = patched([lm.row(prompt) for prompt in PROMPTS] * 2, [0, 1, 2, -1, 0, 1])
    limits = [7, 12, 3, 9, 1, 0]
    with Stack(lm, patches_for(lm)):
        expected = [lm.text(ids) for ids in whole_rows(lm, rows, limits)]
        assert continuations(lm, rows, limits) == expected
        plain = continuations(lm, patched(rows, [-1] * 6), limits)
    assert plain == continuations(lm, patched(rows, [-1] * 6), limits)
    assert expected != plain


@pytest.mark.parametrize("cached", [True, False])
def test_rows_leave_one_by_one(
    tiny: Callable[..., LM], monkeypatch: pytest.MonkeyPatch, cached: bool
) -> None:
    lm = tiny("qwen3", "float64")
    if not cached:
        monkeypatch.setattr(LM, "prefix_cache_works", property(lambda self: False))
    widths: list[int] = []
    logits = LM.logits

    def counted(self: LM, batch: Any, at: Any, **more: Any) -> torch.Tensor:
        widths.append(len(batch))
        return logits(self, batch, at, **more)

    rows = [lm.row(PROMPTS[0])] * 8
    expected = [lm.text(ids) for ids in whole_rows(lm, rows, list(range(1, 9)))]
    monkeypatch.setattr(LM, "logits", counted)
    assert continuations(lm, rows, list(range(1, 9))) == expected
    assert widths[0] == 8
    assert widths[-1] <= 2
    assert sum(widths) < 64


def test_many_rows_are_held_in_parts(
    tiny: Callable[..., LM], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny("gpt2", "float64")
    rows = [lm.row(prompt) for prompt in PROMPTS * 3]
    expected = continuations(lm, rows, 5)
    monkeypatch.setattr(generating, "HELD", 0.01)
    assert continuations(lm, rows, 5) == expected


def test_stops_end_an_answer_and_are_left_out(tiny: Callable[..., LM]) -> None:
    lm = tiny("gpt2", "float64")
    (full,) = continuations(lm, [lm.row(PROMPTS[0])], 20)
    assert len(full) > 6
    for stop in (full[3], full[4:7]):
        (text,) = continuations(lm, [lm.row(PROMPTS[0])], 20, stops=[stop, "never said"])
        assert text == full[: full.index(stop)]
    assert before_stop("Paris. The", (".", "\n")) == "Paris"
    assert before_stop("Paris", (".", "\n")) == "Paris"


def test_a_text_ends_where_the_model_does(tiny: Callable[..., LM]) -> None:
    lm = tiny("gpt2", "float64")
    row = lm.row("The capital of France is " * 8)
    room = (lm.max_length or 0) - len(row.ids)
    with torch.no_grad():
        (said,) = whole_rows(lm, [row], [room])
    assert continuations(lm, [row], room + 50) == [lm.text(said)]


@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "qwen3", "bloom", "opt", "mistral"])
@torch.no_grad()
def test_texts_grow_behind_contexts(
    tiny: Callable[..., LM], name: str, stacked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny(name, "float64")
    texts = ("Anna lives in Rome.", "The capital of France is Oslo. Eve lives in")
    patches = [
        Patch.for_model(lm, [Context(torch.tensor(lm.row(text).ids), text)], editor="hand")
        for text in texts
    ]
    rows = [lm.row(prompt) for prompt in PROMPTS]
    limits = [7, 12, 3]
    sizes: list[int] = []
    logits = LM.logits

    def counted(self: LM, batch: Any, at: Any, **more: Any) -> torch.Tensor:
        sizes.append(batch.input_ids.numel())
        return logits(self, batch, at, **more)

    monkeypatch.setattr(LM, "logits", counted)
    where = Stack(lm, patches) if stacked else patches[1].applied(lm)
    placed = patched(rows, [0, 1, 1]) if stacked else rows
    with where:
        grown = continuations(lm, placed, limits)
        few = sum(sizes)
        sizes.clear()
        with monkeypatch.context() as whole:
            whole.setattr(AroundModel, "in_front", lambda self, rows: None)
            assert continuations(lm, placed, limits) == grown
            next_ones = Growing(lm, placed, 1).logits()
        assert few < sum(sizes) / 2
        torch.testing.assert_close(Growing(lm, placed, 1).logits(), next_ones, rtol=0, atol=1e-6)
        # without a context a row keeps the model's bits: such rows are run whole
        mixed = continuations(lm, patched(rows, [0, -1, 1]), limits) if stacked else None
    if mixed is not None:
        assert mixed == [grown[0], *continuations(lm, rows[1:2], limits[1:2]), grown[2]]
    assert not torch.allclose(Growing(lm, rows, 1).logits(), next_ones, rtol=0, atol=1e-3)


def test_there_has_to_be_room_behind_a_context(tiny: Callable[..., LM]) -> None:
    lm = tiny("gpt2", "float64")
    row = lm.row(PROMPTS[1])
    room = (lm.max_length or 0) - len(row.ids)
    ids = torch.tensor((lm.row(PROMPTS[2]).ids * room)[: room - 3])
    with Patch.for_model(lm, [Context(ids, "long")], editor="hand").applied(lm):
        assert continuations(lm, [row], 3)[0]
        with pytest.raises(ModelError, match="context and input need"):
            continuations(lm, [row], 9)
