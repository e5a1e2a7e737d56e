"""What is measured, against asking by hand; what is kept, and what a killed run leaves."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from errata.case import Edit
from errata.editors import get_editor
from errata.errors import EditError
from errata.model.lm import LM
from errata.searching.facts import Trial, deal, shipped
from errata.searching.trials import ALLOWED, Outcome, Stats, Store, measure

QUICK = {"steps": 6, "mom2_adjustment": False}
TOLERANCE = 1e-5  # float32: rows of a stack against rows of their own


@pytest.fixture(scope="module")
def trials(pocket: LM) -> tuple[Trial, ...]:
    return deal(pocket, shipped(), "shipped", search=3, held=8).search


def test_an_editor_of_turns_is_measured_in_one_turn(pocket: LM, trials: tuple[Trial, ...]) -> None:
    editor = get_editor("ultraedit", model="pocket")
    patch = editor.edit_one(pocket, [trial.edit for trial in trials])
    rows = [pocket.row_of(trial.edit) for trial in trials]
    with patch.applied(pocket):
        expected = [math.exp(sum(score.logprobs)) for score in pocket.score(rows)]
    found = measure(pocket, editor, trials)
    assert [one.p for one in found] == pytest.approx(expected, abs=TOLERANCE)
    alone = [measure(pocket, editor, [trial])[0].p for trial in trials]
    assert alone != pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "settings"), [("rome", QUICK), ("ft", {"steps": 3}), ("ft", {"lr": 0.05, "steps": 2})]
)
def test_outcomes_are_those_of_asking_by_hand(
    pocket: LM, trials: tuple[Trial, ...], name: str, settings: dict
) -> None:
    editor = get_editor(name, settings, model="pocket")
    before = pocket.fingerprint
    found = measure(pocket, editor, trials, free=True)
    assert len(found) == len(trials)
    for trial, outcome in zip(trials, found, strict=True):
        target = trial.edit.target
        with editor.edit_one(pocket, [trial.edit]).applied(pocket):

            def says(prompt: str, answer: str) -> bool:
                return pocket.generate([prompt], 8)[0].strip().startswith(answer)

            def nll(prompt: str, answer: str) -> float:
                (score,) = pocket.score([pocket.row_of(Edit(prompt, answer))])
                return -sum(score.logprobs) / len(score.logprobs)

            (own,) = pocket.score([pocket.row_of(trial.edit)])
            p = math.exp(sum(own.logprobs))
            assert outcome.p == pytest.approx(p, rel=1e-3, abs=TOLERANCE)
            assert outcome.written is says(trial.edit.prompt, target)
            spread = [says(one.prompt, target) for one in trial.paraphrases]
            assert outcome.spread == pytest.approx(sum(spread) / len(spread))
            near = trial.neighbours
            kept = [says(one.prompt, one.target) for one in near]
            assert outcome.kept == pytest.approx(sum(kept) / len(kept))
            ns = [nll(one.prompt, one.target) < nll(one.prompt, target) for one in near]
            assert outcome.ns == pytest.approx(sum(ns) / len(ns))
            text = pocket.generate([trial.edit.prompt], 50, stops=(".", "\n"))[0]
            assert outcome.wild is (text.strip().lower() == target.lower())
        assert outcome.ns_before == 1.0  # neighbours are known
        assert outcome.seconds > 0
    assert pocket.fingerprint == before


def test_an_edit_that_cannot_be_made_counts_as_not_written(
    pocket: LM, trials: tuple[Trial, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = get_editor("rome", QUICK, model="pocket")
    real, bad = editor.edit_groups, trials[1].edit

    def refusing(lm, groups, before):
        if any(bad in group for group in groups):
            raise EditError("too long", edits=(bad,))
        return real(lm, groups, before)

    monkeypatch.setattr(editor, "edit_groups", refusing)
    found = measure(pocket, editor, trials)
    assert [one.error for one in found] == ["", "too long", ""]
    assert not found[1].written
    assert found[1].p == 0.0
    assert found[1].kept == 1.0  # nothing was changed
    assert Stats.of(found).failed == 1


GOOD = Outcome(True, 0.9, 0.5, 1.0, 1.0, 1.0, 2.0)


def test_averages_and_what_is_better() -> None:
    bad = replace(GOOD, written=False, p=0.1, ns=0.5, kept=0.5, spread=None)
    stats = Stats.of([GOOD, bad])
    assert (stats.written, stats.spread, stats.ns_lost, stats.kept) == (0.5, 0.5, 0.25, 0.75)
    one = Stats.of([GOOD])
    assert one.dominates(stats)
    assert not stats.dominates(one)
    assert not one.dominates(one)
    # up to the allowance neighbours cost half their share, beyond it four times as much more
    near = replace(one, ns_lost=ALLOWED)
    assert near.value == pytest.approx(one.value - ALLOWED / 2)
    assert replace(near, ns_lost=ALLOWED + 0.1).value == pytest.approx(near.value - 0.45)
    assert replace(near, doubt=0.1).value == pytest.approx(near.value - 0.4)
    assert (one.doubt, stats.doubt) == (0.0, pytest.approx(0.25))  # 0 and 0.5: sd / sqrt(2)
    # what writes nothing spares everything, and is worth less than what takes many along
    idle = replace(one, written=0.0, spread=0.0, p=0.0)
    assert idle.value < replace(one, ns_lost=0.5, kept=0.5).value
    assert replace(one, written=0.5).value == pytest.approx(one.value - 0.5)


def test_what_was_measured_is_there_again(trials: tuple[Trial, ...], tmp_path: Path) -> None:
    path, settings = tmp_path / "a" / "trials.jsonl", {"layers": (1, 2), "lr": 0.1}
    store = Store(path)
    store.add(settings, trials[:2], [GOOD, replace(GOOD, wild=True)])
    store.spend(3.0, "preparing")
    again = Store(path)
    assert again.get({"lr": 0.1, "layers": [1, 2]}, trials[0], free=False) == GOOD
    assert again.get(settings, trials[0], free=True) is None  # free answers were not asked for
    assert again.get(settings, trials[1], free=True) == replace(GOOD, wild=True)
    assert again.get({"lr": 0.2}, trials[0], free=False) is None
    assert (again.seconds, again.times) == (7.0, {"preparing": 3.0})


def test_half_a_line_of_a_killed_run_costs_one_outcome(
    trials: tuple[Trial, ...], tmp_path: Path
) -> None:
    path = tmp_path / "trials.jsonl"
    store = Store(path)
    store.add({}, trials, [GOOD] * 3)
    path.write_bytes(path.read_bytes()[:-20])
    again = Store(path)
    assert [again.get({}, trial, False) is None for trial in trials] == [False, False, True]
    again.add({}, trials[2:], [GOOD])
    assert all(Store(path).get({}, trial, False) == GOOD for trial in trials)
    assert sum(1 for line in path.read_text().splitlines() if _whole(line)) == 3


def _whole(line: str) -> bool:
    try:
        return bool(json.loads(line))
    except ValueError:
        return False
