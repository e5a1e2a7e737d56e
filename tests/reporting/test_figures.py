"""Figures from run folders: their numbers, their files, and what they say is missing."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from errata.errors import ConfigError, RunError
from errata.reporting import figures
from tests.reporting.samples import write_run

RATES = {"reliability": [1.0, 1.0], "generality": [1.0, 0.5], "locality": [1.0, 0.0]}


def numbers(name: str, *folders: Path) -> Iterator[dict[str, str]]:
    return csv.DictReader(io.StringIO(figures.draw(name, folders).csv()))


def grid(folder: Path) -> list[Path]:
    return [
        write_run(
            folder / f"{l_m}-{beta}-{data}", {**RATES, "generality": [l_m / 10, beta]},
            editor="ibke", data=data, settings={"l_m": l_m, "beta": beta},
        )
        for l_m in (1, 10)
        for beta in (0.0, 0.1)
        for data in ("world", "zsre")
    ]  # fmt: skip


def test_the_grid_is_the_mean_over_data_sets(tmp_path: Path) -> None:
    rows = list(numbers("latents", *grid(tmp_path)))
    assert len(rows) == 2 * 2 * 3
    found = {(r["l_m"], r["beta"]): r["rate"] for r in rows if r["metric"] == "generality"}
    assert found["10", "0.1000"] == "0.5500"
    assert found["1", "0.0000"] == "0.0500"


def test_the_scatter_has_a_point_per_editor_and_model(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / f"{editor}{model}", RATES, editor=editor, model=model)
        for editor in ("rome", "ft")
        for model in ("pocket", "other")
    ]
    rows = list(numbers("scatter", *folders))
    assert {(r["editor"], r["model"]) for r in rows} == {
        (e, m) for e in ("ROME", "FT") for m in ("pocket", "other")
    }
    assert {(r["generality"], r["locality"], r["f1"]) for r in rows} == {
        ("0.7500", "0.5000", "0.6000")
    }


def test_the_scatter_leaves_zsre_out_and_weighs_data_sets_alike(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / f"{data}{seed}", {**RATES, "generality": [value, value]}, data=data,
                  seed=seed)
        for data, seed, value in (("world", 0, 0.2), ("world", 1, 0.4), ("mquake", 0, 0.9),
                                  ("zsre", 0, 0.0))
    ]  # fmt: skip
    (row,) = numbers("scatter", *folders)
    assert (row["generality"], row["data"]) == ("0.6000", "world mquake")
    (alone,) = numbers("scatter", folders[-1])  # nothing else is there
    assert alone["data"] == "zsre"


def test_variants_are_told_apart_by_their_settings(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / str(b), RATES, editor="ibke", settings={"bottleneck": b})
        for b in (True, False)
    ]
    rows = list(numbers("variants", *folders))
    assert {r["variant"] for r in rows} == {"IBKE bottleneck=True", "IBKE bottleneck=False"}
    with pytest.raises(RunError, match="one variant only"):
        figures.draw("variants", folders[0])


def asked(*more: Any) -> list[dict[str, Any]]:
    return [
        {"kind": "generality", "name": "g", "score": score, "top1": score, **rest}
        for score, rest in more
    ]


def test_criteria_are_counted_by_combination_and_hops(tmp_path: Path) -> None:
    questions = asked(
        (1.0, {"criteria": ["Rep", "OA"]}),
        (0.5, {"criteria": ["MH"], "hops": {"asked": 1, "known": 1, "edited": 0, "failed": []}}),
        (0.0, {}),
    )
    folder = write_run(tmp_path / "r", RATES, questions=questions)
    found = {(r["hops"], r["criteria"]): (r["generality"], r["questions"])
             for r in numbers("criteria", folder)}  # fmt: skip
    assert found == {
        ("0", "OA+Rep"): ("1.0000", "2"),
        ("1", "MH"): ("0.5000", "2"),
        ("0", "none"): ("0.0000", "2"),
    }


def test_domains_are_columns(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", RATES, domain="art")
    rows = list(numbers("domains", folder))
    assert {(r["domain"], r["metric"], r["rate"]) for r in rows} == {
        ("art", "reliability", "1.0000"),
        ("art", "generality", "0.7500"),
        ("art", "locality", "0.5000"),
    }


def test_what_is_missing_is_named_with_the_command(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "r", RATES)
    for name, field, command in (
        ("domains", "lacks by.domain", "errata sweep"),
        ("criteria", "lacks criteria", "errata eval"),
        ("latents", "l_m and beta", "errata sweep"),
    ):
        with pytest.raises(RunError, match=field) as failed:
            figures.draw(name, folder)
        assert command in str(failed.value.hint)
    only = write_run(tmp_path / "only", {"reliability": [1.0]})
    with pytest.raises(RunError, match="no run has generality and locality"):
        figures.draw("scatter", only)
    with pytest.raises(ConfigError, match="unknown figure 'scater'"):
        figures.draw("scater", folder)


@pytest.mark.parametrize("name", ["latents", "scatter"])
def test_files_are_whole_and_the_same_each_time(tmp_path: Path, name: str) -> None:
    pytest.importorskip("matplotlib")
    folders = grid(tmp_path / "runs")
    first = figures.figure(name, folders, tmp_path / "a")
    again = figures.figure(name, folders, tmp_path / "b")
    assert [path.name for path in first] == [f"{name}.{e}" for e in ("csv", "png", "svg")]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, again, strict=True))
    assert first[1].read_bytes().startswith(b"\x89PNG")
    assert "<svg" in first[2].read_text()
    with pytest.raises(RunError, match="is there already"):
        figures.figure(name, folders, tmp_path / "a")
    figures.figure(name, folders, tmp_path / "a", force=True)
