"""Estimates: each part by hand, and what they have to do when a recipe grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from errata.sweeping.backbones import backbone
from errata.sweeping.check import check
from errata.sweeping.estimate import Estimate, estimate, startup, total, usual_tflops
from errata.sweeping.recipe import Hardware, ModelEntry, recipe_from
from errata.sweeping.units import expand
from tests.sweeping.conftest import small

SIZES = {"parameters": 1e9, "layers": 10, "hidden": 100, "inner": 400}
EDIT, GENERALITY, LOCALITY = 10.0, 20.0, 30.0


def estimates(limit: int | None = None, steps: int | None = None, **more: Any) -> list[Estimate]:
    document = small(
        models={"m": {"id": "somewhere/model", "dtype": "float16", **SIZES}},
        data={"d": {"spec": "world", "limit": 100, "tokens": [EDIT, GENERALITY, LOCALITY]}},
        hardware={"device_tflops": {"float16": 2.0, "float32": 1.0}, "startup_seconds": 5.0},
        **more,
    )
    recipe = recipe_from(document)
    units = expand(recipe, Path("/out"))
    settings = check(recipe, units, files=False)
    return [estimate(unit, recipe, settings[unit.name], limit, steps) for unit in units]


def test_a_cell_without_edits() -> None:
    (found,) = estimates()
    assert found.memory["weights"] == 2e9
    assert found.memory["networks"] == found.memory["factors"] == found.memory["editor"] == 0
    # each text once, locality questions of the unedited model too
    tokens = EDIT + GENERALITY + 2 * LOCALITY
    assert found.seconds == pytest.approx(100 * tokens * 2 * 1e9 / 2e12 + 5)


def test_the_editors_own_steps_count() -> None:
    few, many = (
        estimates(editors={"ft": {"editor": "ft", "settings": {"steps": steps, "layers": [1]}}})[0]
        for steps in (10, 30)
    )
    assert few.seconds is not None
    assert many.seconds is not None
    # forward, backward and the gradient of the weights
    assert many.seconds - few.seconds == pytest.approx(100 * 20 * 3 * EDIT * 2 * 1e9 / 2e12)


def test_a_training_and_its_cell() -> None:
    row = {
        "editor": "ibke",
        "settings": {"layers": [4, 5], "d_m": 64},
        "train": {"data": ["world"], "steps": 1000, "options": {"batch": 8}},
    }
    training, cell = estimates(editors={"ibke": row})
    assert training.network == cell.network > 0
    assert training.memory["networks"] == 16 * training.network
    assert cell.memory["networks"] == 4 * cell.network
    # h and u of 8 edits on two matrices in float32, and of their gradients
    assert training.memory["factors"] == 2 * 8 * EDIT * 500 * 2 * 4
    # of the ten blocks a gradient passes those from block 4 on
    passes = (EDIT + GENERALITY) * 1.6 + LOCALITY * 2.2
    flops = 1000 * 8 * (passes * 2e9 + EDIT * 6 * training.network)
    assert training.seconds == pytest.approx(flops / 2e12 + 5)
    shorter, _ = estimates(editors={"ibke": row}, steps=100)
    assert shorter.seconds == pytest.approx(flops / 10 / 2e12 + 5)


def test_fewer_cases_take_less_time_and_the_same_memory() -> None:
    (whole,), (part,) = estimates(), estimates(limit=10)
    assert whole.seconds is not None
    assert part.seconds is not None
    assert (part.seconds - 5) * 10 == pytest.approx(whole.seconds - 5)
    assert part.bytes == whole.bytes


def test_cases_that_are_not_asked_cost_their_edits() -> None:
    row = {"ft": {"editor": "ft", "settings": {"steps": 10, "layers": [1]}}}
    (whole,), (some,), (none,) = (
        estimates(editors=row, protocol={"regime": "sequential:100", "ask": ask})
        for ask in (0, 20, 500)
    )
    assert whole.seconds is not None
    assert some.seconds is not None
    questions = EDIT + GENERALITY + 2 * LOCALITY
    assert whole.seconds - some.seconds == pytest.approx(80 * questions * 2 * 1e9 / 2e12)
    assert none.seconds == whole.seconds


def test_unknown_sizes_are_not_guessed() -> None:
    recipe = recipe_from(small(models={"m": {"id": "somewhere/model", "layers": 3}}))
    (unit,) = expand(recipe, Path("/out"))
    found = estimate(unit, recipe, check(recipe, [unit], files=False)[unit.name], None, None)
    assert found.bytes is None
    assert found.seconds is None
    assert total({"a": found}, 1) is None


def test_total_is_bounded_by_the_longest_unit() -> None:
    units = {name: Estimate({}, seconds) for name, seconds in (("a", 10.0), ("b", 2.0))}
    assert total(units, 1) == (12.0, 12.0)
    assert total(units, 4) == (12.0, 10.0)


class TestWithoutHardware:
    def test_a_cpu_is_measured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        usual_tflops.cache_clear()
        own = usual_tflops(None)
        assert 1e-4 < own < 5  # no CPU does 10 TFLOP/s
        recipe = recipe_from(small(data={"d": {"spec": "world", "limit": 100}}))
        (unit,) = expand(recipe, Path("/out"))
        found = estimate(unit, recipe, check(recipe, [unit], files=False)[unit.name], None, None)
        assert found.seconds is not None
        assert 5 < found.seconds < 60  # the pocket model is loaded in seconds

    def test_a_gpu_is_a_round_figure(self) -> None:
        assert usual_tflops("cuda") == 10
        model = backbone(ModelEntry(id="gpt2-xl", device="cuda"))
        assert model is not None
        assert startup(Hardware(), ModelEntry(id="gpt2-xl", device="cuda"), model) == 60
