"""Aggregation and intervals on hand-made records."""

from __future__ import annotations

import json

import numpy as np
import pytest

from errata.evaluation import bootstrap
from errata.evaluation.bootstrap import Table, intervals
from errata.evaluation.result import Result
from errata.evaluation.summary import summarise


def entry(kind, name, score, top1=0.0, **more):
    return {"kind": kind, "name": name, "score": score, "top1": top1, **more}


def record(number, entries, **more):
    return {
        "id": str(number),
        "error": None,
        "edits": sum(e["kind"] == "reliability" for e in entries),
        "questions": entries,
        "seconds": {"edit": 0.5, "evaluate": 0.25},
        **more,
    }


HEADER = {"editor": "e", "model": "m", "data": "d", "regime": "single"}


def test_items_are_pooled_inside_a_name_and_names_averaged():
    records = [
        record(0, [entry("reliability", "edit", 1.0), entry("generality", "a", 1.0),
                   entry("generality", "a", 0.0), entry("generality", "a", 0.5),
                   entry("generality", "b", 1.0)]),
        record(1, [entry("reliability", "edit", 0.5), entry("reliability", "edit", 0.0),
                   entry("generality", "a", 1.0)]),
    ]  # fmt: skip
    summary = summarise(records, HEADER, bootstrap=0)
    assert summary["reliability"] == pytest.approx(0.5)  # over 3 requests, not 2 records
    assert summary["generality"] == pytest.approx((2.5 / 4 + 1.0) / 2)
    assert summary["locality"] is None
    assert summary["average"] == pytest.approx((summary["reliability"] + summary["generality"]) / 2)
    assert summary["f1"] is None
    assert summary["by"]["name"]["generality"]["a"] == {"mean": 0.625, "items": 4}
    assert summary["ci95"] == {}
    assert summary["edits"] == 3


def test_average_and_f1():
    records = [record(0, [entry("reliability", "edit", 0.9), entry("generality", "a", 0.6, 0.2),
                          entry("locality", "b", 0.3, 0.05, gold=0.1)])]  # fmt: skip
    summary = summarise(records, HEADER, bootstrap=0)
    assert summary["average"] == pytest.approx(0.6)
    assert summary["f1"] == pytest.approx(2 * 0.6 * 0.3 / 0.9)
    assert summary["also"] == {
        "generality_top1": pytest.approx(0.2),
        "locality_top1": pytest.approx(0.05),
        "locality_gold": pytest.approx(0.1),
    }


def test_breakdowns():
    records = [
        record(0, [entry("generality", "g", 1.0, criteria=["MH", "RR"],
                         hops={"asked": 2, "known": 1, "edited": 1, "failed": []}),
                   entry("locality", "l", 0.5, criteria=["MH"])], domain="x"),
        record(1, [entry("generality", "g", 0.0, criteria=["MH"]),
                   entry("locality", "l", 1.0, criteria=["W/O"])], domain="y"),
        record(2, [entry("generality", "g", 0.5)], domain="x"),
    ]  # fmt: skip
    by = summarise(records, HEADER, bootstrap=0)["by"]
    assert by["criteria"]["generality"] == {
        "MH": {"mean": 0.5, "items": 2},
        "RR": {"mean": 1.0, "items": 1},
    }
    assert by["criteria"]["locality"] == {
        "MH": {"mean": 0.5, "items": 1},
        "W/O": {"mean": 1.0, "items": 1},
    }
    assert by["domain"]["x"]["cases"] == 2
    assert by["domain"]["x"]["generality"] == pytest.approx(0.75)
    assert by["domain"]["y"]["locality"] == 1.0
    assert by["hops"] == {"0": {"mean": 0.25, "items": 2}, "2": {"mean": 1.0, "items": 1}}


def compared(kind, prefers, margin, before=0):
    return entry(kind, "n", 0.0, prefers=prefers, margin=margin, greedy=0,
                 before={"prefers": before, "margin": 0.0, "greedy": 0})  # fmt: skip


def test_counterfact_averages_inside_a_record_first():
    records = [
        record(0, [compared("reliability", 1, 0.4), compared("generality", 1, 0.2),
                   compared("generality", 0, -0.2), *[compared("locality", 1, 0.1)] * 10]),
        record(1, [compared("reliability", 0, -0.2, before=1), compared("generality", 1, 0.1),
                   compared("locality", 0, -0.3)]),
        record(2, [compared("reliability", 1, 0.1)]),
    ]  # fmt: skip
    found = summarise(records, HEADER, bootstrap=50)["counterfact"]
    assert found["ES"] == pytest.approx(2 / 3)
    assert found["PS"] == pytest.approx((0.5 + 1) / 2)
    assert found["NS"] == pytest.approx(0.5)
    assert found["S"] == pytest.approx(3 / (3 / 2 + 4 / 3 + 2))
    assert found["EM"] == pytest.approx(0.1)
    assert found["PM"] == pytest.approx(0.05)
    assert found["NM"] == pytest.approx(-0.1)
    assert found["before"]["ES"] == pytest.approx(1 / 3)
    assert found["before"]["S"] == 0.0  # a zero component
    assert set(found["ci95"]) >= {"ES", "PS", "NS", "S"}


