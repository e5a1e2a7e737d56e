"""`errata sheet`: from an empty folder to a checked patch, and what is said where it fails."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from errata import Patch
from errata.sheets.changelog import changelog
from errata.store import folders
from tests.cli.conftest import Errata, tree
from tests.sheets.conftest import fact, toml, write_sheet
from tests.stub_server import Stub, served

NAMES = ("France", "Italy", "Berlin")


@pytest.fixture
def sheet(here: Path) -> Path:
    """A sheet whose gates a random model passes."""
    gates = "[gates]\ntaken = 0\nholds = 0\nkeeps = 0\n"
    return write_sheet(here / "sheet", [fact(name) for name in NAMES], toml(more=gates))


def built(errata: Errata, model: str, folder: Path, *words: str) -> dict[str, Any]:
    done = errata("sheet", "build", folder, "-m", model, "--json", *words)
    assert done.code == 0, done.stderr
    return done.json


def test_init(errata: Errata, here: Path) -> None:
    done = errata("sheet", "init", "new", "--model", "smollm2", "--editor", "rome, ft")
    assert done.code == 0
    assert "errata sheet build new" in done.stdout
    assert 'editor = ["rome", "ft"]' in Path("new/errata.toml").read_text()
    before = tree(Path("new"))
    done = errata("sheet", "init", "new")
    assert (done.code, "not overwritten" in done.stderr) == (2, True)
    assert tree(Path("new")) == before


def test_build_again(errata: Errata, model: str, sheet: Path) -> None:
    found = built(errata, model, sheet)
    assert (found["edited"], found["kept"]) == (["france", "italy", "berlin"], [])
    first = Patch.load(sheet / "patch")
    write_sheet(sheet, [fact("France", "Paris"), fact("Italy"), fact("Berlin")], None)
    (sheet / "errata.toml").write_text(toml())
    found = built(errata, model, sheet)  # an earlier build is replaced
    assert (found["edited"], found["kept"]) == (["france"], ["italy", "berlin"])
    assert [e.target for e in Patch.load(sheet / "patch").edits] == ["Paris", "Rome", "Rome"]
    assert [e.target for e in first.edits] == ["Rome"] * 3
    done = errata("sheet", "build", sheet, "-m", model)
    assert done.code == 0
    assert "3 facts (0 edited, 3 as before)" in done.stdout


def test_patch_and_changelog_take_their_place_at_once(
    errata: Errata, model: str, sheet: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that was killed right behind its patch has noted what it changed, and only once."""
    built(errata, model, sheet)
    write_sheet(sheet, [fact("France", "Paris"), fact("Italy"), fact("Berlin")], None)
    put = folders._put

    def killed(new: Path, folder: Path, *how: Any) -> None:
        put(new, folder, *how)
        if folder.name == "patch":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(folders, "_put", killed)
        assert errata("sheet", "build", sheet, "-m", model).code == 130
    for _ in range(2):
        build = Patch.load(sheet / "patch")
        told = [str(entry) for entry in changelog(sheet / "patch", build)]
        assert told == ["first build: 3 facts", "1 changed (france)"]
        built(errata, model, sheet)


def test_another_patch_is_not_replaced(
    errata: Errata, model: str, sheet: Path, patch: Path
) -> None:
    before = tree(patch)
    done = errata("sheet", "build", sheet, "-m", model, "--out", patch)
    assert (done.code, "already holds" in done.stderr) == (1, True)
    assert tree(patch) == before


@pytest.mark.parametrize("out", ["sheet", "sheet/facts"])
def test_a_build_is_not_mixed_with_the_sheet(
    errata: Errata, model: str, sheet: Path, out: str
) -> None:
    before = tree(sheet)
    for words in (("build", sheet), ("remove", sheet, "italy")):
        done = errata("sheet", *words, "-m", model, "--out", out, "--force")
        assert (done.code, "is a folder of the sheet itself" in done.stderr) == (2, True)
    assert tree(sheet) == before


