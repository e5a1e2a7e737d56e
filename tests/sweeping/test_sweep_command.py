"""`errata sweep` as it is typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Errata, errata, here, loaded, model, tree

__all__ = ["errata", "here", "loaded", "model"]
RECIPES = Path(__file__).resolve().parents[2] / "recipes"
RECIPE = """
name = "little"
models.tiny = { id = "MODEL" }
data.world = { spec = "world", limit = 2 }
[editors.none]
editor = "none"
label = "W/O"
"""


@pytest.fixture
def recipe(here: Path, model: str) -> Path:
    path = here / "little.toml"
    path.write_text(RECIPE.replace("MODEL", model), encoding="utf-8")
    return path


def test_a_dry_run_of_table_two(errata: Errata, here: Path) -> None:
    found = errata("sweep", RECIPES / "ibke-table2.toml", "--dry-run", "--json").json
    assert found["dry_run"]
    assert len(found["cells"]) == 208
    assert len(found["trainings"]) == 24
    for entry in found["cells"] + found["trainings"]:
        assert entry["memory_bytes"] == pytest.approx(sum(entry["memory"].values()))
        assert entry["seconds"] > 0
        assert entry["status"] == "to do"
    training = next(e for e in found["trainings"] if e["name"] == "train/ibke/gpt2-xl/seed0")
    assert training["network_parameters"] == 160_124_358
    assert training["memory"]["networks"] == 16 * 160_124_358
    assert training["memory"]["weights"] == pytest.approx(4 * 1.5e9, rel=0.05)
    assert found["device_seconds_left"] == found["device_seconds"]
    assert tree(here) == {}


def test_a_dry_run_shows_every_cell(errata: Errata, here: Path) -> None:
    done = errata("sweep", RECIPES / "ibke-table2.toml", "--dry-run", "--only", "gpt-j/*")
    rows = [line for line in done.stdout.splitlines() if line.startswith(" GPT-J ")]
    assert len(rows) == 52 + 6
    assert "52 cells" in done.stdout
    assert "not measurements; nothing was run" in done.stdout
    assert tree(here) == {}


def test_a_recipe_runs_and_is_not_run_again(
    errata: Errata, here: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = errata("sweep", recipe, "--limit", "1", "--json").json
    assert found["counts"] == {"done": 1}
    (first,) = found["cells"]
    assert first["status"] == "done"
    assert first["cases"] == 1
    assert first["locality"] == 1.0
    assert found["trainings"] == []
    assert (here / "runs/little/cells/tiny/none/world/seed0/records.jsonl").is_file()
    monkeypatch.setenv("COLUMNS", "60")
    done = errata("sweep", recipe, "--limit", "1")
    assert done.code == 0
    rows = [line for line in done.stdout.splitlines() if line.startswith(" ")]
    assert rows
    assert max(map(len, rows)) <= 60
    assert all(line == line.rstrip() for line in done.stdout.splitlines())
    assert "top 5" in done.stdout
    assert "1 of 1 units are finished" in done.stderr
    assert "1 done. All runs: runs/" in done.stdout
    document = json.loads((here / "runs/little/sweep.json").read_text(encoding="utf-8"))
    assert document["units"]["tiny/none/world/seed0"]["attempts"] == 1
    assert document["labels"]["rows"] == {"none": "W/O"}
    (numbers,) = errata("report", "runs/little", "--json").json["tables"]
    assert numbers["rows"] == [{"row": "W/O", "editor": "none"}]
    assert numbers["numbers"][0]["value"] == pytest.approx(100 * first["reliability"])
    plan = errata("sweep", recipe, "--dry-run", "--json").json
    assert [entry["status"] for entry in plan["cells"]] == ["finished"]
    assert plan["cells"][0]["seconds"] is None  # nothing is known of the model's size
    other = errata("sweep", recipe)
    assert other.code == 1
    assert "started with other settings" in other.stderr


def test_failures_are_reported_with_their_log(
    errata: Errata, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (sys.executable, "-c", "import sys; sys.exit('error: out of luck')")
    monkeypatch.setattr("errata.sweeping.child.COMMAND", command)
    done = errata("sweep", recipe, "--retries", "0")
    assert done.code == 1
    assert "tiny/none/world/seed0: exit code 1 after 1 attempts" in done.stderr
    assert "error: out of luck" in done.stderr
    assert "1 of 1 units failed" in done.stderr
    assert "failed" in done.stdout


def test_wrong_usage(errata: Errata, here: Path, recipe: Path) -> None:
    nothing = errata("sweep", recipe, "--only", "nobody/*")
    assert nothing.code == 2
    assert "One is called tiny/none/world/seed0" in nothing.stderr
    assert errata("sweep", "nowhere.toml").code == 2
    both = errata("sweep", recipe, "--ray", "auto", "--devices", "0")
    assert both.code == 2
    assert set(tree(here)) == {"little.toml"}
