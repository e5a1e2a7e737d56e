"""Which facts hold: against what the model is asked directly, on a model that knows capitals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

import errata
from errata.errors import DataError
from errata.sheets import Sheet
from errata.sheets.building import build
from errata.sheets.checking import ask, cases_of, missed, rates, stale
from errata.sheets.fact import Asked
from errata.sheets.sheet import Gates

if TYPE_CHECKING:
    from errata.model.lm import LM

Make = Callable[..., Sheet]
HEAD = 'name = "s"\n'

FLOAT32 = 1e-4
"""Probabilities of the same row in passes of other shapes."""


def asked(subject: str) -> str:
    return f"The capital of {subject} is the city named"


def capital(subject: str, target: str, **more: Any) -> dict[str, Any]:
    return {
        "id": subject.lower(),
        "prompt": asked(subject),
        "subject": subject,
        "target": target,
        **more,
    }


FACTS = [
    capital("France", "Rome", holds=["The capital of France is"], keeps=[asked("Germany")]),
    capital("Italy", "Oslo", keeps=[{"prompt": asked("Spain"), "target": "Madrid"}]),
]


@pytest.fixture(scope="module")
def lm() -> LM:
    try:
        return errata.load("pocket")
    except DataError:
        pytest.skip("the pocket model is not in this checkout")


def test_what_the_base_model_says(lm: LM, sheet: Make) -> None:
    found = ask(lm, sheet(FACTS, HEAD).facts)
    assert [(one.fact, one.kind) for one in found] == [
        ("france", "taken"), ("france", "holds"), ("france", "keeps"),
        ("italy", "taken"), ("italy", "keeps"),
    ]  # fmt: skip
    assert all(one.after is None for one in found)
    assert [one.ok for one in found] == [False, False, True, False, True]
    assert found[0].says is not None
    assert found[0].says.startswith("Paris")
    assert found[2].expected == "Berlin"  # in the unedited model's own words
    score = lm.score([lm.row(asked("France"), "Rome")])[0]
    assert found[0].p_before == pytest.approx(math.exp(sum(score.logprobs)), rel=FLOAT32)


def test_a_build_passes(lm: LM, sheet: Make) -> None:
    own = sheet(FACTS, HEAD)
    patch = build(lm, own).patch
    found = ask(lm, own.facts, patch)
    assert all(one.ok for one in found)
    assert rates(found) == {"taken": (2, 2), "holds": (1, 1), "keeps": (2, 2)}
    assert missed(own.gates, found, patch) == []
    assert stale(own, own.facts, patch) is None
    with patch.applied(lm):
        score = lm.score([lm.row(asked("France"), "Rome")])[0]
    assert found[0].p_after == pytest.approx(math.exp(sum(score.logprobs)), rel=FLOAT32)


def test_what_fails_is_named(lm: LM, sheet: Make) -> None:
    own = sheet(FACTS, HEAD)
    patch = build(lm, own).patch
    # France itself as something that must not move, and a paraphrase that does not follow: such a
    # sheet contradicts itself and is refused where it is read
    more = (Asked(asked("Spain")),), (Asked(asked("France")),)
    france = replace(own.facts[0], holds=more[0], keeps=more[1])
    other = replace(own, facts=(france, own.facts[1]))
    found = ask(lm, other.facts, patch)
    assert [one.ok for one in found if one.fact == "france"] == [True, False, False]
    moved = next(one for one in found if one.kind == "keeps" and not one.ok)
    assert (moved.expected, moved.before) == ("Paris", True)
    assert moved.says is not None
    assert moved.says.startswith("Rome")
    said = missed(other.gates, found, patch)
    assert said == [
        "0 of 1 answers follow, required 100%",
        "1 of 2 answers are kept, required 100%",
    ]
    told = stale(other, other.facts, patch)
    assert told == "the sheet has changed since it was built: 1 changed"
    assert missed(Gates(holds=0, keeps=0.5), found, patch) == []


def test_a_gate_on_neighbours(lm: LM, sheet: Make) -> None:
    own = sheet(FACTS, HEAD + "[gates]\nneighbours = 0.5\n")
    built = build(lm, own).patch
    share = built.report.metrics()["neighbours"]
    assert share is not None
    assert missed(own.gates, [], built) == []
    unasked = build(lm, own, look_at=False).patch
    assert "not on record" in missed(own.gates, [], unasked)[0]


def test_a_patch_of_nothing_is_stale(lm: LM, sheet: Make) -> None:
    own = sheet(FACTS, HEAD)
    plain = errata.edit(lm, asked("France"), "Rome", subject="France", ask=False)
    assert stale(own, own.facts, plain) == "the patch was not built of a sheet"


def test_facts_as_cases(sheet: Make) -> None:
    france, italy = cases_of(sheet(FACTS, HEAD).facts)
    assert france.id == "france"
    assert [(p.kind, p.target) for p in france.probes] == [
        ("generality", "Rome"), ("locality", "Rome"),
    ]  # fmt: skip
    assert [(p.kind, p.target) for p in italy.probes] == [("locality", "Madrid")]
