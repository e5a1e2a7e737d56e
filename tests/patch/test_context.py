"""A context in front of every row is the joined text, on every architecture and by every call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from tests.tiny_models import TINY
from torch import Tensor

from errata.editors.grace.codebook import Codebook
from errata.errors import ModelError, PatchError
from errata.model.lm import LM
from errata.model.passes import capture
from errata.model.tokens import Batch, Row
from errata.patch import Change, Context, Patch
from errata.patch.stack import Stack
from errata.testing.measured import low_rank
from errata.testing.models import build_model, modern, qwen3, tiny_tokenizer

MIXED = ["sliding_attention", "full_attention", "sliding_attention"]
WINDOWS: dict[str, Callable[[], Any]] = {
    "mistral-window": lambda: build_model("Mistral", **modern(sliding_window=4)),
    "gemma3-window": lambda: build_model(
        "Gemma3Text", **modern(sliding_window=4, layer_types=MIXED)
    ),
    "qwen3-window": lambda: qwen3(sliding_window=2, use_sliding_window=True, layer_types=MIXED),
}
"""Windows shorter than the contexts: the last one is like the pocket model's."""
FAMILIES = sorted(name for name in TINY if "-" not in name)
FAMILIES += ["falcon-serial", "opt-postnorm", "stablelm-parallel", *WINDOWS]
PLAIN = "qwen3"
SAME = 1e-9
"""Float64: the same number by another way."""
ROUNDED = {"gemma2": 1e-6}
"""Attention weights in float32, whatever the model's type."""

FIRST, SECOND, LONG = (9, 4, 17, 30, 5, 9), (21, 3, 8), tuple(range(40, 75))
ROWS = [
    Row((5, 6, 7, 8), (2, 3), (8, 9), 3),
    Row((5, 9), (1,), (4,), 2),
    Row((11, 6, 7, 12, 14, 80, 3), (4, 5, 6), (80, 3, 4), 5),
]
PROMPTS = ["The capital of France is", "Anna"]


@cache
def build(family: str) -> LM:
    """A tiny model in float64, with the attention that keeps it."""
    model = (TINY | WINDOWS)[family]().double()
    if family not in {"gemma2", "bloom", "gptj"} and not family.startswith("falcon"):
        model.set_attn_implementation("sdpa")
    return LM(model, tiny_tokenizer(), name=f"tiny-{family}")


def context(ids: Sequence[int]) -> Context:
    return Context(torch.tensor(ids), "some text")


def patch(lm: LM, *changes: Change | Sequence[int]) -> Patch:
    made = [context(c) if isinstance(c, tuple) else c for c in changes]
    return Patch.for_model(lm, made, editor="hand")  # pyright: ignore[reportArgumentType]


def behind(ids: Sequence[int], row: Row) -> Row:
    """The row with the context spelled out."""
    n = len(ids)
    moved = tuple(p + n for p in row.positions)
    return Row((*ids, *row.ids), moved, row.labels, n + row.prompt_length)


def scores(lm: LM, rows: Sequence[Row], **how: Any) -> Tensor:
    return torch.tensor([x for s in lm.score(rows, **how) for x in s.logprobs], dtype=torch.float64)


def joined(lm: LM, ids: Sequence[int], rows: Sequence[Row] = ROWS) -> Tensor:
    """The same without any context."""
    return scores(lm, [behind(ids, row) for row in rows])


def same(found: Tensor, expected: Tensor, family: str = "") -> None:
    limit = ROUNDED.get(family, SAME)
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=limit)


def greedy(lm: LM, ids: Sequence[int], count: int) -> list[int]:
    """The next tokens by full passes over one row."""
    row = list(ids)
    with torch.no_grad():
        for _ in range(count):
            given = torch.tensor([row])
            row.append(int(lm.model(given, use_cache=False).logits[0, -1].argmax()))
    return row[len(ids) :]


# ---------------------------------------------------------------------- every architecture


