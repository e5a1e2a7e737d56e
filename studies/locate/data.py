"""The facts of the study: held-out facts of the world, drawn and ordered by a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import Any

from errata.case import Case, Probe
from errata.data import LoadedData, drop_collisions, load_cases
from errata.evaluation.general import world_questions
from errata.evaluation.perplexity import world_sentences

EDITS = 1000
"""Edits of one seed: all of the two held-out splits, filled up from `train`, which teaches nothing
to these editors."""

SEEDS = (0, 1, 2)
GENERAL = 200
"""Untouched facts that are asked at the end of a sequence."""

NAME_GENERAL = "general"
HELD_OUT = ("test", "test_domains")


def records(seed: int, split: str) -> list[Case]:
    """Return one record per fact of a split; another seed has other objects and questions."""
    data = load_cases("world", split=split, options={"variants": len(SEEDS)})
    return [case for case in data.cases if case.id.endswith(f"-{seed}")]


@cache
def fillers() -> list[Case]:
    """Return records of `train` about subjects that no measurement of untouched facts names."""
    asked = " ".join([*world_sentences(), *(q["question"] for q in world_questions(GENERAL))])
    found = load_cases("world", split="train").cases
    found = [case for case in found if (case.edits[0].subject or "") not in asked]
    random.Random("filling up").shuffle(found)
    return found[:EDITS]


def fact_of(case: Case) -> str:
    """Return the fact that a record edits, the same for every seed."""
    return case.id.rpartition("-")[0]


def facts(seed: int) -> list[Case]:
    """Return the records of one seed in its order, the first 200 of them being those of singles.

    Questions whose answer may depend on another edit of the set are left out (locality), so are
    yes/no questions, which pocket cannot answer; hops are not edited beside the fact.
    """
    chosen = [case for split in HELD_OUT for case in records(seed, split)]
    chosen += fillers()[: EDITS - len(chosen)]
    random.Random(f"order {seed}").shuffle(chosen)
    return [_trimmed(case) for case in drop_collisions(chosen)]


def _trimmed(case: Case) -> Case:
    probes = tuple(replace(p, hops=()) for p in case.probes if "SER" not in p.criteria)
    return replace(case, probes=probes, meta=MappingProxyType({"domain": case.meta["domain"]}))


def with_general(cases: Sequence[Case]) -> list[Case]:
    """Return cases of which the last also asks facts that no edit touches."""
    probes = tuple(
        Probe(question["question"], question["choices"][question["answer"]], "locality",
              NAME_GENERAL)
        for question in world_questions(GENERAL)
    )  # fmt: skip
    last = cases[-1]
    return [*cases[:-1], replace(last, probes=(*last.probes, *probes))]


def loaded(cases: Sequence[Case]) -> LoadedData:
    """Return cases as data of the world, for the robustness suite."""
    data = load_cases("world", split="test", limit=1)
    return replace(data, cases=tuple(cases))


def describe(cases: Sequence[Case]) -> list[dict[str, Any]]:
    """Return what a page needs to know of every case."""
    return [
        {
            "fact": fact_of(case),
            "gen": [name for probe in case.of("generality") for name in probe.criteria],
            "loc": [name for probe in case.of("locality") for name in probe.criteria],
        }
        for case in cases
    ]
