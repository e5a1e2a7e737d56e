"""`errata remove` and `errata replace`: what is left is what would have been made without."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from errata import Patch
from tests.cli.conftest import FAST, Errata
from tests.patch.test_ridge_changes import same

NAMES = ("France", "Italy", "Berlin", "Peru")
FREE = ("--editor", "ultraedit", "--set", "order=free", "--set", "layers=1")


def sheet(path: str, names: tuple[str, ...]) -> Path:
    lines = [
        {"id": f"e{name}", "prompt": f"The capital of {name} is", "target": "Rome and Berlin",
         "subject": name}
        for name in names
    ]  # fmt: skip
    Path(path).write_text("\n".join(map(json.dumps, lines)))
    return Path(path)


@pytest.fixture
def free(errata: Errata, model: str) -> Path:
    facts = sheet("facts.jsonl", NAMES)
    done = errata("edit", "-m", model, "--edits", facts, *FREE, "--out", "free", "--no-neighbours")
    assert done.code == 0, done.stderr
    return Path("free")


@pytest.mark.parametrize("name", ["eItaly", "#2", "The capital of Italy is"])
def test_what_is_left_was_never_with_it(name: str, errata: Errata, model: str, free: Path) -> None:
    found = errata("remove", free, "--edit", name, "--out", "left", "--json").json
    assert [edit["id"] for edit in found["removed"]] == ["eItaly"]
    assert (found["edits"], found["rebuilt"]) == (3, False)
    less = sheet("less.jsonl", ("France", "Berlin", "Peru"))
    words = ("edit", "-m", model, "--edits", less, *FREE, "--out", "never", "--no-neighbours")
    assert errata(*words).code == 0
    left, never = Patch.load("left"), Patch.load("never")
    same(left, never)
    assert {**left.meta, "made": 0} == {**never.meta, "made": 0}
    assert errata("verify", "left").code == 0
    assert errata("show", "left").code == 0


def test_several_at_once_in_plain_words(errata: Errata, free: Path) -> None:
    done = errata("remove", free, "--edit", "eItaly", "--edit", "#4", "--out", "left")
    assert done.code == 0
    for word in ("The capital of Italy is", "The capital of Peru is", "2 edits", "verify left"):
        assert word in done.stdout


def test_mistakes(errata: Errata, free: Path) -> None:
    done = errata("remove", free, "--edit", "eItalie", "--out", "left")
    assert (done.code, "eItaly" in done.stderr) == (1, True)
    assert errata("remove", free, "--edit", "#9", "--out", "left").code == 1
    assert errata("remove", free, "--edit", "#1", "--batch", "2", "--out", "left").code == 2
    assert errata("remove", "nowhere", "--edit", "#1", "--out", "left").code == 1
    assert errata("remove", free, "--edit", "#1", "--out", free).code == 1
    assert errata("replace", free, "--edit", "#1", "--target", " ", "--out", "left").code == 1
    done = errata("replace", free, "--edit", "#1", "-t", "x", "--subject", "y", "--out", "left")
    assert done.code == 2
    assert not Path("left").exists()


def test_what_depends_on_order_is_made_again(errata: Errata, model: str, here: Path) -> None:
    facts = sheet("facts.jsonl", ("France", "Italy", "Berlin"))
    how = (*FAST, "--editor", "rome", "--no-neighbours")
    assert errata("edit", "-m", model, "--edits", facts, *how, "--out", "all").code == 0
    done = errata("remove", "all", "--edit", "eItaly", "--out", "left")
    assert done.code == 1
    for word in ("rome", "depend on the edits before", "--rebuild"):
        assert word in done.stderr
    found = errata("remove", "all", "--edit", "eItaly", "--rebuild", "--out", "left", "--json").json
    assert (found["edits"], found["rebuilt"]) == (2, True)
    less = sheet("less.jsonl", ("France", "Berlin"))
    assert errata("edit", "-m", model, "--edits", less, *how, "--out", "never").code == 0
    same(Patch.load("left"), Patch.load("never"))
    # in turns, as a sequence was made
    words = ("remove", "all", "--edit", "eItaly", "--rebuild", "--batch", "1", "--out", "turns")
    assert errata(*words).code == 0


def test_replaced_it_is_as_if_made_with_the_new_answer(
    errata: Errata, model: str, free: Path
) -> None:
    words = ("replace", free, "--edit", "eItaly", "--target", "Oslo or Rome", "--out", "newer")
    found = errata(*words, "--json").json
    assert found["put_in"]["target"] == "Oslo or Rome"
    patch = Patch.load("newer")
    assert [edit.target for edit in patch.edits].count("Oslo or Rome") == 1
    assert len(patch.edits) == 4
    again = errata("replace", free, "--edit", "eItaly", "-t", "Oslo or Rome", "--rebuild",
                   "--out", "again")  # fmt: skip
    assert again.code == 0
    edits = [edit.target for edit in Patch.load("again").edits]
    assert edits.index("Oslo or Rome") == 1


def test_composed_patches_say_so(errata: Errata, model: str, free: Path) -> None:
    facts = sheet("other.jsonl", ("Peru", "Chile"))
    words = ("edit", "-m", model, "--edits", facts, *FREE, "--out", "b", "--no-neighbours")
    assert errata(*words).code == 0
    done = errata("compose", free, "b", "--allow-contradictions", "--out", "both")
    assert done.code == 0
    # what each part holds can still be taken out of it
    assert errata("remove", "both", "--edit", "eFrance", "--out", "left").code == 0
    done = errata("remove", "both", "--edit", "eFrance", "--rebuild", "--out", "left2")
    assert (done.code, "composed" in done.stderr) == (1, True)
