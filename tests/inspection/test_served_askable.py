"""What a server cannot be asked is left to the model itself."""

from __future__ import annotations

from errata.case import Case, Condition, Edit, Probe
from errata.inspection.served import askable, questions_of


def test_comparisons_and_conditions_are_not_asked() -> None:
    plain = Probe("The home is", "Rome", "generality", "rephrase")
    choice = Probe("Oslo or Rome? The home is", "Rome", "choice", "edit", choices=("Oslo",))
    known = Probe("The age is", "3", "locality", "age", conditions=(Condition("?", (("3",),)),))
    case = Case("1", (Edit("The house is", "Rome"),), (plain, choice, known))
    asked = [question.asked.prompt for question in questions_of([case], None)]
    assert asked == ["The house is", "The home is"]
    assert [askable(probe) for probe in case.probes] == [True, False, False]