def test_a_damaged_build_is_replaced_when_told_to(errata: Errata, model: str, sheet: Path) -> None:
    built(errata, model, sheet)
    path = sheet / "patch" / "patch.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    done = errata("sheet", "build", sheet, "-m", model)
    assert (done.code, "--force" in done.stderr) == (1, True)
    built(errata, model, sheet, "--force")
    assert path.read_bytes() == whole


def test_show_tells_the_facts(errata: Errata, model: str, sheet: Path) -> None:
    lines = [fact("France", owner="geography", reason="as agreed"), fact("Italy")]
    write_sheet(sheet, lines, toml())
    built(errata, model, sheet)
    said = errata("show", sheet / "patch").stdout
    assert "2 facts of the sheet:" in said
    assert "france · by rome · geography · as agreed" in said
    assert errata("show", sheet / "patch", "--json").json["sheet"]["name"] == "sheet"


def test_check_fails_where_a_gate_is_missed(errata: Errata, model: str, sheet: Path) -> None:
    built(errata, model, sheet)
    done = errata("sheet", "check", sheet, "-m", model)
    assert done.code == 0, done.stderr
    write_sheet(sheet, [fact(name, keeps=[f"{name} is"]) for name in NAMES], toml())
    built(errata, model, sheet)
    done = errata("sheet", "check", sheet, "-m", model, "--json")
    missed = [one for one in done.json["results"] if one["kind"] == "taken" and not one["ok"]]
    assert done.code == (3 if missed else 0)
    write_sheet(sheet, [fact(name, holds=["The river flows"]) for name in NAMES], toml())
    built(errata, model, sheet)
    done = errata("sheet", "check", sheet, "-m", model)
    assert (done.code, "of 3 answers follow, required 100%" in done.stderr) == (3, True)
    assert "✗ france: The river flows → Rome  does not follow, says" in done.stdout


def test_check_fails_where_the_sheet_has_changed(errata: Errata, model: str, sheet: Path) -> None:
    done = errata("sheet", "check", sheet, "-m", model)
    assert (done.code, f"errata sheet build {sheet}" in done.stderr) == (1, True)
    built(errata, model, sheet)
    with (sheet / "facts" / "a.jsonl").open("a") as file:
        file.write(json.dumps(fact("Peru")) + "\n")
    done = errata("sheet", "check", sheet, "-m", model)
    assert done.code == 3
    assert "the sheet has changed since it was built: +1 fact" in done.stderr


def test_days(errata: Errata, model: str, sheet: Path) -> None:
    lines = [fact("France", valid_until="2026-06-30"), fact("Italy", valid_from="2020-01-01")]
    write_sheet(sheet, lines, toml())
    done = errata("sheet", "build", sheet, "-m", model, "--json", "--at", "2026-07-01")
    assert done.json["left_out"]
    assert done.json["facts"] == 1
    assert "france left out: it ended on 2026-06-30" in done.stderr
    assert built(errata, model, sheet, "--at", "2026-06-30")["facts"] == 2
    assert errata("sheet", "build", sheet, "-m", model, "--at", "1.1.2026").code == 2
    done = errata("sheet", "build", sheet, "-m", model, "--at", "2019-01-01")
    assert done.code == 0  # France only: Italy has not begun
    write_sheet(sheet, lines[:1], toml())
    done = errata("sheet", "build", sheet, "-m", model, "--at", "2999-01-01")
    assert (done.code, "no fact of" in done.stderr) == (1, True)


def test_what_was_built_leaves_as_any_patch(errata: Errata, model: str, sheet: Path) -> None:
    built(errata, model, sheet)
    done = errata("export", sheet / "patch", "-m", model, "--to", "lora", "--out", "adapter")
    assert done.code == 0, done.stderr
    assert errata("verify", sheet / "patch", "-m", model, "--no-neighbours").code == 0
    record = json.loads(Path("adapter/errata.json").read_text())
    assert [edit["id"] for edit in record["edits"]] == ["france", "italy", "berlin"]


