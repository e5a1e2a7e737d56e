"""Groups by time: records come after seconds, and say the same whatever goes together."""

from __future__ import annotations

import json

import pytest

from errata.evaluation import evaluate, pace
from errata.evaluation.pace import paced
from errata.store.runs import load_run
from tests.evaluation.stubs import Planted

CLOSE = 1e-9
"""Largest difference of a likelihood in float64: rows in passes of other sizes round differently in
the last bits (1e-16 each); everything that is counted must be equal."""


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def sizes(seconds_per_item: float, items: int, most: int, fixed: float = 0.0) -> list[int]:
    clock, found = Clock(), []
    for group in paced(list(range(items)), most, clock):
        found.append(len(group))
        clock.now += fixed + seconds_per_item * len(group)
    assert sum(found) == items
    return found


def test_slow_work_goes_alone():
    assert sizes(27.0, 5, 32) == [1] * 5


def test_fast_work_goes_together_from_the_second_group_on():
    assert sizes(0.01, 100, 32) == [1, 32, 32, 32, 3]


def test_a_slow_start_is_forgotten():
    clock, found = Clock(), []
    for number, group in enumerate(paced(list(range(200)), 32, clock)):
        found.append(len(group))
        clock.now += 20.0 if not number else 0.1 * len(group)
    assert found[:4] == [1, 1, 32, 32]


def test_no_group_takes_much_longer_than_wanted():
    assert max(sizes(0.6, 100, 32)) * 0.6 <= pace.SECONDS


def difference(a, b) -> float:
    """Return the largest difference of floats; infinite if anything else differs."""
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        return max((difference(a[k], b[k]) for k in a if k != "seconds"), default=0.0)
    if isinstance(a, list):
        assert len(a) == len(b)
        return max(map(difference, a, b), default=0.0)
    if isinstance(a, float) and a != int(a):
        return abs(a - b)
    return 0.0 if a == b else float("inf")


@pytest.mark.parametrize("regime", ["single", "batch:2"])
@pytest.mark.parametrize("kind", ["low_rank", "norm"])
def test_records_do_not_depend_on_the_groups(lm, cases, monkeypatch, regime, kind):
    def run(seconds):
        monkeypatch.setattr(pace, "SECONDS", seconds)
        editor = Planted(kind=kind)
        found = evaluate(
            lm,
            editor,
            cases,
            regime=regime,
            top_k=9,
            protocol={"answers": "wild", "new_tokens": 4},
        )
        return found, max(len(groups) for groups, _ in editor.calls)

    (alone, one), (together, many) = run(0.0), run(1e9)
    assert one == 1
    assert many > 1
    assert difference(alone.records, together.records) < CLOSE
    rates = ("reliability", "generality", "locality", "ci95", "by")
    assert all(alone.summary[name] == together.summary[name] for name in rates)


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_a_run_goes_on_in_other_groups(lm, cases, tmp_path, monkeypatch, seconds):
    """Killed while units went alone, resumed with all of them together, and the other way round."""
    whole = evaluate(lm, Planted(), cases, top_k=9)
    monkeypatch.setattr(pace, "SECONDS", seconds)
    killed = Planted()
    killed.stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        evaluate(lm, killed, cases, top_k=9, out=tmp_path / "r", stack_size=3)
    kept = len(load_run(tmp_path / "r").records)
    assert 0 < kept < len(cases)
    monkeypatch.setattr(pace, "SECONDS", 1e9 if seconds == 0.0 else 0.0)
    again = evaluate(lm, Planted(), cases, top_k=9, out=tmp_path / "r", resume=True)
    assert difference(again.records, whole.records) < CLOSE
    told = ("reliability", "generality", "locality", "average", "ci95", "hops", "by")
    assert json.dumps([again.summary[k] for k in told]) == json.dumps(
        [whole.summary[k] for k in told]
    )


