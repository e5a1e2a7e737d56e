"""Questions asked again begin from the unedited model's hidden states: the records are the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from errata.case import Case
from errata.evaluation import evaluate, session
from errata.evaluation.before import kept_below
from tests.evaluation.stubs import Planted
from tests.hooks import hooks

EXACT = 1e-10


class Told(Planted):
    """Says which block it changes, as editors of weights do."""

    def edited_layers(self, lm) -> tuple[int, ...]:
        return (self.layer,)


def compared(case: Case) -> Case:
    """Let every question have a competing answer, as CounterFact's have."""
    edits = tuple(replace(edit, target_true="Lima") for edit in case.edits)
    probes = tuple(replace(probe, foil="Lima", hops=()) for probe in case.probes)
    return replace(case, edits=edits, probes=probes)


def answers(records) -> list[dict[str, Any]]:
    return [question for record in records for question in record["questions"]]


@pytest.mark.parametrize("kind", ["low_rank", "dense", "norm"])
@pytest.mark.parametrize("regime", ["single", "batch:2", "sequential:3"])
def test_records_are_the_same_from_kept_hidden_states(
    lm, cases, tmp_path, monkeypatch, kind: str, regime: str
) -> None:
    cases = [compared(case) for case in cases[:4]]
    runs: list[int] = []
    counted, found = [], []
    first_block = lm.module(lm.spec.blocks[0])
    with hooks(first_block.mlp.register_forward_hook(lambda *_: runs.append(1))):
        for keeps in (True, False):
            monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / str(keeps)))  # asked anew
            if not keeps:
                monkeypatch.setattr(session, "kept_below", lambda editor, lm: None)
            editor = Told(kind=kind, layer=1)
            runs.clear()
            found.append(evaluate(lm, editor, cases, regime=regime, bootstrap=0).records)
            counted.append(len(runs))
    assert (counted[0] < counted[1]) == (kind != "norm")  # a norm is no part of a block
    for one, other in zip(*map(answers, found), strict=True):
        assert one.keys() == other.keys()
        assert (one["hits"], one["score"]) == (other["hits"], other["score"])
        for name in ("nll", "foil_nll"):
            assert one.get(name) == pytest.approx(other.get(name), rel=EXACT)


def test_nothing_is_kept_for_an_editor_that_changes_the_first_block_or_does_not_say(lm) -> None:
    assert kept_below(Told(layer=0), lm) is None
    assert kept_below(Planted(), lm) is None
    kept = kept_below(Told(layer=1), lm)
    assert kept is not None
    assert kept.block == 0
