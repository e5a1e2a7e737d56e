from __future__ import annotations

from functools import cache

import pytest

from errata.case import Case, Edit, Probe
from errata.model.lm import LM
from tests.tiny_models import gpt2, llama, tiny_tokenizer


@cache
def build(kind: str) -> LM:
    model = {"gpt2": gpt2, "llama": llama}[kind]().double()
    return LM(model, tiny_tokenizer(), name=f"tiny-{kind}")


@pytest.fixture
def lm() -> LM:
    return build("gpt2")


@pytest.fixture
def llama_lm() -> LM:
    return build("llama")


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path_factory.mktemp("cache")))


PLACES = ["Berlin", "Paris", "Rome", "the town", "the river"]
PEOPLE = ["Anna", "Danielle", "the mayor", "Anna of Rome", "the flows", "Paris"]


def make_case(number: int, *, hops: tuple[Edit, ...] = (), bad: bool = False) -> Case:
    """A case with questions of several sub-metrics, criteria and lengths."""
    who, where = PEOPLE[number % len(PEOPLE)], PLACES[number % len(PLACES)]
    prompt = f"{who} lives number {number} in"
    return Case(
        id=f"case-{number}",
        edits=(Edit("FAIL " + prompt if bad else prompt, where, who, id=f"case-{number}"),),
        probes=(
            Probe(f"The city of {who} is", where, "generality", "rephrase", ("Rep",)),
            Probe(f"The home of {who}, as we know, is", f"{where} and {who}", "generality",
                  "chain", ("MH", "RR"), hops=hops),
            Probe("The mother tongue of Danielle is", "French", "locality", "far", ("W/O",)),
            Probe(f"{PEOPLE[(number + 1) % len(PEOPLE)]} works for", "the town of Paris",
                  "locality", "near", ("SS",), top_k=2),
        ),
        meta={"domain": "odd" if number % 2 else "even"},
    )  # fmt: skip


@pytest.fixture
def cases() -> list[Case]:
    hop = Edit("The river of the town is", "Paris")
    return [make_case(i, hops=(hop,) if i % 3 == 0 else ()) for i in range(7)]


@pytest.fixture
def flat() -> list[Case]:
    """The same without hops."""
    return [make_case(i) for i in range(7)]
