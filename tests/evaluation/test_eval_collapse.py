"""Evaluations say that a sequence destroyed the model, and can end it."""

from __future__ import annotations

import logging

import pytest
from typer.testing import CliRunner

import errata
import errata.evaluation.sequence as sequence
from errata.cli.app import app
from errata.data import load_cases
from errata.errors import ConfigError
from errata.evaluation import evaluate
from errata.inspection.collapse import Watch
from tests.evaluation.conftest import make_case
from tests.evaluation.stubs import Planted

COUNT = 8


@pytest.fixture
def many():
    return [make_case(i) for i in range(COUNT)]


def run(lm, many, out=None, editor=None, **more):
    editor = editor or Planted(0.1)
    return evaluate(lm, editor, many, regime=f"sequential:{COUNT}", bootstrap=0, out=out, **more)


@pytest.fixture
def growing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every edit makes perplexity a half larger: a random model has little to lose."""
    monkeypatch.setattr(Watch, "ratio", lambda self, patch: 1.5 ** len(patch.edits))


def test_a_sequence_that_does_no_harm_says_nothing(lm, many, caplog) -> None:
    found = run(lm, many).summary["collapse"]
    assert (found["sequences"], found["damaged"], found["collapsed"]) == (1, 0, 0)
    assert found["worst"] < 1.1
    assert not caplog.text
    assert evaluate(lm, Planted(), many, bootstrap=0).summary["collapse"] is None


@pytest.mark.usefixtures("growing")
def test_the_summary_says_it(lm, many, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        loud = run(lm, many)
    assert loud.summary["collapse"] == {
        "sequences": 1, "damaged": 1, "collapsed": 1, "collapsed_after": 8, "stopped": 0,
        "worst": 1.5**8,
    }  # fmt: skip
    assert caplog.text.count("is being damaged") == 1
    assert caplog.text.count("has collapsed") == 1
    assert [p["edits"] for p in loud.records[-1]["watched"]["points"]] == [1, 2, 4, 8]


@pytest.mark.usefixtures("growing")
def test_it_stops(lm, many) -> None:
    editor = Planted(0.1)
    result = run(lm, many, editor=editor, stop_when="perplexity=6x")
    watched = result.records[-1]["watched"]
    assert watched["stopped"] == {"when": "perplexity=6x", "step": 5, "left_out": 3}
    assert len(editor.calls) == 5  # nothing is edited behind
    assert result.summary["failed"] == 3
    assert result.summary["collapse"]["stopped"] == 1
    (reason,) = result.summary["failures"]
    assert "stopped after step 5 by perplexity=6x" in reason
    done = [record["error"] is None for record in result.records]
    assert done == [number < 5 for number in range(COUNT)]
    # the state behind the last step was measured
    assert result.summary["trajectory"][-1]["step"] == 5
    with pytest.raises(ConfigError, match="stop_when belongs to sequences"):
        evaluate(lm, editor, many, stop_when="perplexity=2x")
    with pytest.raises(ConfigError, match="perplexity=Nx"):
        run(lm, many, stop_when="often")


@pytest.mark.usefixtures("growing")
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_run_that_was_interrupted_stops_at_the_same_step(
    lm, many, tmp_path, stop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sequence, "CHECKPOINT_SHARE", float("inf"))
    whole = run(lm, many, stop_when="perplexity=6x")
    killed = Planted(0.1)
    killed.stop_after = stop
    with pytest.raises(KeyboardInterrupt):
        run(lm, many, tmp_path / "r", killed, stop_when="perplexity=6x")
    again = run(lm, many, tmp_path / "r", stop_when="perplexity=6x", resume=True)

    def compared(result):
        return [{k: v for k, v in r.items() if k != "seconds"} for r in result.records]

    assert compared(again) == compared(whole)


BOTH = ["ibke", pytest.param("mend", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", BOTH)
def test_trained_editors_collapse_in_sequences_and_are_told(
    name: str, tmp_path, monkeypatch
) -> None:
    """REPORTS 19: perplexity 12 to 271,804 after thirty edits, and not a word."""
    monkeypatch.chdir(tmp_path)
    words = ["eval", "--editor", name, "--data", "world", "--limit", "10", "--no-save"]
    words += ["--set", "joint=sum"]
    done = CliRunner().invoke(app, [*words, "--regime", "sequential:10"], prog_name="errata")
    assert done.exit_code == 0
    assert "the model collapsed (after " in done.stdout
    cases, lm = load_cases("world", limit=8), errata.load("pocket")

    def run(**more):
        return evaluate(lm, name, cases, regime="sequential:8", bootstrap=0, joint="sum", **more)

    found = run(stop_when="never").summary
    assert found["collapse"]["collapsed"] == 1
    assert found["collapse"]["collapsed_after"] <= 8
    assert found["failed"] == 0
    stopped = run()
    assert stopped.summary["failed"] > 0  # nobody has to ask for it
    assert stopped.records[-1]["watched"]["stopped"]["when"] == "perplexity=10x"


@pytest.mark.parametrize("name", BOTH)
def test_trained_editors_that_solve_for_all_edits_do_not_collapse(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    cases = load_cases("world", limit=30, seed=0, options={"collide": "relation"})
    found = evaluate(errata.load("pocket"), name, cases, regime="sequential:30", bootstrap=0)
    assert found.summary["collapse"]["collapsed"] == 0
    assert found.records[-1]["watched"]["points"][-1]["perplexity_ratio"] < 1.5
    assert found.summary["reliability"] > 0.85
    assert found.summary["locality"] > 0.9
    assert "not made for" not in caplog.text


def test_editors_made_for_it_do_not(caplog: pytest.LogCaptureFixture) -> None:
    cases = load_cases("world", limit=6)
    for name in ("ft", "grace"):
        found = evaluate(errata.load("pocket"), name, cases, regime="sequential:6", bootstrap=0)
        assert found.summary["collapse"]["damaged"] == 0
    assert not caplog.text
