"""Long sequences: all cases are edited, some are asked; their records are those of a full run."""

from __future__ import annotations

import pytest

from errata.errors import ConfigError
from errata.evaluation import evaluate, summarise
from errata.evaluation.protocol import Protocol
from errata.evaluation.tracking import spread
from tests.evaluation.conftest import make_case
from tests.evaluation.stubs import Planted

NUMBER = 20
SETTINGS = {"regime": "sequential:20", "batch": 4, "retention": True, "top_k": 9, "bootstrap": 20}


def timeless(record):
    left = ("seconds", "config_hash")
    return {name: value for name, value in record.items() if name not in left}


@pytest.fixture
def many():
    return [make_case(i, bad=i == 4) for i in range(NUMBER)]


@pytest.mark.parametrize("answers", ["forced", "wild"])
def test_those_that_are_asked_have_the_records_of_a_full_run(lm, many, answers):
    full = evaluate(lm, Planted(), many, answers=answers, **SETTINGS)
    some = evaluate(lm, Planted(), many, answers=answers, ask=6, **SETTINGS)
    chosen = set(spread([case.id for case in many], 6))
    assert len(chosen) == 6
    for whole, own in zip(full.records, some.records, strict=True):
        if own["id"] in chosen:
            assert timeless(own) == timeless(whole)
        else:
            assert own["asked"] is False
            assert own["questions"] == []
            assert own["age" if own["error"] is None else "error"] is not None
            assert "immediate" not in own
            assert {k: own[k] for k in ("unit", "edits", "patch_bytes", "error")} == {
                k: whole[k] for k in ("unit", "edits", "patch_bytes", "error")
            }


def test_rates_are_those_of_the_asked_and_counts_those_of_all(lm, many):
    some = evaluate(lm, Planted(), many, ask=6, **SETTINGS)
    asked = [r for r in some.records if r.get("asked", True) and r["error"] is None]
    alone = summarise(asked, {"top_k": 9}, bootstrap=20)
    for metric in ("reliability", "generality", "locality", "ci95", "by", "counterfact"):
        assert some.summary[metric] == alone[metric]
    assert some.summary["asked"] == len(asked)
    assert some.summary["cases"] == NUMBER
    assert some.summary["edits"] == NUMBER - 1
    assert some.summary["failed"] == 1
    assert some.summary["retention"]["cases"] == len(asked)


def test_the_model_is_not_asked_of_the_silent_before_either(lm, many, monkeypatch):
    import errata.evaluation.session as session

    seen: list[set[str]] = []
    plain = session.ask_before

    def watched(lm, questions):
        seen.append(set(questions))
        return plain(lm, questions)

    monkeypatch.setattr(session, "ask_before", watched)
    evaluate(lm, Planted(), many, ask=5, **SETTINGS)
    assert seen == [set(spread([case.id for case in many], 5))]


def test_batches_too_and_whoever_is_broken_off_goes_on(lm, many, tmp_path):
    settings = {"regime": "batch:4", "ask": 7, "top_k": 9, "stack_size": 2, "bootstrap": 20}
    whole = evaluate(lm, Planted(), many, **settings)
    editor = Planted()
    editor.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        evaluate(lm, editor, many, out=tmp_path / "run", **settings)
    again = evaluate(lm, Planted(), many, out=tmp_path / "run", resume=True, **settings)
    assert [timeless(r) for r in again.records] == [timeless(r) for r in whole.records]
    assert sum(r.get("asked", True) for r in again.records) == 7


def test_texts_are_sampled_for_cases_that_are_asked(lm, many):
    found = evaluate(lm, Planted(), many, ask=6, fluency=2, **SETTINGS)
    sampled = [r["id"] for r in found.records if "sampled" in r]
    asked = spread([case.id for case in many], 6)
    failed = {r["id"] for r in found.records if r["error"] is not None}
    assert sampled == [case for case in asked[::2] if case not in failed]


def test_more_than_there_are_is_all_of_them(lm, many):
    full = evaluate(lm, Planted(), many, **SETTINGS)
    some = evaluate(lm, Planted(), many, ask=500, **SETTINGS)
    assert [timeless(r) for r in some.records] == [timeless(r) for r in full.records]
    assert "asked" not in some.summary


def test_alone_nobody_is_edited_for_nothing():
    with pytest.raises(ConfigError, match="each is edited alone") as told:
        Protocol(ask=10)
    assert "--limit 10" in (told.value.hint or "")


def test_one_is_the_first():
    assert spread([3, 4, 5], 1) == [3]
    assert spread(list(range(10)), 4) == [0, 3, 6, 9]