def test_records_are_written_after_seconds(lm, cases, tmp_path, monkeypatch):
    """Each unit is on disk before the next one starts when units are slow."""
    monkeypatch.setattr(pace, "SECONDS", 0.0)
    seen = []

    class Slow(Planted):
        def edit_groups(self, lm, groups, before):
            path = tmp_path / "r" / "records.jsonl"
            seen.append(len(path.read_text().splitlines()) if path.exists() else 0)
            return super().edit_groups(lm, groups, before)

    plain = [case for i, case in enumerate(cases) if i % 3]  # without hops
    evaluate(lm, Slow(), plain, out=tmp_path / "r")
    assert seen == list(range(len(plain)))


def test_progress_inside_sequences(lm, flat):
    seen = []
    evaluate(lm, Planted(), flat, regime="sequential:7", progress=lambda d, t: seen.append((d, t)))
    # what is edited counts half, until it is asked
    assert seen == [(0, 7)] + [(n // 2, 7) for n in range(1, 8)] + [(7, 7)]


@pytest.mark.parametrize("editor", [pytest.param("rome", marks=pytest.mark.slow), "ft", "grace"])
def test_real_editors(editor, monkeypatch):
    """On the shipped model in float64; in float32 last bits may be others, never a rate here."""
    import errata

    lm = errata.load("pocket", dtype="float64")
    data = errata.load_cases("world", limit=4, seed=0)

    def run(seconds):
        monkeypatch.setattr(pace, "SECONDS", seconds)
        return evaluate(lm, editor, data, bootstrap=0).records

    assert difference(run(0.0), run(1e9)) < CLOSE


@pytest.mark.parametrize("regime", ["sequential:7", "batch:7"])
def test_large_units_are_written_as_they_are_asked(lm, flat, tmp_path, monkeypatch, regime):
    """Killed after three of seven cases were asked: three are on record, and only four asked."""
    from errata.evaluation.questioning import Questioner

    monkeypatch.setattr(pace, "SECONDS", 0.0)
    settings = {"regime": regime, "stack_size": 1, "top_k": 9}
    whole = evaluate(lm, Planted(), flat, **settings)
    asked, ask = [], Questioner.ask

    def killed(self, items):
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked.extend(case for case, _, _ in items)
        return ask(self, items)

    monkeypatch.setattr(Questioner, "ask", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(lm, Planted(), flat, **settings, out=tmp_path / "r")
    assert [record["id"] for record in load_run(tmp_path / "r").records] == asked
    first = list(asked)
    asked.clear()
    monkeypatch.setattr(
        Questioner, "ask", lambda self, items: asked.extend(i[0] for i in items) or ask(self, items)
    )
    again = evaluate(lm, Planted(), flat, **settings, out=tmp_path / "r", resume=True)
    assert asked == [case.id for case in flat if case.id not in first]
    assert difference(again.records, whole.records) < CLOSE
    assert all(record["seconds"]["edit"] > 0 for record in again.records)


def test_what_the_unedited_model_says_is_kept_part_by_part(lm, flat, tmp_path, monkeypatch):
    """A kill loses one part; the parts before are not asked again."""
    from errata.evaluation import before

    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path))
    monkeypatch.setattr(before, "KEPT_TOGETHER", 2)
    parts, score = [], type(lm).score

    def killed(self, rows, **more):
        if len(parts) == 2:
            raise KeyboardInterrupt
        parts.append([row.ids for row in rows])
        return score(self, rows, **more)

    monkeypatch.setattr(type(lm), "score", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(lm, Planted(), flat, bootstrap=0)
    first = list(parts)
    parts.clear()
    monkeypatch.setattr(
        type(lm),
        "score",
        lambda s, rows, **m: parts.append([r.ids for r in rows]) or score(s, rows, **m),
    )
    evaluate(lm, Planted(), flat, bootstrap=0)
    assert len(first) == 2
    assert not [part for part in first if part in parts]