@pytest.mark.parametrize("family", FAMILIES)
def test_a_context_is_the_joined_text(family: str) -> None:
    """In place, and where each row of a pass has another context, or none."""
    lm = build(family)
    contexts = [FIRST, LONG, (), SECOND]
    base = scores(lm, ROWS)
    expected = [joined(lm, ids) for ids in contexts]
    with patch(lm, FIRST).applied(lm):
        same(scores(lm, ROWS), expected[0], family)
    patches = [patch(lm, ids) for ids in contexts if ids]
    with Stack(lm, patches) as stack:
        owners = [0] * 3 + [1] * 3 + [-1] * 3 + [2] * 3
        same(scores(lm, ROWS * 4, stack=stack, groups=owners), torch.cat(expected), family)
    assert torch.equal(scores(lm, ROWS), base)
    assert not torch.allclose(base, expected[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_contexts_begin_with_is_computed_once(family: str) -> None:
    lm = build(family)
    begin = LONG[:20]
    contexts = [(*begin, *FIRST), (*begin, *SECOND), (*begin, 7)]
    expected = [joined(lm, ids) for ids in contexts]
    read: list[int] = []
    block = lm.module(lm.spec.blocks[0])
    with Stack(lm, [patch(lm, ids) for ids in contexts]) as stack:
        same(
            scores(lm, ROWS * 3, stack=stack, groups=[0] * 3 + [1] * 3 + [2] * 3),
            torch.cat(expected),
            family,
        )
    mark = block.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(
            (args[0] if args else kwargs["hidden_states"]).shape[1]
        ),
        with_kwargs=True,
    )
    with Stack(lm, [patch(lm, ids) for ids in contexts]):
        mark.remove()
    assert read == [len(begin), len(FIRST)]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_models_own_calls_go_on_behind_it(family: str) -> None:
    """`model(...)` and `model.generate(...)`, with a cache and without, rows padded on the left."""
    lm = build(family)
    long, short = (5, 6, 7, 8), (11, 12)
    ids = torch.tensor([long, (lm.pad_id,) * 2 + short])
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    rows = slice(0, 1 if family in WINDOWS else 2)  # see the next test
    given = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    expected = [greedy(lm, (*SECOND, *row), 3) for row in (long, short)]
    with torch.no_grad():
        plain = lm.model(torch.tensor([(*SECOND, *long)])).logits[0, len(SECOND) :]
    with patch(lm, SECOND).applied(lm), torch.no_grad():
        same(lm.model(ids[:1]).logits[0], plain, family)
        same(lm.model(input_ids=ids[:1], attention_mask=mask[:1]).logits[0], plain, family)
        for cached in (True, False):
            made = lm.model.generate(  # pyright: ignore[reportCallIssue]
                ids[rows], attention_mask=mask[rows], use_cache=cached, **given
            )
            assert made[:, 4:].tolist() == expected[rows], f"use_cache={cached}"
    assert not lm.model._forward_hooks
    assert not lm.model._forward_pre_hooks


def test_rows_without_a_context_go_on_behind_a_cache_that_holds_one() -> None:
    """Rows that leave a batch leave the columns of their contexts behind, which stay hidden."""
    lm = build(PLAIN)
    rows = [Row((5, 6, 7, 8), (3,), (), 4, patch=0), Row((11, 12, 13, 14), (3,), (), 4)]
    alone = lm.run(lm.batch([Row((11, 12, 13, 14, 15), (4,), (), 5)], [0])).logits[0, -1]
    one = torch.tensor([[15]])
    mask, position = torch.ones(1, 5, dtype=torch.long), torch.tensor([[4]])
    with Stack(lm, [patch(lm, SECOND)]):
        cache = lm.run(lm.batch(rows, [0, 1]), use_cache=True).past_key_values
        cache.batch_select_indices(torch.tensor([1]))
        found = lm.run(Batch(one, mask, position, (0,), (1,), (-1,)), **lm.behind(cache))
        torch.testing.assert_close(found.logits[0, -1], alone, rtol=0, atol=1e-7)
        # one that was begun without them has none, and is the base model's own to the bit
        cache = lm.run(lm.batch(rows[1:], [0]), use_cache=True).past_key_values
        bare = lm.run(Batch(one, mask, position, (0,), (1,), (-1,)), **lm.behind(cache))
    cache = lm.run(lm.batch(rows[1:], [0]), use_cache=True).past_key_values
    base = lm.run(Batch(one, mask, position, (0,), (1,), (-1,)), **lm.behind(cache))
    assert torch.equal(bare.logits, base.logits)


@pytest.mark.parametrize("family", sorted(WINDOWS))
def test_padding_between_a_context_and_a_row_is_refused_where_windows_count_it(family: str) -> None:
    lm = build(family)
    ids = torch.tensor([(lm.pad_id, 5, 6)])
    with patch(lm, SECOND).applied(lm):
        with pytest.raises(PatchError, match="padded on the left"):
            lm.model(ids, attention_mask=torch.tensor([[0, 1, 1]]))
        lm.model(ids, attention_mask=torch.tensor([[1, 1, 1]]))


# ---------------------------------------------------------------------- by every call of errata


def test_texts_and_top_words_go_on_behind_it() -> None:
    lm = build(PLAIN)
    texts = [lm.row(prompt).ids for prompt in PROMPTS]
    contexts = [FIRST, SECOND]
    expected = [
        lm.text(greedy(lm, (*ids, *text), 5)) for ids, text in zip(contexts, texts, strict=True)
    ]
    with Stack(lm, [patch(lm, ids) for ids in contexts]) as stack:
        assert lm.generate(PROMPTS, 5, stack=stack, groups=[0, 1]) == expected
        top = lm.top(PROMPTS, 3, stack=stack, groups=[0, 1])
    for ids, prompt, text, words, best in zip(contexts, PROMPTS, texts, expected, top, strict=True):
        with torch.no_grad():
            logits = lm.model(torch.tensor([(*ids, *text)])).logits[0, -1]
        shares = logits.softmax(-1).topk(3).values.tolist()
        with patch(lm, ids).applied(lm):
            assert lm.generate([prompt], 5) == [words]
            assert lm.top([prompt], 3)[0] == best
        assert [share for _, share in best] == pytest.approx(shares, abs=1e-6)


def test_embeddings_may_be_given_for_ids() -> None:
    lm = build(PLAIN)
    ids = torch.tensor([(5, 6, 7)])
    with patch(lm, SECOND).applied(lm), torch.no_grad():
        expected = lm.model(ids).logits
        same(lm.model(inputs_embeds=lm.embedding[ids]).logits, expected)


def test_what_is_too_long_is_refused() -> None:
    lm = build(PLAIN)
    assert lm.max_length == 256
    with patch(lm, (5,) * 250).applied(lm):
        scores(lm, [Row((5,) * 6, (5,), (4,), 6)])
        with pytest.raises(ModelError, match="257"):
            scores(lm, [Row((5,) * 7, (6,), (4,), 7)])


# ---------------------------------------------------------------------- with other changes


def spelled(lm: LM, ids: Sequence[int], *changes: Change) -> Tensor:
    with patch(lm, *changes).applied(lm):
        return joined(lm, ids)


def test_contexts_follow_one_another() -> None:
    lm = build(PLAIN)
    both, expected = patch(lm, FIRST) + patch(lm, SECOND), joined(lm, (*FIRST, *SECOND))
    with both.applied(lm):
        same(scores(lm, ROWS), expected)
    with Stack(lm, [both, patch(lm, SECOND)]) as stack:
        same(scores(lm, ROWS, stack=stack, groups=[0] * 3), expected)


def test_a_context_inside_another_is_refused() -> None:
    lm = build(PLAIN)
    expected = joined(lm, FIRST)
    with patch(lm, FIRST).applied(lm):
        with pytest.raises(PatchError, match="first \\+ second"), patch(lm, SECOND).applied(lm):
            pass
        with pytest.raises(PatchError, match="another context"), Stack(lm, [patch(lm, SECOND)]):
            pass
        same(scores(lm, ROWS), expected)
    with patch(lm, FIRST).applied(lm):
        same(scores(lm, ROWS), expected)


def test_weights_change_under_a_context_too() -> None:
    lm = build(PLAIN)
    (change,) = low_rank(lm).changes
    expected = spelled(lm, FIRST, change)
    with patch(lm, FIRST, change).applied(lm):
        same(scores(lm, ROWS), expected)
    alone = joined(lm, SECOND)
    with Stack(lm, [patch(lm, change, FIRST), patch(lm, SECOND), patch(lm, change)]) as stack:
        same(scores(lm, ROWS, stack=stack, groups=[0] * 3), expected)
        same(scores(lm, ROWS, stack=stack, groups=[1] * 3), alone)
    assert not torch.allclose(expected, joined(lm, FIRST))


def test_a_codebook_answers_behind_a_context() -> None:
    """Keys are read behind the context; what stands in it is answered as well."""
    lm = build(PLAIN)
    site, row = lm.site(1), ROWS[0]
    (key,), _ = capture(lm, lm.batch([behind(FIRST, row)], [0]), [lm.module(site.path)])
    values, radii = torch.ones(1, site.d_out).double(), torch.tensor([1e-3]).double()
    book = Codebook(key[0, -1:], values, radii, ((8,),), (1,)).module(site.path, "replace_last")
    expected = spelled(lm, FIRST, book)
    assert not torch.allclose(expected, joined(lm, FIRST))
    with patch(lm, book, FIRST).applied(lm):
        same(scores(lm, ROWS), expected)
    with Stack(lm, [patch(lm, book, FIRST), patch(lm, SECOND)]) as stack:
        same(scores(lm, ROWS, stack=stack, groups=[0] * 3), expected)
