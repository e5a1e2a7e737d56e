"""The course of a search, on outcomes that are known in advance and on the pocket model."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import errata
from errata import progress
from errata.editors import get_editor
from errata.editors.base import Editor
from errata.editors.fitting import found_for
from errata.errors import ConfigError, DataError, EditError, RunError
from errata.locate import moments
from errata.model.lm import LM
from errata.searching import budget, facts
from errata.searching import course as searching
from errata.searching.facts import Trial
from errata.searching.spaces import stands_on
from errata.searching.trials import Outcome, name_of
from errata.store.locks import take_lock

SECONDS = 1.0


class Stand:
    """Outcomes by settings instead of edits; time passes by what an edit would take."""

    def __init__(self, quality: Callable[[Editor, Trial], Outcome]) -> None:
        self.quality, self.now, self.calls = quality, 0.0, 0
        self.die_after: int | None = None

    def measure(
        self, lm: LM, editor: Editor, trials: Sequence[Trial], free: bool, scorer: Any
    ) -> list[Outcome]:
        self.calls += 1
        if self.die_after is not None and self.calls > self.die_after:
            raise KeyboardInterrupt
        self.now += SECONDS * len(trials)
        found = []
        for trial in trials:
            outcome = self.quality(editor, trial)
            found.append(Outcome(**{**outcome.__dict__, "seconds": SECONDS, "wild": free or None}))
        return found


def outcome(written: bool, ns: float = 1.0) -> Outcome:
    return Outcome(written, float(written), 0.5, ns, 1.0, ns)


def planted(editor: Editor, trial: Trial) -> Outcome:
    """Writes where the clamp is large and the weight small; harms where the weight is tiny."""
    config: Any = editor.config
    good = config.clamp >= 3 and config.mom2_weight <= 1000
    return outcome(good, 0.6 if config.mom2_weight < 200 else 1.0)


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stand]:
    def make(quality: Callable[[Editor, Trial], Outcome]) -> Stand:
        found = Stand(quality)
        monkeypatch.setattr(searching, "measure", found.measure)
        monkeypatch.setattr(searching.time, "perf_counter", lambda: found.now)
        monkeypatch.setattr(searching.Course, "_prepare", prepared)
        return found

    return make


def prepared(self: Any) -> None:
    asked = self.store.times.get(searching.ASKING, 0.0)
    self.budget = budget.Budget(self.seconds, asked, len(self.deal.search), len(self.deal.held))


START = {"clamp": 0.75, "mom2_weight": 20_000.0}


@pytest.fixture
def weak(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule of thumb that does not write: MEMIT's published strength."""
    from errata.editors.memit import Memit

    monkeypatch.setattr(Memit, "presets", {})
    monkeypatch.setattr(Memit, "small", {})


def test_a_search_finds_what_was_planted(
    pocket: LM, stand: Callable[..., Stand], weak: None
) -> None:
    stand(planted)
    said: list[tuple[int, int, str]] = []
    found = errata.tune(pocket, "memit", minutes=10, progress=lambda *step: said.append(step))
    assert found.settings["clamp"] >= 3
    assert 200 <= found.settings["mom2_weight"] <= 1000
    assert found.rule["clamp"] == 0.75
    assert (found.held_rule.written, found.held.written) == (0.0, 1.0)
    assert found.works
    assert found.seconds <= 600
    assert found.candidates > 10
    assert found.tried[0].front
    assert any(not one.settings for one in found.tried)  # the rule of thumb stands in the table
    harmful = [one for one in found.tried if one.stats.ns_lost > 0.3]
    assert all(one.stats.value < found.tried[0].stats.value for one in harmful)
    done = [step[0] for step in said]
    assert done == sorted(done)
    assert all(step[1] == 600 for step in said)
    held = {trial.edit.prompt for trial in found.deal.held}
    assert not held & {trial.edit.prompt for trial in found.deal.search}


