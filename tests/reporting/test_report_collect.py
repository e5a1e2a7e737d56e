"""Which runs a report finds, what it calls them, and what it says of those it cannot use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import errata
from errata.errors import RunError
from errata.reporting.collect import collect
from tests.reporting.samples import rates, write_run, write_sweep

LABELS = {
    "models": {"pocket": "Pocket"},
    "rows": {"none": "W/O", "mend-star": "MEND*", "rome": "ROME"},
    "data": {"zsre": "zsRE", "world": "World"},
}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    folder = tmp_path / "sweep"
    units = {
        "train/mend-star/pocket/seed0": {"status": "done"},
        "pocket/rome/world/seed0": {"status": "done"},
        "pocket/mend-star/world/seed0": {"status": "done"},
        "pocket/mend-star/zsre/seed0": {"status": "failed", "reason": "exit code 1"},
        "pocket/rome/zsre/seed0": {"status": "running"},
        "pocket/none/world/seed0": {"status": "done"},
        "pocket/none/zsre/seed0": {"status": "waiting"},
        "pocket/ibke/zsre/seed0": {"status": "blocked"},
    }
    for row, editor in (("rome", "rome"), ("mend-star", "mend"), ("none", "none")):
        write_run(folder / f"cells/pocket/{row}/world/seed0", rates(90, 60, 80), editor=editor)
    half = folder / "cells/pocket/rome/zsre/seed0"
    write_run(half, rates(90, 60, 80, n=3), data="zsre", finished=False)
    with (half / "records.jsonl").open("a") as file:
        file.write('{"id": "case-3", "questions": [{"ki')  # killed while writing
    return write_sweep(folder, units, LABELS)


def test_a_sweep_has_the_order_and_the_labels_of_its_recipe(sweep: Path) -> None:
    found = collect([sweep])
    assert [(c.model, c.label, c.data) for c in found.cells] == [
        ("Pocket", "W/O", "World"), ("Pocket", "MEND*", "World"), ("Pocket", "ROME", "World"),
    ]  # fmt: skip
    assert {entry.name: entry.why for entry in found.missing} == {
        "pocket/none/zsre/seed0": "not begun",
        "pocket/mend-star/zsre/seed0": "failed: exit code 1",
        "pocket/rome/zsre/seed0": "unfinished",
        "pocket/ibke/zsre/seed0": "waiting for a training that failed",
    }
    text = errata.report(sweep).text("markdown")
    assert "Missing: 1 not begun (pocket/none/zsre/seed0); 1 failed: exit code 1" in text


def test_a_sweep_of_an_older_version_has_no_labels(sweep: Path) -> None:
    document = json.loads((sweep / "sweep.json").read_text())
    del document["labels"]
    (sweep / "sweep.json").write_text(json.dumps(document))
    # rows that are called by their editor have its title, as runs that stand alone have
    assert {cell.label for cell in collect([sweep]).cells} == {"No edit", "mend-star", "ROME"}


def test_runs_are_found_below_a_folder_and_trainings_are_none(tmp_path: Path, sweep: Path) -> None:
    write_run(tmp_path / "more/deep/run", rates(90, 60, 80), editor="ft")
    training = tmp_path / "trained"
    training.mkdir()
    (training / "config.json").write_text('{"editor": "mend"}')
    labels = [cell.label for cell in collect([tmp_path]).cells]
    assert sorted(labels) == ["FT", "MEND*", "ROME", "W/O"]
    with pytest.raises(RunError, match="no run in"):
        collect([training])


def test_settings_tell_rows_of_one_editor_apart(tmp_path: Path) -> None:
    for layer in (1, 2):
        settings = {"layer": layer, "steps": 20}
        write_run(tmp_path / str(layer), rates(90, 60, 80), settings=settings)
        write_run(tmp_path / f"m{layer}", rates(90, 60, None), data="mquake", settings=settings)
    found = errata.report(tmp_path).comparisons[0]
    assert [row.label for row in found.rows] == ["ROME layer=1", "ROME layer=2"]
    assert all(len(row.scores) == 2 for row in found.rows)


def test_other_protocols_and_models_have_tables_of_their_own(tmp_path: Path) -> None:
    write_run(tmp_path / "a", rates(90, 60, 80))
    write_run(tmp_path / "b", rates(80, 50, 70), top_k=1)
    write_run(tmp_path / "c", rates(70, 40, 60), regime="batch:10")
    write_run(tmp_path / "d", rates(60, 30, 50), model="gpt2")
    write_run(tmp_path / "e", rates(60, 30, 50), fingerprint="0" * 64)
    titles = [table.title for table in errata.report(tmp_path).comparisons]
    assert titles == [
        "pocket (ffffffff), single, top 5",
        "pocket (ffffffff), single, top 1",
        "pocket (ffffffff), batch:10, top 5",
        "gpt2, single, top 5",
        "pocket (00000000), single, top 5",
    ]


def test_what_makes_numbers_hard_to_compare_is_said(tmp_path: Path) -> None:
    write_run(tmp_path / "a", rates(90, 60, 80, n=2), editor="rome")
    write_run(tmp_path / "b", rates(90, 60, 80, n=2), editor="rome", seed=1)
    write_run(tmp_path / "c", rates(90, 60, 80, n=2), editor="mend", ids="bb")
    write_run(tmp_path / "d", rates(90, 60, 80, n=2), editor="ft", error="too long")
    (table,) = errata.report(tmp_path).comparisons
    assert table.notes == (
        "FT on world: 2 of 2 cases failed and are in no rate",
        "world, seed 0: rows were asked different cases (ROME, FT | MEND)",
        "MEND on world: 1 of 2 seeds",
        "FT on world: 1 of 2 seeds",
    )
    assert table.rows[2].scores == {"world": {}}


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no such folder"):
        collect([tmp_path / "nowhere"])
    with pytest.raises(RunError, match="no run in"):
        collect([tmp_path])
    write_run(tmp_path / "half", rates(90, 60, 80), finished=False)
    with pytest.raises(RunError, match=r"nothing is finished in .*unfinished after 1 of 1 cases"):
        collect([tmp_path])
    first = write_run(tmp_path / "a", rates(90, 60, 80))
    write_run(tmp_path / "b", rates(90, 60, 80))
    with pytest.raises(RunError, match="are both ROME on world with seed 0"):
        collect([tmp_path])
    lines = "not a record\n" + (first / "records.jsonl").read_text()
    (first / "records.jsonl").write_text(lines)
    with pytest.raises(RunError, match=r"records\.jsonl, line 1: not a record"):
        collect([first])
    (first / "records.jsonl").unlink()
    (first / "config.json").write_text("{")
    with pytest.raises(RunError, match="cannot be read"):
        collect([first])
