"""Columns beyond the core: where they come from, what they are called, and which are shown."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from errata.errors import ConfigError
from errata.evaluation.summary import summarise
from errata.reporting import report
from errata.store.runs import RunFolder
from tests.cli.conftest import Errata, errata, here, loaded, model
from tests.reporting.samples import rates, record, write_run, write_sweep
from tests.reporting.test_report_tables import grid

__all__ = ["errata", "here", "loaded", "model"]


def comparison(kind: str, prefers: int) -> dict[str, Any]:
    fields = {"prefers": prefers, "margin": 0.1, "greedy": prefers}
    name = {"reliability": "edit", "generality": "rephrase", "locality": "near"}[kind]
    return {"kind": kind, "name": name, "score": 1.0, "top1": 1.0, **fields, "before": fields}


def write(folder: Path, records: list[dict[str, Any]], **protocol: Any) -> Path:
    """Write a finished run with these records."""
    config = {
        "model": {"name": "pocket", "fingerprint": "f" * 64},
        "editor": {"name": "rome", "config": {}},
        "data": {"name": "cf", "version": "1", "cases": len(records), "ids": "a"},
        "protocol": {"regime": "single", "top_k": 5, "batch": 1, "seed": 0, **protocol},
    }
    header = {"editor": "rome", "model": "pocket", "data": "cf", "regime": "single", "top_k": 5}
    with RunFolder.create(folder, config) as run:
        run.append(records)
        run.finish(summarise(records, header, bootstrap=0))
    return folder


@pytest.fixture
def counterfact(tmp_path: Path) -> Path:
    """Four cases: ES 1, PS 1/2, NS 1/4, and texts of two of them."""
    records = []
    for n in range(4):
        asked = [
            comparison("reliability", 1),
            comparison("generality", int(n < 2)),
            comparison("locality", int(n == 0)),
        ]
        more: dict[str, Any] = {"questions": asked}
        if n < 2:
            more["sampled"] = {"fluency": 6.0 + n, "consistency": 0.25}
        records.append({**record(n, {}), **more})
    return write(tmp_path / "cf", records)


def numbers(made: Any) -> dict[str, dict[str, str]]:
    rows = csv.DictReader(io.StringIO(made.text("csv")))
    return {row["metric"]: row for row in rows if row["data"] == "cf"}


def test_counterfact_and_texts(counterfact: Path) -> None:
    made = report(counterfact)
    head, _, row = grid(made.text("markdown"))
    assert head[1:14] == [
        "cf n", "Rel", "Gen", "Loc", "Avg", "Gen top 1", "Loc top 1", "ES", "PS", "NS", "S", "GE",
        "RS",
    ]  # fmt: skip
    bare = [cell.split(" ± ")[0].strip("*") for cell in row]
    harmonic = 3 / (1 / 1.0 + 1 / 0.5 + 1 / 0.25)
    assert bare[1] == "4"
    assert bare[8:14] == ["100.00", "50.00", "25.00", f"{100 * harmonic:.2f}", "650.00", "25.00"]
    found = numbers(made)
    assert float(found["S"]["value"]) == pytest.approx(100 * harmonic)
    assert (found["fluency"]["unit"], float(found["fluency"]["value"])) == ("bits", 6.5)
    assert float(found["PS"]["low"]) < 50 < float(found["PS"]["high"])
    text = made.text("markdown")
    assert "n: cases." in text
    assert "CounterFact's comparisons" in text
    assert "ES & PS & NS & S & GE & RS" in made.text("latex")


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        (["counterfact"], ["ES", "PS", "NS", "S"]),
        (["core", "ES"], ["Rel", "Gen", "Loc", "Avg", "ES"]),
        (["GE", "consistency"], ["GE", "RS"]),
        (["top1"], ["Gen top 1", "Loc top 1"]),
        (["suite"], []),
    ],
)
def test_what_is_chosen(counterfact: Path, wanted: list[str], shown: list[str]) -> None:
    made = report(counterfact, metrics=wanted)
    head = grid(made.text("markdown"))[0]
    assert [cell for cell in head[1:-2] if not cell.endswith(" n")] == shown


def test_long_answers(tmp_path: Path) -> None:
    records = []
    for n in range(4):
        scores = {"rouge1": 0.5, "rouge2": 0.25, "rougeL": n / 4, "bleu": 0.0, "bleu_char": 0.1}
        long = {"long": {"text": f"text {n}", **scores}}
        asked = [{"kind": kind, "name": kind, "score": 1.0, "top1": 1.0, **long}
                 for kind in ("reliability", "generality")]  # fmt: skip
        near = {"kind": "locality", "name": "near", "score": 1.0, "top1": 1.0}
        records.append({**record(n, {}), "questions": [*asked, near]})
    made = report(write(tmp_path / "long", records, answers="long"))
    head, _, row = grid(made.text("markdown"))
    own = dict(zip(head, (cell.split(" ± ")[0].strip("*") for cell in row), strict=True))
    assert [name for name in head if name.startswith(("R1", "R2", "RL", "BLEU"))] == [
        f"{score} {kind}" for score in ("R1", "R2", "RL", "BLEU", "BLEU char")
        for kind in ("Rel", "Gen")
    ]  # fmt: skip
    assert (own["R1 Rel"], own["RL Gen"], own["BLEU char Rel"]) == ("50.00", "37.50", "10.00")
    assert float(numbers(made)["long.rougeL.reliability"]["low"]) < 37.5
    assert "longest common subsequence" in made.text("markdown")
    only = report(tmp_path / "long", metrics=["long"])
    assert len([c for c in grid(only.text("markdown"))[0] if c.endswith((" Rel", " Gen"))]) == 10


def test_an_unknown_metric(counterfact: Path) -> None:
    with pytest.raises(ConfigError, match="no metric 'fluenzy'") as caught:
        report(counterfact, metrics=["fluenzy"])
    assert "'fluency'" in (caught.value.hint or "")


def test_a_suite_has_its_tests_and_a_table_of_its_own(tmp_path: Path) -> None:
    def asked(kind: str, name: str, score: float) -> dict[str, Any]:
        own = {"kind": kind, "name": name, "score": score, "top1": score, "exact": True}
        return own

    records = []
    for n in range(3):
        own = [asked("reliability", "edit", 1.0), asked("generality", "subject_od", float(n == 0))]
        own += [asked("generality", "prefix", 1.0)] * 2 + [asked("locality", "near", 1.0)]
        records.append({**record(n, {}), "questions": own})
    write(tmp_path / "suite", records, suite="robustness")
    write_run(tmp_path / "plain", rates(100, 50, 100, n=3), data="cf")
    made = report(tmp_path)
    plain, suite = made.comparisons
    assert (plain.suite, suite.suite) == ("", "robustness")
    assert suite.title.endswith("top 5, suite robustness")
    head = grid(made.text("markdown"), 2)[0]
    assert head[6:10] == ["success", "prefix", "subject\\_od", "near"]
    (row,) = suite.rows
    assert row.scores["cf"]["test.subject_od"].value == pytest.approx(1 / 3)
    assert row.scores["cf"]["test.prefix"].cases == 3


def test_old_runs_of_a_suite_are_told_apart_too(tmp_path: Path) -> None:
    write_run(tmp_path / "plain", rates(100, 50, 100, n=3))
    write_run(tmp_path / "old", rates(100, 50, 100, n=3))
    path = tmp_path / "old" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "suite": {"name": "robustness", "words": 3}}))
    assert len(report(tmp_path).comparisons) == 2


def test_retention_and_general_ability(tmp_path: Path) -> None:
    point = {"step": 0, "edits": 0, "perplexity": 10.0, "general": {"sst2/acc": 0.9}}
    records = [
        {**record(n, {"reliability": float(n == 1)}), "age": 1 - n, "immediate": [1.0]}
        for n in range(2)
    ]
    end = {"step": 2, "edits": 2, "perplexity": 12.5, "general": {"sst2/acc": 0.6}}
    records[1]["trajectory"] = [point, {**end, "drift": {}}]
    made = report(write(tmp_path / "seq", records, regime="sequential:2"))
    head, _, row = grid(made.text("markdown"))
    shown = dict(zip(head, (cell.split(" ± ")[0].strip("*") for cell in row), strict=True))
    assert (shown["at once"], shown["at end"]) == ("100.00", "50.00")
    assert (shown["PPL"], shown["sst2/acc"]) == ("12.50", "60.00")
    assert numbers(made)["perplexity"]["low"] == ""


def test_a_single_case_has_no_interval(tmp_path: Path) -> None:
    made = report(write_run(tmp_path / "one", rates(100, 50, 100, n=1)))
    assert "± 0" not in made.text("markdown")


def test_rows_of_sweeps_and_runs_are_named_alike(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", {"pocket/rome/world/seed0": {"status": "done"}},
                        {"rows": {"rome": "rome"}})  # fmt: skip
    write_run(sweep / "cells" / "pocket" / "rome" / "world" / "seed0", rates(100, 50, 100, n=3))
    write_run(tmp_path / "run", rates(100, 50, 100, n=3), seed=1)
    labels = {row.label for table in report(tmp_path).comparisons for row in table.rows}
    assert labels == {"ROME"}


def test_narrow_tables_are_folded(errata: Errata, counterfact: Path, monkeypatch: Any) -> None:
    whole = errata("report", counterfact, "--intervals", "none").stdout
    monkeypatch.setenv("COLUMNS", "60")
    narrow = errata("report", counterfact, "--intervals", "none").stdout
    lines = [line for line in narrow.splitlines() if line.startswith("|")]
    assert max(map(len, lines)) <= 60
    assert any(len(line) > 60 for line in whole.splitlines() if line.startswith("|"))
    cells = {cell.strip() for line in lines for cell in line.strip("|").split("|")}
    for name in ("ES", "PS", "NS", "S", "GE", "RS", "s / edit", "bytes / edit"):
        assert name in cells


def test_the_command_chooses(errata: Errata, counterfact: Path) -> None:
    done = errata("report", counterfact, "--metrics", "counterfact, GE", "--format", "csv")
    metrics = {row["metric"] for row in csv.DictReader(io.StringIO(done.stdout))}
    assert {"ES", "PS", "NS", "S", "fluency"} <= metrics
    assert "reliability" not in metrics
