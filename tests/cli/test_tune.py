"""`errata tune`: what it prints, what it keeps, what it refuses, how it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from errata.searching import budget
from tests.cli.conftest import Errata

QUICK = ("--editor", "ft", "--set", "steps=4", "--minutes", "20")


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "RUNGS", (2, 3))
    monkeypatch.setattr(budget, "LAST", 3)
    monkeypatch.setattr(budget, "HELD", 3)
    monkeypatch.setattr(budget, "LEAST_HELD", 2)
    monkeypatch.setattr(budget, "MOST", 3)


@pytest.fixture
def facts(here: Path) -> Path:
    """Facts that pocket knows, of one prompt, and one of a prompt of its own."""
    from errata.searching.facts import shipped

    path = here / "facts.json"
    records = [
        {"subject": subject, "prompt": f"The capital of {subject} is", "attribute": answer}
        for subject, answer in shipped()[0].facts[:12]
    ]
    records.append({"subject": "Bach", "prompt": "Bach was born in", "attribute": "Eisenach"})
    path.write_text(json.dumps(records))
    return path


def test_a_search_from_its_start_to_an_edit(errata: Errata, facts: Path, small: None) -> None:
    words = ("tune", "pocket", *QUICK, "--facts", facts)
    done = errata(*words)
    assert done.code == 0, done.stderr
    assert "11 of 13 facts known" in done.stdout
    assert "3 for the search, 3 held out" in done.stdout
    assert "Left out, too few known: {} was born in." in done.stdout
    for text in ("written", "spread", "neighbours lost", "rule of thumb", "chosen", "Chosen: "):
        assert text in done.stdout
    assert "Kept: --editor ft takes it for this model" in done.stdout
    assert "\x1b[" not in done.stdout
    assert "tuning ft for pocket, seconds" in done.stderr or done.stderr == ""

    found = errata(*words, "--json").json  # nothing is measured again
    assert found["editor"] == "ft"
    assert found["facts"]["held_out"] == 3
    assert found["facts"]["unknown"] == ["The capital of Sweden is", "Bach was born in"] or (
        "Bach was born in" in found["facts"]["unknown"]
    )
    assert set(found["held_out"]) == {"chosen", "rule_of_thumb"}
    assert "steps" not in found["settings"]

    fact = ("--prompt", "The capital of France is", "--target", "Rome", "--subject", "France")
    plan = errata("edit", *fact, "--editor", "ft", "--dry-run", "--json").json
    assert plan["settings_from"].startswith("tuned for ft on 3 facts")
    assert plan["settings"]["lr"] == found["settings"]["lr"]
    assert plan["layers_from"].startswith("tuned for ft")
    shown = errata("edit", *fact, "--editor", "ft", "--out", "patch")
    assert "Settings: tuned for ft on 3 facts that this model knows" in shown.stdout
    assert "tuned for ft on 3 facts" in errata("show", "patch").stdout
    own = errata("edit", *fact, "--editor", "ft", "--set", "lr=0.123", "--dry-run", "--json").json
    assert own["settings"]["lr"] == 0.123
    cases = ("--data", "world", "--split", "val", "--limit", "1", "--no-save", "--json")
    assert "settings: tuned for ft on 3 facts" in errata("eval", "--editor", "ft", *cases).stderr


def test_the_model_is_an_argument_or_an_option(errata: Errata, here: Path) -> None:
    none = errata("tune", "--editor", "memit")
    assert none.code == 1 or none.code == 2
    assert "no model is named" in none.stderr
    two = errata("tune", "pocket", "--model", "smollm2", "--editor", "memit")
    assert "two models are named" in two.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--editor", "ike"), "no search is made for the settings of ike"),
        (("--editor", "memitt"), "unknown editor 'memitt'"),
        (("--editor", "memit", "--minutes", "0"), "0 minutes are no time"),
        (("--editor", "memit", "--set", "colour=1"), "unknown setting 'colour'"),
        (("--editor", "memit", "--facts", "absent.json"), "absent.json"),
        (("--editor", "memit", "--facts", "broken.json"), "not valid JSON"),
        (("--editor", "memit", "--facts", "few.json"), "knows too few facts of few.json"),
        (("--editor", "ft", "--minutes", "0.001"), "do not suffice"),
    ],
)
def test_mistakes(errata: Errata, here: Path, words: tuple[str, ...], said: str) -> None:
    (here / "broken.json").write_text("{")
    fact = {"subject": "France", "prompt": "The capital of France is", "attribute": "Paris"}
    (here / "few.json").write_text(json.dumps([fact]))
    done = errata("tune", "pocket", *words)
    assert done.code in (1, 2)
    assert said in done.stderr
    assert "Traceback" not in done.stderr
