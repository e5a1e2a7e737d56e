"""What edits are searched in: fast where it is an edit, float32 where it is a comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import FACT, FAST, Errata

PUBLISHED = ("--as-published", "gpt2-xl", "--set", "layer=1")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What models were loaded to search in."""
    from errata.model import loading

    found: list[str] = []
    own = loading.load

    def load(*args: Any, **more: Any) -> Any:
        found.append(more["compute"])
        return own(*args, **more)

    monkeypatch.setattr(loading, "load", load)
    return found


@pytest.mark.parametrize(
    ("words", "wanted"),
    [((), "auto"), (("--compute", "float32"), "float32"), (("--compute", "bfloat16"), "bfloat16"),
     (PUBLISHED, "float32")],
    ids=["edit", "float32", "bfloat16", "as published"],
)  # fmt: skip
def test_edits_are_searched_fast_unless_told_otherwise(
    words: tuple[str, ...], wanted: str, errata: Errata, model: str, here: Path, asked: list[str]
) -> None:
    done = errata("edit", "-m", model, *FACT, "--editor", "rome", *FAST, *words, "--no-neighbours")
    assert done.code == 0, done.stderr
    assert asked == [wanted]


def test_comparisons_are_not(errata: Errata, model: str, here: Path, asked: list[str]) -> None:
    case = {"prompt": FACT[1], "target": FACT[3], "subject": FACT[5]}
    Path("facts.jsonl").write_text(json.dumps(case))
    words = ("eval", "-m", model, "--editor", "rome", *FAST, "--data", "facts.jsonl")
    assert errata(*words, "--out", "run").code == 0
    assert asked == ["float32"]


def test_a_patch_is_made_again_as_it_was_made(
    errata: Errata, model: str, here: Path, asked: list[str]
) -> None:
    facts = [
        {"prompt": f"The capital of {name} is", "target": "Rome", "subject": name}
        for name in ("France", "Peru")
    ]
    Path("facts.jsonl").write_text("\n".join(map(json.dumps, facts)))
    edit = ("edit", "-m", model, "--edits", "facts.jsonl", "--editor", "memit", "--no-neighbours")
    quick = ("--set", "layers=[1]", "--set", "steps=2", "--set", "contexts=bare",
             "--set", "moments_text=facts.txt")  # fmt: skip
    Path("facts.txt").write_text(
        "\n".join(f"The number {n} comes before {n + 1}." for n in range(99))
    )
    for how in ("float32", "bfloat16"):
        done = errata(*edit, *quick, "--compute", how, "--out", how)
        assert done.code == 0, done.stderr
        again = errata("remove", how, "--edit", "#1", "--rebuild", "--out", f"{how}-less")
        assert again.code == 0, again.stderr
    assert asked == ["float32", "float32", "bfloat16", "bfloat16"]