def test_a_slow_first_trial_does_not_make_the_search_small(
    pocket: LM, stand: Callable[..., Stand], weak: None
) -> None:
    slow = stand(planted)
    own = slow.measure
    searching.measure = lambda *given: [  # type: ignore[assignment]  # undone by the fixture
        replace(one, seconds=6 * SECONDS if slow.calls == 1 else SECONDS) for one in own(*given)
    ]
    by_the_first = budget.Budget(600, 0, 40, 24).plan(6 * SECONDS).candidates
    found = errata.tune(pocket, "memit", minutes=10)
    assert by_the_first < 10
    assert found.candidates > 2 * by_the_first


def test_asking_what_is_known_is_part_of_the_time_and_done_once(
    pocket: LM, stand: Callable[..., Stand], weak: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, known, asked = stand(planted), facts._known, []

    def slowly(*given: Any) -> Any:
        asked.append(given)
        made.now += 300 * SECONDS
        return known(*given)

    monkeypatch.setattr(facts, "_known", slowly)
    found = errata.tune(pocket, "memit", minutes=10)
    assert 300 < found.seconds <= 600
    again = errata.tune(pocket, "memit", minutes=10)
    assert again.settings == found.settings
    assert len(asked) == 1
    assert errata.tune(pocket, "memit", minutes=10, seed=1).candidates > found.candidates
    assert len(asked) == 1  # another search, and its time is its own
    errata.tune(pocket, "memit", minutes=10, force=True)
    assert len(asked) == 2


def test_a_candidate_that_takes_longer_does_not_end_the_search(
    pocket: LM, stand: Callable[..., Stand], weak: None
) -> None:
    """Its seconds say nothing of the others': what was asked last may be what takes long."""
    made = stand(planted)
    own, asked = made.measure, list[str]()

    def measure(lm: LM, editor: Editor, *given: Any) -> list[Outcome]:
        name = name_of(editor.config.model_dump(mode="json"))
        if name not in asked:
            asked.append(name)
        slow = asked.index(name) in (25, 26)  # the last ones of the first step
        made.now += 40 * SECONDS if slow else 0.0
        found = own(lm, editor, *given)
        return [replace(one, seconds=11 * SECONDS if slow else SECONDS) for one in found]

    searching.measure = measure  # type: ignore[assignment]  # undone by the fixture
    found = errata.tune(pocket, "memit", minutes=20)
    assert found.candidates >= 27
    assert {one.stats.facts for one in found.tried} == {budget.RUNGS[-1]}
    assert found.seconds <= 1200


def test_a_machine_that_becomes_slow_still_gives_a_result_in_time(
    pocket: LM, stand: Callable[..., Stand], weak: None
) -> None:
    made = stand(planted)
    own = made.measure

    def measure(*given: Any) -> list[Outcome]:
        times = 3 if made.calls > 40 else 1
        made.now += (times - 1) * SECONDS * len(given[2])
        return [replace(one, seconds=times * SECONDS) for one in own(*given)]

    searching.measure = measure  # type: ignore[assignment]  # undone by the fixture
    found = errata.tune(pocket, "memit", minutes=10)
    assert found.held.written == 1.0
    assert found.seconds <= 660  # what was begun is finished


def test_who_leads_by_luck_is_found_out(
    pocket: LM, stand: Callable[..., Stand], weak: None
) -> None:
    """One setting spares the neighbours of the first facts and takes those of others along."""
    told: list[str] = []

    def lucky(editor: Editor, trial: Trial) -> Outcome:
        config: Any = editor.config
        good = config.clamp >= 3 and config.mom2_weight <= 1000
        if trial.id not in told:
            told.append(trial.id)
        early = told.index(trial.id) < budget.RUNGS[-1]
        shines = good and config.clamp == 8
        return outcome(good, 1.0 if shines and early else 0.7 if shines else 0.97)

    stand(lucky)
    found = errata.tune(pocket, "memit", minutes=20)
    assert found.tried[0].settings["clamp"] == 8
    assert found.settings["clamp"] in (3.0, 4.0)


def test_what_the_rule_of_thumb_says_is_kept_with_what_was_found(
    pocket: LM, stand: Callable[..., Stand], weak: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editor that takes what was found does not ask the rule of thumb any more."""
    stand(planted)
    monkeypatch.setattr(searching, "base_of", lambda *given: {"value_at": "ffn"})
    found = errata.tune(pocket, "memit", minutes=10)
    assert (found.settings["value_at"], found.rule["value_at"]) == ("ffn", "ffn")


def test_what_was_found_is_taken_from_then_on(
    pocket: LM, stand: Callable[..., Stand], weak: None
) -> None:
    stand(planted)
    found = errata.tune(pocket, "memit", minutes=10)
    kept = found_for(pocket, "memit")
    assert kept is not None
    assert kept.id == found.id
    assert tuple(kept.settings["layers"]) == found.settings["layers"]
    assert kept.report["held_out"]["chosen"]["written"] == 1.0


def test_a_killed_search_goes_on_to_the_same_result(
    pocket: LM, stand: Callable[..., Stand], weak: None
) -> None:
    whole = stand(planted)
    one = errata.tune(pocket, "memit", minutes=6)
    calls = whole.calls
    stand(planted)
    again = errata.tune(pocket, "memit", minutes=6)  # everything is there
    assert again.as_dict() == {**one.as_dict(), "seconds": again.seconds}
    killed = stand(planted)
    killed.die_after = 0
    with pytest.raises(KeyboardInterrupt):
        errata.tune(pocket, "memit", minutes=6, force=True)
    total = 0
    for _ in range(200):
        part = stand(planted)
        part.die_after = 12
        try:
            two = errata.tune(pocket, "memit", minutes=6)
            break
        except KeyboardInterrupt:
            total += 12
    total += part.calls
    assert two.settings == one.settings
    assert two.held == one.held
    assert total == calls  # nothing was measured twice


def test_where_held_out_facts_disagree_the_rule_stays(
    pocket: LM, stand: Callable[..., Stand], weak: None, caplog: pytest.LogCaptureFixture
) -> None:
    held: set[str] = set()

    def quality(editor: Editor, trial: Trial) -> Outcome:
        config: Any = editor.config
        better = config.clamp != 0.75
        return outcome(better != (trial.edit.prompt in held))

    stand(planted)
    dealt = errata.tune(pocket, "memit", minutes=6).deal
    held |= {trial.edit.prompt for trial in dealt.held}
    stand(quality)
    with caplog.at_level(logging.WARNING):
        found = errata.tune(pocket, "memit", minutes=6, force=True)
    assert found.settings["clamp"] == 0.75
    assert "the rule of thumb does better" in caplog.text


def test_what_writes_nothing_is_not_chosen_for_what_it_spares(
    pocket: LM, stand: Callable[..., Stand], weak: None
) -> None:
    """An editor that takes half of its neighbours along is kept before one that does nothing."""

    def quality(editor: Editor, trial: Trial) -> Outcome:
        config: Any = editor.config
        if config.clamp == 0.75:
            return replace(outcome(True), ns=0.5, kept=0.5)
        return replace(outcome(False), p=0.0, spread=0.0, ns=1.0, kept=1.0)

    stand(quality)
    found = errata.tune(pocket, "memit", minutes=6)
    assert found.settings["clamp"] == 0.75
    assert found.held.written == 1.0


def test_what_there_was_time_for_is_shown(
    pocket: LM, stand: Callable[..., Stand], weak: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no candidate was measured on all facts, on as many as there are measurements of."""
    stand(planted)
    own = searching.Course.stats

    def short(self: Any, settings: Any, trials: Any, **more: Any) -> Any:
        # as where time runs out: beyond the first facts only what has to be measured is
        late = len(trials) > budget.RUNGS[0] and more.get("reserve") is not None
        return None if late else own(self, settings, trials, **more)

    monkeypatch.setattr(searching.Course, "stats", short)
    found = errata.tune(pocket, "memit", minutes=10)
    assert found.tried
    assert {one.stats.facts for one in found.tried} == {budget.RUNGS[0]}


def test_time_that_does_not_suffice_is_refused_with_what_would(
    pocket: LM, stand: Callable[..., Stand]
) -> None:
    made = stand(planted)
    with pytest.raises(ConfigError, match="do not suffice") as error:
        errata.tune(pocket, "memit", minutes=0.5)
    assert made.calls == 1  # the rule of thumb, once
    minutes = float(str(error.value.hint).split("--minutes ")[1].split(".")[0])
    stand(planted)
    assert errata.tune(pocket, "memit", minutes=minutes).candidates >= 2
    for minutes in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="no time"):
            errata.tune(pocket, "memit", minutes=minutes)


def test_settings_that_cannot_edit_are_left_out(
    pocket: LM, stand: Callable[..., Stand], weak: None, caplog: pytest.LogCaptureFixture
) -> None:
    def quality(editor: Editor, trial: Trial) -> Outcome:
        config: Any = editor.config
        if config.clamp == 4.0:
            raise EditError("no null space")
        return planted(editor, trial)

    stand(quality)
    with caplog.at_level(logging.WARNING):
        found = errata.tune(pocket, "memit", minutes=10)
    assert "no null space; these settings are left out" in caplog.text
    assert found.settings["clamp"] != 4.0
    assert found.works


def test_given_settings_are_kept_and_another_search(
    pocket: LM, stand: Callable[..., Stand]
) -> None:
    stand(planted)
    one = errata.tune(pocket, "memit", minutes=6)
    two = errata.tune(pocket, "memit", minutes=6, clamp=8.0)
    assert one.id != two.id
    assert "clamp" not in two.settings
    assert all("clamp" not in each.settings for each in two.tried)


def test_another_rule_of_thumb_is_another_search(
    pocket: LM, stand: Callable[..., Stand], monkeypatch: pytest.MonkeyPatch
) -> None:
    from errata.editors.memit import Memit

    stand(planted)
    one = errata.tune(pocket, "memit", minutes=6)
    monkeypatch.setattr(Memit, "presets", {"pocket": {"layers": (2,), "contexts": "bare"}})
    made = stand(planted)
    two = errata.tune(pocket, "memit", minutes=6)
    assert one.id != two.id
    assert made.calls  # nothing of the first is taken for the second
    assert two.rule["layers"] == (2,)


def test_bad_requests(pocket: LM, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown editor"):
        errata.tune(pocket, "memitt")
    with pytest.raises(ConfigError, match="no search is made"):
        errata.tune(pocket, "ike")
    with pytest.raises(ConfigError, match="unknown setting"):
        errata.tune(pocket, "memit", colour=1)
    with pytest.raises((DataError, ConfigError)):
        errata.tune(pocket, "memit", tmp_path / "absent.json")


def test_one_search_at_a_time(pocket: LM, cache_folder: Path) -> None:
    from errata.editors.fitting import folder_of

    folder = folder_of(pocket) / "trials"
    folder.mkdir(parents=True)
    lock = take_lock(folder)
    try:
        with pytest.raises(RunError, match="another process") as error:
            errata.tune(pocket, "memit")
        assert "Another search" in str(error.value.hint)
    finally:
        lock.release()


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(("candidates", "facts"), [(1, 16), (9, 16), (27, 16), (5, 6)])
def test_the_cost_is_the_number_of_edits(candidates: int, facts: int, together: bool) -> None:
    left, done, total = candidates, 0, 0
    for rung in [r for r in budget.RUNGS if r < facts] + [facts]:
        for _ in range(left):
            total += rung if together else rung - done
        done, left = rung, min(left, max(budget.FINALISTS, -(-left // budget.KEPT)))
    assert budget.cost(candidates, facts, together) == total


@pytest.mark.parametrize("together", [False, True])
def test_a_plan_fits_into_its_time(together: bool) -> None:
    for seconds in (200, 600, 1200, 4000):
        plan = budget.Budget(seconds, 10.0, 40, 40, together).plan(1.0)
        begun = budget.cost(plan.candidates, 16, together)
        assert plan.candidates > 1
        assert 10 + begun + plan.deciding + 2 * plan.held <= seconds
        assert plan.deciding == budget.FINALISTS * (plan.last - (0 if together else 16)) * (
            plan.last > 16
        )


def test_a_real_search_on_pocket(pocket: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "RUNGS", (2, 3, 4))
    monkeypatch.setattr(budget, "LAST", 6)
    monkeypatch.setattr(budget, "HELD", 4)
    monkeypatch.setattr(budget, "LEAST_HELD", 2)
    monkeypatch.setattr(budget, "MOST", 4)
    before = pocket.fingerprint
    found = errata.tune(pocket, "ft", minutes=10, steps=5)
    assert pocket.fingerprint == before
    assert found.held.facts == 4
    assert found.held.value >= found.held_rule.value
    kept = found_for(pocket, "ft")
    assert kept is not None
    edit = found.deal.held[0].edit
    patch = errata.edit(pocket, edit, editor="ft", neighbourhood=False)
    assert patch.meta["settings_from"].startswith("tuned for ft on 6 facts")
    assert patch.meta["config"]["lr"] == found.settings["lr"]
    assert patch.meta["config"]["steps"] == get_editor("ft", model="pocket").config.steps  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name",
    [
        "rome",
        "rag",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("r_rome", "emmet", "pmet", "alphaedit", "memit+blue", "lora", "ultraedit")
        ),
    ],
)
def test_every_editor_can_be_searched(
    pocket: LM, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(budget, "RUNGS", (1, 2))
    monkeypatch.setattr(budget, "LAST", 3)
    monkeypatch.setattr(budget, "HELD", 2)
    monkeypatch.setattr(budget, "LEAST_HELD", 1)
    monkeypatch.setattr(budget, "MOST", 3)
    monkeypatch.setattr(searching, "_PERFECT", -9.0)  # no neighbours of the best
    before = pocket.fingerprint
    quick: dict[str, Any] = {"lora": {"steps": 4}, "ultraedit": {}, "rag": {}}
    given = quick.get(name, {"steps": 4, "moments_samples": 200})
    found = errata.tune(pocket, name, minutes=30, **given)
    assert pocket.fingerprint == before
    assert found.candidates == 3
    assert found.held.failed == 0
    kept = found_for(pocket, name)
    assert kept is not None
    assert kept.editor == name


def test_time_goes_on_while_a_search_is_prepared(
    pocket: LM, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    twice = threading.Event()

    def heard(done: int, total: int, text: str) -> None:
        said.append(text)
        if said.count("preparing, second moments of 5 blocks") == 2:
            twice.set()

    def counted(*given: Any) -> None:
        assert twice.wait(10), "nothing was said while moments were counted"
        raise KeyboardInterrupt

    monkeypatch.setattr(progress, "TICK_SECONDS", 0.01)
    monkeypatch.setattr(moments, "get_moments", counted)
    monkeypatch.setattr(searching, "blocks_tried", lambda *given: (0, 1, 2, 3, 4))
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        errata.tune(pocket, "memit", minutes=10, progress=heard)
    assert list(dict.fromkeys(said)) == [
        "asking which facts the model knows", "preparing", "preparing, second moments of 5 blocks",
    ]  # fmt: skip
    assert threading.active_count() == before


def test_rounded_products_are_another_search(pocket: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    given = get_editor("memit", model=pocket.name)
    plain = stands_on(pocket, given, {})
    monkeypatch.setattr(pocket, "compute", "bfloat16")
    assert stands_on(pocket, given, {}) != plain
