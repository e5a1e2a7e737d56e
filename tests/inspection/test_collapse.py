"""Sequences that destroy a model are noticed while they are made."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from tests.evaluation.stubs import Planted

import errata
from errata.case import Edit
from errata.errors import ConfigError, EditError
from errata.inspection.collapse import Watch, text_rows, unfit
from errata.inspection.limits import due, first_over, parse_limit, told_of, worst
from errata.patch import Patch

EDITS = [Edit(f"Number {i} lives in", "Rome", f"Number {i}") for i in range(8)]


@pytest.mark.parametrize(("text", "limit"), [("perplexity=2x", 2.0), ("perplexity=1.5", 1.5)])
def test_limits(text: str, limit: float) -> None:
    assert parse_limit(text) == limit
    assert parse_limit(None) is None


@pytest.mark.parametrize("text", ["perplexity=1x", "perplexity", "kl=2x", "2x", "perplexity=-3x"])
def test_limits_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="perplexity=Nx"):
        parse_limit(text)


def test_when_it_is_measured() -> None:
    assert [s for s in range(1, 31) if due(s, 30, False)] == [1, 2, 4, 8, 16, 30]
    assert [s for s in range(1, 11) if due(s, 10, True)] == list(range(1, 11))
    assert sum(due(s, 1000, True) for s in range(1, 1001)) <= 32
    assert sum(due(s, 1000, False) for s in range(1, 1001)) == 11


def test_the_ratio_is_that_of_perplexities(tiny) -> None:
    lm = tiny("gpt2")
    patch = Planted(3.0).edit_one(lm, EDITS[:1])

    def perplexity() -> float:
        total, count = 0.0, 0
        for row in text_rows(lm):
            ids = torch.tensor([[*row.ids, row.labels[-1]]])
            with torch.no_grad():
                logits = lm.model(ids).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum"))
            count += ids.shape[1] - 1
        return math.exp(total / count)

    before = perplexity()
    with patch.applied(lm):
        after = perplexity()
    assert Watch(lm).ratio(patch) == pytest.approx(after / before, rel=1e-4)
    assert Watch(lm).ratio(None) == Watch(lm).ratio(Patch()) == 1.0


def test_it_is_said_once_when_it_gets_bad_and_once_when_it_has_collapsed(
    tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    watch, points = Watch(tiny("gpt2"), 3.0, said.append), []
    ratios = iter([1.1, 2.5, 2.9, 30.0, math.inf])
    monkeypatch.setattr(Watch, "ratio", lambda self, patch: next(ratios))
    assert [watch.look(None, i, points) for i in range(1, 6)] == [False, False, False, True, True]
    assert len(said) == 2
    assert "is being damaged: after 2 edits" in said[0]
    assert "2.5 times" in said[0]
    assert "has collapsed: after 4 edits" in said[1]
    assert points[-1] == {"edits": 5, "perplexity_ratio": None}
    assert worst(points) == math.inf
    assert first_over(points) == 4
    assert told_of([{"points": points}, {"points": points[:1]}]) == {
        "sequences": 2, "damaged": 1, "collapsed": 1, "collapsed_after": 4, "stopped": 0,
        "worst": None,
    }  # fmt: skip


@pytest.fixture
def growing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every edit makes perplexity a half larger: a random model has little to lose."""
    monkeypatch.setattr(Watch, "ratio", lambda self, patch: 1.5 ** len(patch.edits))


@pytest.mark.usefixtures("growing")
def test_a_sequence_stops_and_keeps_what_was_good(tiny, caplog: pytest.LogCaptureFixture) -> None:
    lm = tiny("gpt2")
    edit = {"editor": Planted(1.5), "regime": "sequential"}
    with caplog.at_level(logging.WARNING):
        whole = errata.edit(lm, EDITS, **edit).report.sequence
    assert whole is not None
    assert [point["edits"] for point in whole["points"]] == [1, 2, 4, 8]
    assert whole["collapsed_after"] == 8
    assert "stopped" not in whole
    with caplog.at_level(logging.WARNING):
        patch = errata.edit(lm, EDITS, **edit, stop_when="perplexity=6x")
    report = patch.report
    assert report.sequence is not None
    assert [point["edits"] for point in report.sequence["points"]] == [1, 2, 3, 4, 5]
    assert report.sequence["stopped"] == {"when": "perplexity=6x", "kept": 4, "left_out": 4}
    assert patch.edits == tuple(EDITS[:4])
    assert [entry.edit for entry in report.left_out] == EDITS[4:]
    assert "stopped by perplexity=6x: 4 edits kept, 4 left out" in caplog.text
    # beyond the limit from the first edit on: nothing can be kept
    with pytest.raises(EditError, match="already the first edit"):
        errata.edit(lm, EDITS, editor=Planted(), regime="sequential", stop_when="perplexity=1.2x")
    with pytest.raises(ConfigError, match="one after another"):
        errata.edit(lm, EDITS, editor=Planted(), stop_when="perplexity=2x")


def test_editors_that_are_not_made_for_it_say_so_at_once(
    tiny, caplog: pytest.LogCaptureFixture
) -> None:
    class Unfit(Planted):
        sequential = False

    lm = tiny("gpt2")
    assert unfit(Planted()) is None
    with caplog.at_level(logging.WARNING):
        errata.edit(lm, EDITS[:1], editor=Unfit(0.1), regime="sequential")
    assert "not made for" not in caplog.text
    with caplog.at_level(logging.WARNING):
        errata.edit(lm, EDITS[:2], editor=Unfit(0.1), regime="sequential")
    assert caplog.text.count("planted is not made for edits one after another") == 1
