"""Data files as people have them, on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from errata.data import sample_of
from tests.cli.conftest import FAST, Errata

EXTRA = "portability_extra"


def sample(name: str, **more: object) -> Path:
    """A sample in the current folder under a name that says nothing; records hold more fields."""
    there = sample_of(name)
    assert there is not None
    records = json.loads(there.read_text(encoding="utf-8"))[:2]
    path = Path("facts.json")
    path.write_text(json.dumps([record | more for record in records]), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["knowedit", "qaedit", "wikibigedit", "locft", "zsre"])
def test_eval_knows_a_file_by_its_fields(name: str, errata: Errata) -> None:
    done = errata("eval", "--editor", "none", "--data", sample(name), "--no-save", "--json")
    assert done.json["data"] == name
    assert done.json["notes"] == [f"taken as {name}, whose fields the file has"]
    assert f"{name}: taken as {name}" in done.stderr


def test_a_wrong_name_brings_the_right_one(errata: Errata) -> None:
    path = sample("knowedit")
    done = errata("eval", "--editor", "none", "--data", f"zsre:{path}", "--no-save")
    assert done.code == 1
    assert f"This looks like knowedit: --data knowedit:{path}" in done.stderr


def test_what_is_not_read_is_said_once_and_kept(
    errata: Errata, caplog: pytest.LogCaptureFixture
) -> None:
    path = sample("zsre", **{EXTRA: {"a": 1}})
    done = errata("eval", "--editor", "none", "--data", f"zsre:{path}", "--out", "run", "--json")
    note = f"2 records have a field {EXTRA!r} that is not read"
    assert caplog.messages == [f"{path}: {note}"]  # a warning, which the terminal shows
    assert EXTRA not in done.stderr
    assert done.json["notes"] == [note]
    assert json.loads(Path("run/summary.json").read_text(encoding="utf-8"))["notes"] == [note]


def test_portability_and_locality_keep_their_names(errata: Errata) -> None:
    words = ("eval", "--editor", "none", "--data", "knowedit:sample", "--no-save", "--json")
    by = errata(*words).json["by"]["name"]
    assert set(by["generality"]) == {"reasoning", "rephrase", "subject_aliasing"}
    assert set(by["locality"]) == {"forgetfulness", "relation_specificity"}
    done = errata(*words, "--fail-under", "generality.reasoning=1")
    assert done.code == 3
    assert "generality.reasoning" in done.stderr
    assert errata(*words, "--fail-under", "generality.portability=1").code == 3


def test_edits_of_a_data_set(errata: Errata, model: str) -> None:
    path = sample("qaedit")
    for given in (path, f"qaedit:{path}", "qaedit:sample[:2]"):
        words = ("edit", "--editor", "rome", "--edits", given, "--model", model, *FAST, "--json")
        done = errata(*words, "--out", f"patch-{str(given)[:3]}", "--force")
        assert done.json["edits"] == 2


def test_a_recipe_names_the_new_data_sets_and_files(errata: Errata) -> None:
    path = sample("knowedit")
    Path("small.toml").write_text(
        'name = "small"\nseeds = [0]\n[models.pocket]\nid = "pocket"\n'
        '[data.know]\nspec = "knowedit:sample"\nlimit = 1\n'
        f'[data.mine]\nspec = "{path}"\nlimit = 1\n[editors.none]\neditor = "none"\n',
        encoding="utf-8",
    )
    done = errata("sweep", "small.toml", "--out", "sweep", "--dry-run")
    assert done.code == 0, done.stderr
