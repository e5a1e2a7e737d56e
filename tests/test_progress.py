"""Progress: when lines come, what they say of the time left, and which of two works is shown."""

from __future__ import annotations

import sys
import threading
from itertools import pairwise

import pytest

from errata import progress
from errata.progress import (
    Lines,
    Rate,
    Ticker,
    WaitLines,
    listening,
    told,
    tracked,
    waiting,
    watched,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TestRate:
    def test_steady_work(self):
        clock = Clock()
        rate = Rate(clock)
        for done in range(11):
            left = rate.left(done, 100)
            clock.now += 2.0
        assert left == pytest.approx(2.0 * 90)

    def test_the_first_step_is_never_extrapolated(self):
        """REPORTS: 155 s of preparation and a slow first batch made days of minutes."""
        clock = Clock()
        rate = Rate(clock)
        clock.now = 155.0
        assert rate.left(0, 2000) is None
        clock.now += 60.0  # compiles, fills caches
        assert rate.left(100, 2000) is None
        clock.now += 1.0
        left = rate.left(200, 2000)
        assert left == pytest.approx(18.0)  # 1,800 more at 100 per second

    def test_what_an_earlier_run_did_does_not_count(self):
        clock = Clock()
        rate = Rate(clock)
        assert rate.left(1900, 2000) is None
        for done in (1910, 1920, 1930):
            clock.now += 5.0
            left = rate.left(done, 2000)
        assert left == pytest.approx(35.0)

    def test_the_recent_pace_counts(self):
        clock = Clock()
        rate = Rate(clock)
        for done in range(100):  # fast
            rate.left(done, 1000)
            clock.now += 0.1
        for done in range(100, 120):  # then slow
            left = rate.left(done, 1000)
            clock.now += 10.0
        assert left == pytest.approx(10.0 * 881, rel=0.01)

    def test_a_step_that_hangs_makes_the_rest_longer(self):
        clock = Clock()
        rate = Rate(clock)
        for done in range(5):
            short = rate.left(done, 10)
            clock.now += 1.0
        clock.now += 20.0
        long = rate.left(4, 10)
        assert short is not None
        assert long is not None
        assert long > 5 * short


def test_lines_come_early_and_then_less_often():
    clock, said = Clock(), []
    lines = Lines("edits", said.append, clock)
    times = []
    for done in range(3001):
        before = len(said)
        lines.step(done, 3000)
        if len(said) > before:
            times.append(clock.now)
        clock.now += 0.1
    gaps = [round(b - a) for a, b in pairwise(times)]
    assert times[0] == pytest.approx(2.0, abs=0.2)
    assert gaps == sorted(gaps)
    assert len(said) < 15
    assert said[-1].startswith("edits: 2,")
    assert "left" in said[0]
    assert "3,000/3,000" not in said[-1]  # the result follows


def test_short_work_says_nothing():
    clock, said = Clock(), []
    lines = Lines("edits", said.append, clock)
    for done in range(11):
        lines.step(done, 10)
        clock.now += 0.1
    assert said == []


@pytest.mark.parametrize(("seconds", "text"), [(3.4, "3 s"), (600, "10 min"), (3 * 3600, "3.0 h")])
def test_durations(seconds, text):
    assert told(seconds) == text


class TestWatched:
    @pytest.fixture(autouse=True)
    def _no_waiting(self, monkeypatch):
        monkeypatch.setattr(progress, "FIRST_SECONDS", 0.0)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)

    def test_a_script_hears_nothing(self, capfd):
        with watched("work") as step:
            step(1, 3)
        assert capfd.readouterr() == ("", "")

    def test_lines_where_somebody_listens(self):
        said = []
        with listening(said.append), watched("work") as step:
            step(1, 3, "so far so good")
        assert said == ["work: 1/3; so far so good"]

    def test_only_the_outermost_that_has_begun_is_shown(self):
        said = []
        with listening(said.append), watched("outer") as outer:
            with watched("preparing") as inner:
                inner(1, 2)  # nothing else has begun
            outer(1, 9)
            with watched("inner") as inner:
                inner(1, 2)
            outer(2, 9)
        assert [line.partition(":")[0] for line in said] == ["preparing", "outer", "outer"]

    def test_a_loop_that_ends_early_gives_way(self):
        said = []
        with listening(said.append):
            for number in tracked(range(5), "loop"):
                if number == 2:
                    break
            with watched("next") as step:
                step(1, 2)
        assert said == ["loop: 1/5", "loop: 2/5", "next: 1/2"]

    def test_it_ends_with_an_error_too(self):
        said = []

        def interrupted() -> None:
            with listening(said.append), watched("one") as step:
                step(1, 2)
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        with listening(said.append), watched("two") as step:
            step(1, 2)
        assert said == ["one: 1/2", "two: 1/2"]


