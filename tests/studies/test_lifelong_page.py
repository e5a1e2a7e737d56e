"""docs/results-lifelong.md is what the committed results give; runs are kept without texts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from studies.common import results
from studies.lifelong import ability, page, plan, removal
from studies.lifelong import run as study
from studies.lifelong.compact import result_of
from studies.lifelong.page import PAGE, SCORE, WILD, bands_of, overall, page_text, rate
from studies.lifelong.run import RESULTS, keep

import errata
from errata.data import load_cases
from errata.patch import Patch
from errata.patch.deltas import weight_deltas

SECRET = "Hulkland"


def test_page_is_what_the_results_give() -> None:
    assert PAGE.read_text(encoding="utf-8") == page_text(), "run: make results"


def test_cells_have_names_of_their_own() -> None:
    names = [cell.name for cell in plan.cells()]
    assert len(set(names)) == len(names)
    assert set(results.names(RESULTS)) <= set(names)


@pytest.mark.parametrize("name", results.names(RESULTS))
def test_rates_are_those_of_the_records(name: str) -> None:
    found = results.read(RESULTS, name)
    assert found is not None
    summary = found["summary"]
    assert overall(found, "r", SCORE) == pytest.approx(summary["reliability"], abs=1e-3)
    assert overall(found, "r", WILD) == pytest.approx(summary["wild"]["reliability"], abs=1e-3)
    assert results.path_of(RESULTS, name).stat().st_size < 300_000
    for record in found["records"]:  # ids and numbers, no text of the data
        assert set(record) <= {"id", "age", "asked", "failed"}
        for question in record.get("asked", ()):
            assert len(question[0]) == 1
            assert all(part is None or isinstance(part, float) for part in question[1:])


def record(number: int, score: float, wild: float) -> dict[str, Any]:
    def entry(kind: str) -> dict[str, Any]:
        return {"kind": kind, "name": kind, "score": score, "top1": score, "prompt": SECRET,
                "target": SECRET, "wild": {"score": wild, "text": SECRET}}  # fmt: skip

    return {"id": str(number), "age": 9 - number, "error": None, "edits": 1,
            "questions": [entry("reliability"), entry("locality")]}  # fmt: skip


def test_ages_and_rates_by_hand() -> None:
    records = [record(n, float(n >= 5), float(n >= 8)) for n in range(10)]
    records.append({"id": "10", "edits": 1, "error": f"cannot edit {SECRET}", "questions": []})
    found = result_of(records, {"seconds": {"edit": 2.0}}, 3.0)
    assert SECRET not in json.dumps(found)
    assert bands_of(found) == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    young = rate(found, "r", WILD, lambda own: (own.get("age") or 0) <= 1 and "asked" in own)
    assert (young.mean, young.low, young.high) == (100.0, 100.0, 100.0)
    assert rate(found, "r", SCORE).mean == 50.0
    assert rate(found, "l", WILD).mean == 20.0


def test_a_finished_run_is_taken_as_a_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pocket = errata.load("pocket")
    short = plan.Sequence("t", "a", "pocket", "world", 4, 2, ("none",))
    monkeypatch.setitem(plan.SEQUENCES, "short", short)
    monkeypatch.setattr(study, "RESULTS", tmp_path / "results")
    cell = plan.Cell("short", "none")
    data = load_cases("world", None, 4, seed=0)

    def run(out: str, **more: Any) -> Path:
        settings: dict[str, Any] = {"regime": "sequential:4", "batch": 2, "bootstrap": 0} | more
        errata.evaluate(pocket, "none", data, protocol="wild", new_tokens=4,
                        perplexity=None, out=tmp_path / out, **settings)  # fmt: skip
        return tmp_path / out

    with pytest.raises(SystemExit, match="is no run of short-none"):
        keep(cell, run("other", batch=1))
    keep(cell, run("right"))
    found = results.read(tmp_path / "results", "short-none")
    assert found is not None
    assert found["cpu"] is None
    assert len(found["records"]) == 4
    kept = gzip.decompress(results.path_of(tmp_path / "results", "short-none").read_bytes())
    for case in data.cases:
        assert case.edits[0].prompt.encode() not in kept


@pytest.mark.parametrize("name", list(removal.FORMS))
def test_one_edit_is_taken_back_and_the_rest_asked(name: str, tmp_path: Path) -> None:
    pocket = errata.load("pocket")
    edits = [case.edits[0] for case in load_cases("world", None, 8, seed=0).cases]
    found = removal.take_back(pocket, edits, name, tmp_path)
    free = name == "free"
    assert (found["way"], found["edits"]) == ("taken out" if free else "made again", 8)
    assert found.get("apart") == (0.0 if free else None)
    fact = found["fact"]
    assert fact["unedited"] < 1 == fact["with"]
    assert fact["without"] < 1
    assert found["same"] <= found["asked"] == 7
    assert found == removal.take_back(pocket, edits, name, tmp_path)  # from what was kept
    told = page._back("x", found)
    assert ("equal to the bit" in told[3]) is free


def test_patches_of_other_facts_are_refused(tmp_path: Path) -> None:
    pocket = errata.load("pocket")
    edits = [case.edits[0] for case in load_cases("world", None, 2, seed=0).cases]
    patch = errata.edit(pocket, edits[:1], editor="ft", steps=1)
    with pytest.raises(SystemExit, match="no patch of these 2 edits"):
        removal.take_back(pocket, edits, "turns", tmp_path, patch.save(tmp_path / "one"))


class Counted:
    """Stands for general ability: how many edits a patch holds, and the editor's turns."""

    def __init__(self) -> None:
        self.asked: list[Patch | None] = []

    def measure(self, patch: Patch | None) -> dict[str, float]:
        self.asked.append(patch)
        return {"sst2/acc": 0.0 if patch is None else float(len(patch.edits))}


def test_general_ability_is_measured_before_along_and_at_the_end() -> None:
    lm = errata.load("pocket")
    edits = [case.edits[0] for case in load_cases("world", "test", 7, seed=0).cases]
    editor = errata.get_editor("ultraedit", {"conflicts": "keep"}, model="pocket")
    general = Counted()
    found = ability.measured(lm, editor, edits, cast(Any, general), every=4, turn=2)
    assert [point["edits"] for point in found["points"]] == [0, 4, 7]
    assert [point["sst2/acc"] for point in found["points"]] == [0.0, 4.0, 7.0]
    assert general.asked[0] is None
    # the same turns in one run of the editor: what was measured is the sequence itself
    patch = None
    for first in range(0, len(edits), 2):
        patch = editor.edit_one(lm, edits[first : first + 2], patch)
    last = general.asked[-1]
    assert patch is not None
    assert last is not None
    own, whole = (weight_deltas(lm, made.changes) for made in (last, patch))
    assert own.keys() == whole.keys()
    assert all(torch.equal(own[name], whole[name]) for name in own)