def test_free_answers_have_their_own_block():
    said = [("edit", 1.0, 0), ("a", 0.0, 1), ("b", 0.0, 0)]
    entries = [
        entry("reliability" if name == "edit" else "generality", name, score,
              wild={"score": match, "text": ""})
        for name, score, match in said
    ]  # fmt: skip
    records = [record(0, entries)]
    summary = summarise(records, HEADER, bootstrap=10)
    assert summary["wild"]["reliability"] == 0.0
    assert summary["wild"]["generality"] == 0.5
    assert summary["reliability"] == 1.0
    assert summary["generality"] == 0.0


def test_failed_records_are_counted_and_not_averaged():
    bad = record(1, []) | {"error": "no subject", "edits": 1}
    summary = summarise([record(0, [entry("reliability", "edit", 1.0)]), bad], HEADER)
    assert (summary["cases"], summary["failed"], summary["edits"]) == (2, 1, 1)
    assert summary["failures"] == {"no subject": 1}
    assert summary["reliability"] == 1.0
    table = Result(summary, []).table()
    assert "1 of them failed" in table


def test_retention_groups_ages():
    records = [
        record(i, [entry("reliability", "edit", float(i >= 90))], age=99 - i, immediate=[1.0])
        for i in range(100)
    ]
    found = summarise(records, HEADER, bootstrap=0)["retention"]
    assert found["immediate"] == 1.0
    assert found["final"] == pytest.approx(0.1)
    assert len(found["by_age"]) == 10
    assert found["by_age"][0] == {"age": [0, 9], "cases": 10, "immediate": 1.0, "final": 1.0}
    assert found["by_age"][-1]["final"] == 0.0


@pytest.mark.parametrize("kept", [0, bootstrap._KEPT])  # drawn anew, or remembered
def test_intervals_resample_records_as_a_plain_bootstrap_does(kept, monkeypatch):
    monkeypatch.setattr(bootstrap, "_KEPT", kept)
    rng = np.random.default_rng(5)
    rows = [
        {("reliability", "edit"): rng.random(rng.integers(1, 4)).tolist(),
         ("generality", "a"): rng.random(2).tolist(),
         **({("generality", "b"): rng.random(3).tolist()} if i % 4 == 0 else {})}
        for i in range(40)
    ]  # fmt: skip
    table = Table.of(rows)
    found = table.resampled(200, 3)
    plain = np.random.default_rng(3)
    for b in range(200):
        drawn = [rows[i] for i in plain.integers(0, 40, 40)]
        pooled = {
            column: [x for row in drawn for x in row.get(column, [])] for column in table.columns
        }
        assert found["reliability"][b] == pytest.approx(np.mean(pooled["reliability", "edit"]))
        expected = (np.mean(pooled["generality", "a"]) + np.mean(pooled["generality", "b"])) / 2
        assert found["generality"][b] == pytest.approx(expected)
        assert found["average"][b] == pytest.approx((expected + found["reliability"][b]) / 2)
    low, high = intervals(table, 200, 3)["generality"]
    assert low == pytest.approx(np.percentile(found["generality"], 2.5))
    assert high == pytest.approx(np.percentile(found["generality"], 97.5))
    assert low < table.rates()["generality"] < high


def test_resamples_without_an_item_do_not_count():
    rows = [{("reliability", "edit"): [1.0]}] * 5 + [{("locality", "l"): [0.5]}] * 2
    bounds = intervals(Table.of(rows), 100, 0)
    assert bounds["locality"] == [0.5, 0.5]


def test_what_one_record_says_has_no_interval():
    """Its resamples are all equal, which would read as certainty."""
    rows = [{("reliability", "edit"): [1.0]}] * 5 + [{("locality", "l"): [0.5, 1.0]}]
    assert "locality" not in intervals(Table.of(rows), 100, 0)
    assert intervals(Table.of(rows[:1]), 100, 0) == {}


def test_summary_survives_json_and_is_repeatable():
    rng = np.random.default_rng(1)
    records = [
        record(i, [entry("reliability", "edit", float(rng.random())),
                   entry("generality", "a", float(rng.random())),
                   entry("locality", "l", float(rng.random()), gold=0.0)])
        for i in range(20)
    ]  # fmt: skip
    first = json.dumps(summarise(records, HEADER, seed=4))
    again = json.dumps(summarise(json.loads(json.dumps(records)), HEADER, seed=4))
    assert first == again
    other = summarise(records, HEADER, seed=5)
    assert other["ci95"] != json.loads(first)["ci95"]
    assert other["average"] == json.loads(first)["average"]
    assert other["seconds"]["edit"] == pytest.approx(10.0)
    assert other["seconds"]["per_edit"] == pytest.approx(0.5)


def test_cases_of_a_unit_share_the_bytes_of_its_patch():
    edit = [entry("reliability", "edit", 1.0)]
    records = [record(0, edit * 2, unit=0, patch_bytes=600),
               record(1, edit, unit=0, patch_bytes=600),
               record(2, edit, unit=1, patch_bytes=200),
               record(3, edit, unit=2, patch_bytes=0, error="no")]  # fmt: skip
    found = summarise(records, HEADER, bootstrap=0)["bytes"]
    assert found == {"patches": 800, "per_edit": 200.0}
    older = [{k: v for k, v in r.items() if k != "patch_bytes"} for r in records[:1]]
    assert summarise(older + records[2:], HEADER, bootstrap=0)["bytes"] is None
