"""The arithmetic of tables: means over data sets, F1, intervals, marks, costs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import errata
from errata.errors import ConfigError
from errata.reporting.scores import harmonic
from errata.reporting.tables import mark
from tests.reporting.samples import rates, write_run

# Table II of the IBKE paper, GPT2-XL: reliability, generality, locality on UniEdit, MQuAKE (without
# locality) and CounterFact with the printed averages, and F1 as recomputed from them.
TABLE_TWO = {
    "W/O": ([(20.32, 27.53, 100.00, 49.28), (32.42, 25.10, None, 28.76),
             (0.00, 3.42, 100.00, 34.47)], None),
    "FT": ([(99.10, 60.43, 89.68, 83.07), (99.80, 44.08, None, 71.94),
            (99.25, 58.34, 77.56, 78.38)], 65.83),
    "ROME": ([(96.76, 58.16, 96.76, 83.90), (89.61, 22.90, None, 56.26),
              (99.35, 46.71, 95.91, 80.66)], 59.07),
    "GRACE": ([(99.64, 46.58, 98.75, 81.66), (99.95, 24.99, None, 62.47),
               (99.57, 3.77, 98.59, 67.31)], 40.04),
    "IBKE*": ([(98.13, 97.00, 97.46, 97.53), (98.72, 92.31, None, 95.51),
               (97.19, 88.59, 87.58, 91.12)], 92.58),
}  # fmt: skip
SETS = ("uniedit", "mquake", "counterfact")
# the one printed average that is not the mean of its columns (Qwen3-1.7B, IBKE* on UniEdit)
MISMATCH = (95.72, 97.64, 95.27, 96.88)


def test_averages_and_f1_of_table_two(tmp_path: Path) -> None:
    for label, (cells, _) in TABLE_TWO.items():
        for data, (rel, gen, loc, _) in zip(SETS, cells, strict=True):
            name = "none" if label == "W/O" else label
            write_run(
                tmp_path / name.strip("*") / data, rates(rel, gen, loc), editor=name, data=data
            )
    (table,) = errata.report(tmp_path, bootstrap=0).comparisons
    assert table.data == SETS or set(table.data) == set(SETS)
    rows = {row.label if row.editor != "none" else "W/O": row for row in table.rows}
    for label, (cells, f1) in TABLE_TWO.items():
        for data, (_, _, loc, average) in zip(SETS, cells, strict=True):
            found = rows[label].scores[data]
            assert 100 * found["average"].value == pytest.approx(average, abs=0.0101), label
            assert ("locality" in found) == (loc is not None)
        own = rows[label].balance
        assert own is not None
        if f1 is not None:
            assert 100 * own.f1.value == pytest.approx(f1, abs=0.006), label


def test_the_printed_average_that_is_no_mean(tmp_path: Path) -> None:
    rel, gen, loc, printed = MISMATCH
    write_run(tmp_path / "a", rates(rel, gen, loc), editor="ibke")
    (table,) = errata.report(tmp_path, bootstrap=0).comparisons
    found = 100 * table.rows[0].scores["world"]["average"].value
    assert found == pytest.approx(96.21, abs=0.005)
    assert abs(found - printed) > 0.6
    assert (97.72 + gen + loc) / 3 == pytest.approx(printed, abs=0.005)  # 95.72 is likely a typo


def test_zsre_does_not_count_for_f1_unless_asked_for(tmp_path: Path) -> None:
    write_run(tmp_path / "w", rates(90, 60, 80))
    write_run(tmp_path / "m", rates(90, 30, None), data="mquake")
    write_run(tmp_path / "z", rates(90, 100, 100), data="zsre")

    def f1(chosen: list[str] | None) -> float:
        own = errata.report(tmp_path, f1=chosen, bootstrap=0).comparisons[0].rows[0].balance
        assert own is not None
        return own.f1.value

    assert f1(None) == pytest.approx(harmonic(0.45, 0.8))
    assert f1(["world"]) == pytest.approx(harmonic(0.6, 0.8))
    assert f1(["world", "zsre"]) == pytest.approx(harmonic(0.8, 0.9))
    with pytest.raises(ConfigError, match="no data set 'word'"):
        f1(["word"])


def test_f1_is_only_given_over_the_data_sets_of_the_other_rows(tmp_path: Path) -> None:
    write_run(tmp_path / "a", rates(90, 60, 80), editor="rome")
    write_run(tmp_path / "b", rates(90, 30, 70), editor="rome", data="counterfact")
    write_run(tmp_path / "c", rates(90, 60, 80), editor="mend")
    rows = {row.editor: row for row in errata.report(tmp_path).comparisons[0].rows}
    assert rows["rome"].balance is not None
    assert rows["mend"].balance is None


def test_the_interval_of_one_run_is_that_of_its_cases(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    hits = (rng.random(400) < 0.7).astype(float).tolist()
    write_run(tmp_path / "a", {"reliability": hits})
    (table,) = errata.report(tmp_path, bootstrap=4000).comparisons
    found = table.rows[0].scores["world"]["reliability"]
    p = np.mean(hits)
    assert found.half_width == pytest.approx(1.96 * np.sqrt(p * (1 - p) / 400), rel=0.08)
    assert (found.cases, found.seeds) == (400, 1)
    assert errata.report(tmp_path, bootstrap=0).comparisons[0].rows[0].scores["world"][
        "reliability"
    ].interval is None  # fmt: skip


def test_the_interval_over_seeds_holds_the_variance_of_both(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    runs = [(rng.random(200) < p).astype(float) for p in (0.5, 0.7, 0.9)]
    for seed, hits in enumerate(runs):
        write_run(tmp_path / str(seed), {"reliability": hits.tolist()}, seed=seed)
    (table,) = errata.report(tmp_path, bootstrap=4000).comparisons
    found = table.rows[0].scores["world"]["reliability"]
    means = np.array([hits.mean() for hits in runs])
    assert found.value == pytest.approx(means.mean())
    assert (found.cases, found.seeds) == (600, 3)
    # drawing a seed, then its cases: the variance between seeds and the mean one inside them
    spread = np.sqrt((means.var() + np.mean(means * (1 - means) / 200)) / 3)
    assert found.samples.std() == pytest.approx(spread, rel=0.05)
    again = errata.report(tmp_path, bootstrap=4000).comparisons[0].rows[0]
    assert np.array_equal(again.scores["world"]["reliability"].samples, found.samples)


def test_rows_of_one_editor_do_not_share_their_draws(tmp_path: Path) -> None:
    hits = [0.0, 1.0] * 50
    write_run(tmp_path / "a", {"reliability": hits}, settings={"layer": 1})
    write_run(tmp_path / "b", {"reliability": hits}, settings={"layer": 2})
    one, two = errata.report(tmp_path).comparisons[0].rows
    first, second = (row.scores["world"]["reliability"].samples for row in (one, two))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize(
    ("values", "within", "marks"),
    [
        ([1.0, 0.9, 0.88, 0.8], 3, ["", "best", "near", ""]),
        ([1.0, 0.9, 0.88, 0.8], 0, ["", "best", "", ""]),
        ([1.0, 0.900001, 0.9, None], 3, ["", "best", "best", ""]),  # both print as 90.00
        ([1.0, 0.9, 0.873, 0.8729], 3, ["", "best", "near", ""]),  # the bound itself is near
        ([1.0, None, None, None], 3, ["", "", "", ""]),
        ([1.0, 0.0, 0.0, None], 3, ["", "", "", ""]),
    ],
)
def test_marks(values: list[float | None], within: float, marks: list[str]) -> None:
    assert mark(values, [False, True, True, True], within) == marks


def test_costs_are_per_edit_and_patches_of_a_unit_count_once(tmp_path: Path) -> None:
    write_run(tmp_path / "a", rates(90, 60, 80, n=4))
    write_run(tmp_path / "b", rates(90, 60, 80, n=4), data="mquake", edits=3, unit=0)
    row = errata.report(tmp_path).comparisons[0].rows[0]
    assert row.costs["world"].seconds_per_edit == pytest.approx(0.25)
    assert row.costs["world"].bytes_per_edit == 2048
    assert row.costs["mquake"].seconds_per_edit == pytest.approx(0.25 / 3)
    assert row.costs["mquake"].bytes_per_edit == pytest.approx(2048 / 12)  # one unit of 12 edits
    assert row.cost.bytes_per_edit == pytest.approx((4 * 2048 + 2048) / 16)


def test_a_run_of_an_older_version_has_no_bytes(tmp_path: Path) -> None:
    path = write_run(tmp_path / "a", rates(90, 60, 80))
    summary = json.loads((path / "summary.json").read_text())
    del summary["bytes"]
    (path / "summary.json").write_text(json.dumps(summary))
    made = errata.report(tmp_path)
    assert made.comparisons[0].rows[0].cost.bytes_per_edit is None
    assert "| 0.25 | – |" in made.text("markdown")
