"""`errata edit` and `errata verify` say what became of the edits and what else moved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from errata.patch import Patch
from tests.cli.conftest import FACT, Errata

TAKEN = ("--editor", "ft", "--set", "lr=0.05", "--set", "steps=12")
HARD = ("--editor", "ft", "--set", "lr=0.5", "--set", "steps=12")
WEAK = ("--editor", "ft", "--set", "lr=1e-6", "--set", "steps=1")


def plain(text: str) -> str:
    return " ".join(text.split())


def test_what_was_not_taken_says_what_to_try_and_the_exit_code_says_it(
    errata: Errata, model: str
) -> None:
    done = errata("edit", "-m", model, *FACT, *WEAK, "--require")
    assert done.code == 3
    assert "0 of 1 edit taken" in done.stdout
    assert "not taken: Rome" in done.stdout
    assert "tried ft, block 2, 1 step" in done.stdout
    assert "may help: more steps: --set steps=2" in done.stdout
    assert "0 of 12 neighbours moved · general sentences KL" in done.stdout
    assert "--require allows none" in done.stderr
    found = errata("edit", "-m", model, *FACT, *WEAK, "--json").json
    (entry,) = found["report"]["edits"]
    assert entry["taken"] is False
    assert entry["advice"]
    assert found["taken"] == 0


def test_gates_on_what_else_moved(errata: Errata, here: Path, model: str) -> None:
    loud = ("edit", "-m", model, *FACT, *HARD)
    done = errata(*loud, "--fail-over", "neighbours=0.05", "--fail-over", "sentences=0", "--json")
    assert done.code == 3
    assert "gate missed: neighbours is " in done.stderr
    assert "allowed 0.05; sentences is " in done.stderr
    told = done.json["report"]
    assert told["neighbours"]["asked"] == len(told["neighbours"]["answers"]) == 12
    assert told["neighbours"]["moved"] > 0
    assert told["sentences"]["count"] == 50
    assert errata(*loud, "--fail-over", "neighbours=1", "--out", "loud").code == 0
    # the finished patch is asked the same, and says the same
    done = errata("verify", "loud", "--fail-over", "neighbours=0.05", "--json")
    assert done.code == 3
    assert done.json["neighbourhood"]["neighbours"] == told["neighbours"]
    assert done.json["neighbourhood"]["sentences"] == told["sentences"]
    assert told["line"] in plain(errata("verify", "loud").stdout)
    assert told["line"][:30] in plain(errata("show", "loud").stdout)
    assert Patch.load(here / "loud").report.line() == told["line"]


def test_it_can_be_left_out(errata: Errata, model: str) -> None:
    done = errata("edit", "-m", model, *FACT, *TAKEN, "--no-neighbours")
    assert done.code == 0
    assert "neighbours moved" not in done.stdout
    assert "1 of 1 edit taken" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--fail-over", "neighbors=0.1"), "Did you mean 'neighbours'"),
        (("--fail-over", "neighbours=2"), "expected a share from 0 to 1"),
        (("--fail-over", "sentences=x"), "expected a number from 0 on"),
        (("--fail-over", "bare=0", "--no-neighbours"), "leaves out"),
        (("--editor", "rome,ft"), "--editor rome,ft --best"),
        (("--editor", "rome,ft", "--best", "--no-neighbours"), "--best compares"),
        (("--stop-when", "perplexity=2x"), "regime is joint"),
        (("--stop-when", "loss=2", "--regime", "sequential"), "perplexity=Nx"),
        (("--editor", "ft,none", "--best", "--set", "lrr=1"), "has a setting 'lrr'"),
    ],
)
def test_mistakes(errata: Errata, model: str, words: tuple[str, ...], message: str) -> None:
    done = errata("edit", "-m", model, *FACT, *words)
    assert done.code == 2
    assert message in done.stderr.replace("\n", " ")


def test_several_editors_in_turn(errata: Errata, here: Path, model: str) -> None:
    words = ("edit", "-m", model, *FACT, "--editor", "none,ft", "--best", "--set", "lr=0.05")
    done = errata(*words, "--set", "steps=12", "--out", "best")
    assert done.code == 0, done.stderr
    assert "ft ← best" in done.stdout
    patch = Patch.load(here / "best")
    assert patch.meta["editor"] == "ft"
    first, second = patch.report.candidates
    assert (first["editor"], first["taken"], first["chosen"]) == ("none", 0, False)
    assert (second["editor"], second["taken"], second["chosen"]) == ("ft", 1, True)
    found = errata(*words, "--set", "steps=12", "--json").json
    assert [row["editor"] for row in found["report"]["candidates"]] == ["none", "ft"]
    assert found["editor"] == "ft"


def test_earlier_edits_that_are_lost_are_named(errata: Errata, here: Path, model: str) -> None:
    assert errata("edit", "-m", model, *FACT, *TAKEN, "--out", "one").code == 0
    words = ("--prompt", "The capital of Italy is", "--target", "Berlin", "--subject", "Italy")
    done = errata("edit", "-m", model, *words, *HARD, "--after", "one", "--out", "two")
    assert done.code == 0
    assert "1 earlier edit no longer holds: The capital of France is → Rome" in done.stdout
    (lost,) = json.loads((here / "two" / "patch.json").read_text())["aftermath"]["lost"]
    assert lost["target"] == "Rome"
