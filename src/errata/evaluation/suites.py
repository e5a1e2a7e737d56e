"""Suites: other questions about the edits of a data set, made from it before it is evaluated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from errata.data import LoadedData
from errata.evaluation.protocol import Protocol

if TYPE_CHECKING:
    from errata.model.lm import LM


def perturbed(
    lm: LM, data: LoadedData, protocol: Protocol, options: Mapping[str, Any] | None
) -> LoadedData:
    """Return the cases with the questions of the suite, if one is asked for.

    Args:
        lm: The model; some suites ask it.
        data: The cases. Notes of the result are those that the suite adds.
        protocol: Names the suite and its settings.
        options: Settings with which the built-in world was loaded.
    """
    tests = protocol.tests
    if tests is None:
        return replace(data, notes=())
    from errata.evaluation.beyond import BeyondSettings, beyond_suite
    from errata.evaluation.robustness import robustness_suite

    if isinstance(tests, BeyondSettings):
        made = beyond_suite(lm, data, tests, options=options)
    else:
        made = robustness_suite(lm, data, tests, options=options)
    return replace(made, notes=made.notes[len(data.notes) :])
