"""The machinery of the locate study against what it stands for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from studies.common.statistics import pooled
from studies.locate import plan
from studies.locate.run import by_test, claimed, columns
from studies.locate.values import shared_values

from errata.case import Edit
from errata.editors import base_joint
from errata.locate.contexts import Contexts
from errata.locate.values import Values, ValueSettings
from errata.model.lm import LM
from tests.locate.samples import EDITS, build

ROUNDING = 1e-4
"""Edits optimised beside others are padded otherwise; Adam amplifies what float32 rounds."""


def found(lm: LM, edits: list[Edit], **settings: Any) -> Values:
    return base_joint.optimise_values(
        lm, edits, Contexts(("",)), 1, ValueSettings(steps=4, lr=0.1, **settings),
        places=("block",), savings=None, patches=None, adaptive=None,
    )  # fmt: skip


def test_shared_values_are_those_found_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, edits = build("llama"), list(EDITS[:3])
    alone = found(lm, edits)
    asked: list[int] = []
    real = base_joint.optimise_values

    def counted(lm: LM, edits: list[Edit], *given: Any, **more: Any) -> Values:
        asked.append(len(edits))
        return real(lm, edits, *given, **more)

    monkeypatch.setattr(base_joint, "optimise_values", counted)
    with shared_values():
        first = found(lm, edits[:2])
        again = found(lm, [edits[2], edits[0], edits[1]])
        other = found(lm, edits[:1], weight_decay=0.1)
    assert asked == [2, 1, 1]  # only what was not known; other settings are found anew
    order = [1, 2, 0]
    for values in (again.delta, again.start):
        expected = alone.delta if values is again.delta else alone.start
        torch.testing.assert_close(
            values["block"][order], expected["block"], rtol=ROUNDING, atol=ROUNDING
        )
    assert torch.equal(again.delta["block"][1:], first.delta["block"])
    assert not torch.equal(other.delta["block"], first.delta["block"][:1])
    assert [again.updates[i] for i in order] == alone.updates
    assert base_joint.optimise_values is counted


def entry(kind: str, top1: float, name: str = "", score: float = 0.0) -> dict[str, Any]:
    return {"kind": kind, "name": name, "top1": top1, "score": score}


def test_columns_are_means_of_top1_by_kind() -> None:
    first = {"questions": [entry("reliability", 1.0), entry("generality", 0.5)], "immediate": [1.0]}
    second = {"questions": [entry("locality", 1.0), entry("locality", 0.0, "general")]}
    assert columns([first, second]) == {
        "rel": [100, None], "gen": [50, None], "loc": [None, 100], "rel0": [100, None],
    }  # fmt: skip


def test_tests_of_the_suite_are_kept_apart() -> None:
    first = {
        "questions": [
            entry("reliability", 0.0, score=1.0),
            entry("generality", 0.0, "prefix", 1.0),
            entry("generality", 0.0, "prefix", 0.0),
        ]
    }
    second = {"questions": [entry("locality", 0.0, "neighborhood", 1.0)]}
    assert by_test([first, second]) == {
        "edit": [100, None], "prefix": [50, None], "neighborhood": [None, 100],
    }  # fmt: skip


def test_a_run_is_carried_out_by_one_process(tmp_path: Path) -> None:
    with claimed(tmp_path, "a") as ours, claimed(tmp_path, "a") as theirs:
        assert ours
        assert not theirs
    (tmp_path / "a.claim").write_text("999999999")  # left by a process that is gone
    with claimed(tmp_path, "a") as ours:
        assert ours
        assert (tmp_path / "a.claim").read_text() == str(os.getpid())
    assert not (tmp_path / "a.claim").exists()


def test_names_of_runs_differ() -> None:
    names = [run.name for run in plan.grid()]
    assert len(set(names)) == len(names)
    assert set(names) >= plan.CUT


def test_pooled_runs_need_not_hold_the_same_cases() -> None:
    rates = pooled([[100, 0], [50, None, 90]], [["a", "b"], ["a", "c", "b"]])
    assert rates.mean == 60
    assert rates.seeds == (50, 70)
    # facts are drawn with their cases of both seeds: 75 and 45, so no mean lies outside them
    assert (rates.low, rates.high) == (45, 75)
