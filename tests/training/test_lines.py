"""Questions in one line of tokens give the losses and gradients of padded ones."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.locate.samples import build
from tests.nets.samples import small, untrained
from tests.training import samples
from tests.training.samples import groups, model
from tests.training.test_loss import gradients, objective

import errata
from errata.editors import get_editor
from errata.errors import RunError
from errata.model import multiplying, packing
from errata.model.lm import LM
from errata.model.multiplying import fast_layers, fast_products
from errata.model.packing import packs_exactly
from errata.training import TrainConfig
from errata.training.groups import make_groups
from errata.training.objective import Objective
from errata.training.prepared import Prepared
from errata.training.sampler import noise_for

SAME = 1e-10
"""Relative, in float64: sums in another order."""


@pytest.mark.parametrize("name", ["qwen3", "llama"])
@pytest.mark.parametrize("memory_gb", [1.0, 0.0])
def test_losses_and_gradients_are_those_of_padded_rows(name: str, memory_gb: float) -> None:
    lm = build(name, "float64")
    assert packs_exactly(lm)
    some = groups(lm)[:6]
    made = objective(lm, some, memory_gb)
    network = untrained(small("ibke"), lm)
    noise = noise_for(0, 1, some, range(6))
    old, before = gradients(made, network, some, noise)
    made.packed = True
    with fast_products(lm, "plain", packed=True), fast_layers(network, "plain"):
        new, after = gradients(made, network, some, noise)
    for key, value in old.items():
        assert new[key] == pytest.approx(value, rel=SAME), key
    assert after.keys() == before.keys()
    largest = max(float(g.abs().max()) for g in before.values())
    for key, gradient in after.items():
        assert float((gradient - before[key]).abs().max()) <= SAME * largest, key


def test_losses_and_gradients_on_the_pocket_model() -> None:
    """Some of its blocks look back two tokens only: no line, but no padding is multiplied."""
    lm = errata.load("pocket", dtype="float64")
    cases = errata.load_cases("world", "train", limit=4).cases
    some = make_groups(lm, cases, hops="all")
    editor: Any = get_editor("ibke", {"layers": (3, 4, 5), "d_m": 24, "token_path": 16})
    made = Objective(lm, Prepared(lm, editor.sites(lm), some), TrainConfig())
    network = untrained(editor, lm)
    old, before = gradients(made, network, some)
    assert not packs_exactly(lm)
    made.packed = True
    with fast_products(lm, "plain", packed=True):
        new, after = gradients(made, network, some)
    assert new["total"] == pytest.approx(old["total"], rel=SAME)
    largest = max(float(g.abs().max()) for g in before.values())
    for key, gradient in after.items():
        assert float((gradient - before[key]).abs().max()) <= SAME * largest, key


def test_a_group_that_has_no_question_of_its_own_in_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = model("float64")
    some = groups(lm)[:4]
    made = objective(lm, some)
    network = untrained(small("ibke"), lm)
    old, before = gradients(made, network, some)
    made.packed = True
    monkeypatch.setattr(lm, "max_tokens", 24)  # several lines, each with some of the groups
    new, after = gradients(made, network, some)
    assert new["total"] == pytest.approx(old["total"], rel=SAME)
    for key, gradient in after.items():
        torch.testing.assert_close(gradient, before[key], rtol=1e-8, atol=1e-12)


def afresh() -> LM:
    """Return the tiny model as nobody has asked it anything: what is found out of a large one is
    kept with the object, and the shared one's would be multiplied like that in every later test."""
    return LM(model().model, model().tokenizer, name=model().name)


@pytest.fixture
def economical(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the tiny model be trained like a large one."""
    monkeypatch.setattr(packing, "LARGE", 0)
    monkeypatch.setattr(multiplying, "LARGE", 0)
    monkeypatch.setattr(multiplying, "speed_of_onednn", lambda device: 2.0)


class Stop(Exception):
    """Something that ends a run from outside."""


def test_a_run_goes_on_bit_for_bit(tmp_path: Path, economical: None) -> None:
    def stop(what: str, done: int, total: int) -> None:
        if what == "training" and done == 3:
            raise Stop

    whole = samples.run(tmp_path / "whole", lm=afresh())
    with pytest.raises(Stop):
        samples.run(tmp_path / "part", lm=afresh(), report=stop)
    samples.run(tmp_path / "part", lm=afresh(), resume=True)
    samples.assert_same_run(whole.folder, tmp_path / "part")


def test_a_run_ends_near_one_by_the_long_way(
    tmp_path: Path, economical: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = samples.run(tmp_path / "short", lm=afresh())
    monkeypatch.setattr(packing, "LARGE", sys.maxsize)
    monkeypatch.setattr(multiplying, "LARGE", sys.maxsize)
    long = samples.run(tmp_path / "long", lm=afresh())
    assert short.summary["best"] == pytest.approx(long.summary["best"], rel=1e-3)


def test_a_run_in_bfloat16_is_not_gone_on_with_in_float32(tmp_path: Path) -> None:
    lm = afresh()
    lm.compute = "bfloat16"
    samples.run(tmp_path / "run", lm=lm)
    with pytest.raises(RunError, match=r"compute was .bfloat16., is None"):
        samples.run(tmp_path / "run", resume=True)
