"""Questions count only where the unedited model meets their conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from errata.case import Case, Condition, Edit, Probe
from errata.evaluation import evaluate
from errata.evaluation.conditions import NEW_TOKENS, is_met, met
from errata.evaluation.questions import questions_of
from errata.model.lm import LM
from tests.evaluation.stubs import Planted


def test_every_group_has_to_be_said() -> None:
    both = Condition("Who?", (("Ada", "A. Lund"), ("Bob",)))
    assert is_met(both, "It was A. Lund, with Bob.")
    assert not is_met(both, "It was Ada alone.")
    assert not is_met(both, None)
    never = Condition("Who?", (("Ada",),), holds=False)
    assert is_met(never, "Bob")
    assert not is_met(never, "Ada")


@pytest.fixture
def case(lm: LM) -> Case:
    """One question that counts and one that does not, by what the model says by itself."""
    said = lm.generate(["Anna lives in"], NEW_TOKENS)[0].split()[0]
    knows, not_ = Condition("Anna lives in", ((said,),)), Condition("Anna lives in", (("zzz",),))
    return Case("1", (Edit("Anna lives in", "Rome", "Anna"),), (
        Probe("The home of Anna is", "Rome", "generality", "a", conditions=(knows,)),
        Probe("The house of Anna is", "Rome", "generality", "b", conditions=(knows, not_)),
        Probe("The river is", "Paris", "locality", "c", conditions=(not_,)),
        Probe("The town is", "Paris", "locality", "d"),
    ))  # fmt: skip


def test_questions_that_count(lm: LM, case: Case) -> None:
    kept, left_out = met(lm, {"1": questions_of(lm, case, 5, False)})
    assert [question.name for question in kept["1"]] == ["edit", "a", "d"]
    assert left_out == {"1": 2}
    bare = questions_of(lm, Case("2", case.edits, case.probes[3:]), 5, False)
    assert met(lm, {"2": bare}) == ({"2": bare}, {})


def test_a_run_says_how_many_are_left_out(tmp_path: Path, lm: LM, case: Case) -> None:
    def run(out: str, **more: Any) -> Any:
        return evaluate(lm, Planted(), [case], bootstrap=0, out=tmp_path / out, **more)

    found = run("one")
    (record,) = found.records
    assert [entry["name"] for entry in record["questions"]] == ["edit", "a", "d"]
    assert record["left_out"] == found.summary["left_out"] == 2
    # the edit would have the model say something else; what was known before it counts
    assert run("one", resume=True).summary["left_out"] == 2
    plain = Case("1", case.edits, case.probes[3:])
    assert "left_out" not in evaluate(lm, Planted(), [plain], bootstrap=0).summary
