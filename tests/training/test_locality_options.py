"""Locality over questions instead of tokens (eq. 35), and sentences of a text as such questions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.locate.samples import EDITS
from tests.nets.samples import group_of, small, untrained

from errata.errors import DataError
from errata.model.lm import LM
from errata.training.config import TrainConfig
from errata.training.groups import with_sentences
from errata.training.objective import Objective
from errata.training.prepared import Prepared

CLOSE = 1e-4
"""Divergences of float32 log-probabilities are differences of numbers near each other."""

Tiny = Callable[..., LM]

TEXTS = ["The river flows through the town.", "x", "It works for the city, and has for years."]


def losses(lm: LM, groups: list[Any], **settings: Any) -> dict[str, float]:
    editor = small("ibke", eta=100.0)  # far enough from the model for float32 to see it
    network = untrained(editor, lm)
    prepared = Prepared(lm, editor.sites(lm), groups)
    return Objective(lm, prepared, TrainConfig(**settings)).run(network, groups)


def test_the_mean_over_questions_is_that_of_each_alone(tiny: Tiny) -> None:
    lm = tiny("gpt2")
    groups = with_sentences(lm, [group_of(lm, 0, EDITS[:1])], TEXTS)
    assert len({len(row.labels) for row in groups[0].locs}) > 1  # else both means are the same
    whole = losses(lm, groups, il_mean="question")["il"]

    def alone(row: Any) -> float:
        return losses(lm, [replace_locs(groups[0], (row,))], il_mean="token")["il"]

    each = [alone(row) for row in groups[0].locs]
    assert whole == pytest.approx(sum(each) / len(each), rel=CLOSE)
    sizes = [len(row.labels) for row in groups[0].locs]
    by_token = sum(one * size for one, size in zip(each, sizes, strict=True)) / sum(sizes)
    assert losses(lm, groups)["il"] == pytest.approx(by_token, rel=CLOSE)
    assert abs(by_token - whole) > 100 * CLOSE * whole


def replace_locs(group: Any, locs: Any) -> Any:
    from dataclasses import replace

    return replace(group, locs=locs)


def test_each_group_gets_one_sentence_of_its_own_draw(tiny: Tiny) -> None:
    lm = tiny("gpt2")
    groups = [group_of(lm, n, EDITS[:1]) for n in range(12)]
    made = with_sentences(lm, groups, TEXTS, seed=3)
    assert with_sentences(lm, groups[4:5], TEXTS, seed=3)[0] == made[4]
    drawn = set()
    for old, new in zip(groups, made, strict=True):
        assert new.locs[:-1] == old.locs
        row = new.locs[-1]
        drawn.add(row.ids)
        assert row.labels[:-1] == row.ids[1:]  # every token is predicted from those before it
        assert row.positions == tuple(range(len(row.labels)))
    assert len(drawn) > 1
    assert made != with_sentences(lm, groups, TEXTS, seed=4)
    score = lm.score([made[0].locs[-1]])[0]
    ids = torch.tensor([[*made[0].locs[-1].ids, made[0].locs[-1].labels[-1]]])
    with torch.no_grad():
        logits = lm.model(ids).logits[0].log_softmax(-1)
    wanted = logits[:-1].gather(1, ids[0, 1:, None])[:, 0]
    assert score.logprobs == pytest.approx(wanted.tolist(), abs=1e-6)


def test_texts_without_a_sentence(tiny: Tiny) -> None:
    lm = tiny("gpt2")
    with pytest.raises(DataError, match="no text has two tokens"):
        with_sentences(lm, [group_of(lm, 0, EDITS[:1])], ["", "\n"])
