"""A search on a real model: a rule of thumb that hardly writes, and what is better."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import errata
from errata.model import named
from errata.searching import budget, course
from errata.store.machine import speed_of

pytestmark = [pytest.mark.real, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def lm() -> errata.LM:
    there = (named.cache_root() / "models" / "smollm2" / "config.json").is_file()
    if not there and os.environ.get("ERRATA_FETCH") != "1":
        pytest.skip("SmolLM2 has not been fetched: make test-real")
    fast = speed_of(torch.bfloat16, torch.device("cpu")) >= 1
    return errata.load("smollm2", dtype="bfloat16" if fast else "float32")


def test_a_search_finds_what_writes(
    lm: errata.LM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from errata.editors.memit import Memit

    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path))  # what is found here is for no other test
    monkeypatch.setattr(budget, "RUNGS", (2, 4))
    monkeypatch.setattr(budget, "LAST", 4)
    monkeypatch.setattr(budget, "HELD", 4)
    monkeypatch.setattr(budget, "LEAST_HELD", 4)
    monkeypatch.setattr(budget, "MOST", 3)
    monkeypatch.setattr(course, "_PERFECT", 0.0)  # no neighbours of the best
    monkeypatch.setattr(Memit, "small", {})  # the published strength is the rule of thumb
    before = lm.fingerprint
    found = errata.tune(lm, "memit", minutes=60, moments_text="world", contexts="bare")
    assert lm.fingerprint == before
    known = {name: count for name, (count, _) in found.deal.known.items()}
    assert known["capital"] > 12
    assert found.held.written == 1.0 > found.held_rule.written
    assert found.held.ns_lost <= 0.1
    edit = found.deal.held[0].edit
    patch = errata.edit(
        lm, edit, editor="memit", moments_text="world", contexts="bare", neighbourhood=False
    )
    assert patch.report.taken == 1
    assert patch.meta["settings_from"].startswith("tuned for memit on 4 facts")