class TestWaiting:
    @pytest.fixture(autouse=True)
    def _log(self, monkeypatch):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: False, raising=False)

    def test_lines_come_early_and_then_less_often(self):
        clock, said = Clock(), []
        wait = WaitLines("null space", said.append, clock)
        for _ in range(60):
            clock.now += 1.0
            wait.look()
        assert said[0] == "null space, 2 s so far"
        assert said[1] == "null space, 5 s so far"
        assert len(said) < 10

    def test_it_begins_anew_after_something_that_was_counted(self):
        clock, said = Clock(), []
        wait = WaitLines("rome: 1 edit", said.append, clock)
        clock.now = 50.0
        wait.start()
        wait.look()
        assert said == []
        clock.now = 52.0
        wait.look()
        assert said == ["rome: 1 edit, 52 s so far"]
        wait.stop()

    def test_a_step_that_hangs_says_so_again(self):
        clock, said = Clock(), []
        lines = Lines("facts", said.append, clock)
        lines.step(0, 20, "turkey")
        for _ in range(8):
            clock.now += 1.0
            lines.look()
        assert said == [f"facts: 0/20, {n} s so far; turkey" for n in (2, 5)]

    def test_a_script_hears_nothing(self, capfd):
        with waiting("work"):
            pass
        assert progress._now.waits == []
        assert capfd.readouterr() == ("", "")

    def test_what_is_counted_and_what_is_more_exact_goes_first(self, monkeypatch):
        seen = []

        class Noted:
            def __init__(self, label, say):
                self.label = label

            def start(self):
                seen.append(f"+{self.label}")

            def stop(self):
                seen.append(f"-{self.label}")

        monkeypatch.setattr(progress, "WaitLines", Noted)
        with listening(seen.append), waiting("edit"):
            with waiting("load"):
                pass
            with watched("moments") as step:
                step(1, 9)
                with waiting("factor"):
                    pass
        assert seen == [
            "+edit", "-edit", "+load", "-load", "+edit",  # gives way to waiting inside
            "-edit",  # moments are counted
            "-edit", "-factor",  # and nothing waits beside them
            "+edit", "-edit",
        ]  # fmt: skip

    def test_counting_that_has_ended_gives_way(self, monkeypatch):
        monkeypatch.setattr(progress, "FIRST_SECONDS", 0.0)
        said = []
        with listening(said.append), watched("facts") as outer:
            outer(1, 2)
            outer(2, 2)
            with watched("asking") as inner:
                inner(1, 4)
        assert said == ["facts: 1/2", "asking: 1/4"]

    def test_another_thread_may_say_how_far_it_is(self, monkeypatch):
        """A search that was prepared for half an hour said 0 of 2,700 s all the while."""
        monkeypatch.setattr(progress, "FIRST_SECONDS", 0.0)
        monkeypatch.setattr(progress, "MOST_SECONDS", 0.0)
        said = []
        with listening(said.append), watched("tuning, seconds") as step:
            step(0, 60, "preparing")
            beside = threading.Thread(target=step, args=(7, 60, "second moments of 5 blocks"))
            beside.start()
            beside.join()
        assert said[-1] == "tuning, seconds: 7/60; second moments of 5 blocks"

    def test_the_thread_looks_until_it_is_stopped(self, monkeypatch):
        monkeypatch.setattr(progress, "TICK_SECONDS", 0.0)
        twice = threading.Event()
        seen = []

        def look():
            seen.append(1)
            if len(seen) >= 2:
                twice.set()

        ticker = Ticker(look)
        assert twice.wait(10)
        ticker.stop()
        count = len(seen)
        assert len(seen) == count
        assert not ticker._thread.is_alive()