def test_status(errata: Errata, model: str, sheet: Path) -> None:
    write_sheet(sheet, [fact("France"), fact("Italy", valid_until="2020-01-01")], toml())
    done = errata("sheet", "status", sheet, "-m", model)
    assert done.code == 0, done.stderr
    assert "no build yet" in done.stderr
    built(errata, model, sheet)
    found = errata("sheet", "status", sheet, "-m", model, "--json").json
    assert [(row["id"], row["state"]) for row in found["facts"]] == [
        ("france", "valid"), ("italy", "ended"),
    ]  # fmt: skip
    assert found["facts"][0]["patched"] in (True, False)
    assert found["facts"][1]["patched"] is None
    done = errata("sheet", "status", sheet, "-m", model)
    assert "ended" in done.stdout


def test_diff_of_builds(errata: Errata, model: str, sheet: Path) -> None:
    built(errata, model, sheet)
    shutil.copytree(sheet / "patch", "old")
    path = Path("old/patch.json")
    document = json.loads(path.read_text())
    around = {"subject": "Germany", "before": "Berlin", "after": "Bonn"}
    neighbours = [{"prompt": "The capital of Germany is", **around, "moved": False}]
    document["aftermath"]["neighbours"] = neighbours
    path.write_text(json.dumps(document))
    shutil.copytree("old", "new")
    neighbours[0]["moved"] = True
    document["meta"]["sheet"]["facts"][0]["target"] = "Oslo"
    Path("new/patch.json").write_text(json.dumps(document))
    done = errata("sheet", "diff", "old", "new")
    assert done.stdout.splitlines() == [
        "1 changed; Germany moved", "~ france: target 'Rome' → 'Oslo'",
    ]  # fmt: skip
    assert "Germany as before" in errata("sheet", "diff", "new", "old").stdout
    neighbours[0]["prompt"] = "The capital of Germany is the city of"  # the old one did not ask it
    document["meta"]["sheet"]["facts"][0]["target"] = "Rome"
    shutil.copytree("new", "other")
    Path("other/patch.json").write_text(json.dumps(document))
    said = errata("sheet", "diff", "old", "other").stdout
    assert said == "the same facts; of what was not asked before, Germany moved\n"
    assert errata("sheet", "diff", "old", "old").stdout == "the same facts\n"
    found = errata("sheet", "diff", sheet, "new", "--json").json
    assert found["changed"] == {"france": {"target": {"before": "Rome", "after": "Oslo"}}}
    assert found["neighbours_compared"] is False


def test_a_patch_that_is_no_build_is_refused(errata: Errata, sheet: Path, patch: Path) -> None:
    done = errata("sheet", "diff", sheet, patch)
    assert (done.code, "was not built of a sheet" in done.stderr) == (1, True)


def test_remove(errata: Errata, model: str, sheet: Path) -> None:
    built(errata, model, sheet)
    found = errata("sheet", "remove", sheet, "italy", "-m", model, "--json").json
    assert (found["removed"], found["edited"]) == ("italy", [])
    write_sheet(Path("never"), [fact("France"), fact("Berlin")], toml())
    built(errata, model, Path("never"), "--fresh")
    left, never = sheet / "patch", Path("never/patch")
    name = "patch.safetensors"
    assert (left / name).read_bytes() == (never / name).read_bytes()
    done = errata("sheet", "remove", sheet, "itly", "-m", model)
    assert (done.code, "no fact 'itly'" in done.stderr) == (1, True)
    done = errata("sheet", "remove", sheet, "france", "--no-build")
    assert (done.code, "Out of" in done.stdout) == (0, True)
    before = tree(sheet)
    done = errata("sheet", "remove", sheet, "berlin", "-m", model)
    assert (done.code, "--no-build" in done.stderr) == (1, True)
    assert tree(sheet) == before


def test_mistakes_are_found_before_a_model_is_loaded(errata: Errata, sheet: Path) -> None:
    nowhere = ("-m", "no-such-model")
    write_sheet(sheet, [fact("France")], 'name = "s"\neditor = "grace"\n')
    done = errata("sheet", "build", sheet, *nowhere)
    assert (done.code, "cannot be built with grace" in done.stderr) == (2, True)
    write_sheet(sheet, [{"id": "x", "prompt": "Peru is", "target": "y"}], toml())
    done = errata("sheet", "build", sheet, *nowhere)
    assert (done.code, "a.jsonl: line 1" in done.stderr) == (1, True)
    assert errata("sheet", "build", "nowhere", *nowhere).code == 2
    assert not (sheet / "patch").exists()


BASE = {f"The capital of {name} is": " Paris" for name in NAMES}
EDITED = {q: (" Rome", [(" Rome", math.log(0.9))]) for q in BASE}


@pytest.mark.parametrize(("answers", "code"), [(EDITED, 0), (BASE, 3)])
def test_check_of_a_server(
    errata: Errata, model: str, sheet: Path, answers: dict[str, Any], code: int
) -> None:
    built(errata, model, sheet)
    path = sheet / "patch" / "patch.json"
    document = json.loads(path.read_text())
    document["aftermath"] = {}
    path.write_text(json.dumps(document))
    stub = Stub(lambda name, question: answers[question], ["corrected"])
    with served(stub) as url:
        done = errata("sheet", "check", sheet, "--endpoint", url, "--retries", "0")
    assert done.code == code, done.stderr


def test_status_of_a_server(errata: Errata, sheet: Path) -> None:
    keeps = [{"prompt": "Berlin lies in", "target": "Germany"}, "Anna lives in"]
    lines = [
        fact("France", holds=["Paris? No:"], keeps=keeps, owner="me"),
        fact("Italy", "Oslo"),
        fact("Peru", valid_until="2020-01-01"),
    ]
    write_sheet(sheet, lines, toml())
    asked = "The capital of France is"
    base = {
        asked: " Paris", "The capital of Italy is": " Rome", "Paris? No:": " Paris",
        "Berlin lies in": " Germany", "Anna lives in": " Oslo or so",
    }  # fmt: skip
    edited = {**base, asked: " Rome", "Paris? No:": " Rome.", "Anna lives in": " Rome"}
    models = {"edited": edited, "base": base}
    stub = Stub(lambda name, question: models[name][question], list(models))
    words = ("sheet", "status", sheet, "--served-model", "edited", "--retries", "0")
    with served(stub) as url:  # no model is named that could be loaded, and there is no build
        found = errata(*words, "--endpoint", url, "--json").json
        assert [(row["id"], row["base"], row["served"]) for row in found["facts"]] == [
            ("france", None, True), ("italy", None, False), ("peru", None, None),
        ]  # fmt: skip
        france = found["facts"][0]
        assert (france["right_beside"], france["asked_beside"]) == (2, 2)  # by its own target
        assert (found["served_model"], found["not_answered"]) == ("edited", {})
        words = (*words, "--endpoint", url, "--endpoint-base", "base")
        found = errata(*words, "--json").json
        assert [row["base"] for row in found["facts"]] == [False, False, None]
        france = found["facts"][0]
        assert (france["right_beside"], france["asked_beside"]) == (2, 3)  # Anna has moved
        done = errata(*words)
    assert done.code == 0, done.stderr
    assert "served" in done.stdout
    assert [line.split()[-4:] for line in done.stdout.splitlines() if " Oslo " in line] == [
        ["no", "no", "–", "valid"]
    ]


def test_status_says_what_a_server_did_not_answer(errata: Errata, sheet: Path) -> None:
    stub = Stub(lambda name, question: " Rome", ["edited"])
    stub.before = lambda path, body: (404, {"error": "gone"}, {}) if "Italy" in str(body) else None
    with served(stub) as url:
        done = errata("sheet", "status", sheet, "--endpoint", url, "--retries", "0")
    assert done.code == 0, done.stderr
    assert "1 question not answered" in done.stderr
    assert "answers 404: gone" in done.stderr
    done = errata("sheet", "status", sheet, "--served-model", "edited")
    assert (done.code, "is for --endpoint" in done.stderr) == (2, True)
