"""A few records, small networks and short runs that the tests of training share."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tests.locate.samples import build
from tests.nets.samples import small

from errata.api import train
from errata.case import Case, Edit, Probe
from errata.editors.base_trained import TrainedEditor
from errata.model.lm import LM
from errata.training import TrainConfig
from errata.training.checkpoint import FILE
from errata.training.groups import Group, make_groups
from errata.training.loop import Trained

TOWNS = ("Paris", "Rome", "Berlin", "Oslo", "Lima")
PEOPLE = ("Anna", "Danielle", "Otto", "Maria")

QUICK: dict[str, Any] = {
    "steps": 6,
    "batch": 4,
    "warmup": 2,
    "validate_every": 2,
    "save_every": 2,
    "log_every": 1,
    "validation_groups": 4,
    "calibration_edits": 4,
}


def case(number: int) -> Case:
    """Return one record: an edit, a rephrasing, a question over a hop, and two others."""
    person, town = PEOPLE[number % 4], TOWNS[number % 5]
    other = TOWNS[(number + 2) % 5]
    hop = Edit(f"The mayor of {town} is", PEOPLE[(number + 1) % 4], subject=town)
    return Case(
        str(number),
        (Edit(f"{person} {number} lives in", town, subject=person),),
        (
            Probe(f"The home of {person} {number} is", town, "generality", "rephrase"),
            Probe(
                f"The mayor where {person} {number} lives is",
                hop.target,
                "generality",
                "multi_hop",
                criteria=("MH",),
                hops=(hop,),
            ),
            Probe(f"The river of {other} flows through", "the town", "locality", "other"),
            Probe("The capital of France is", "Paris", "locality", "other"),
        ),
    )


CASES = [case(number) for number in range(16)]


def without(kind: str, cases: Sequence[Case] = CASES) -> list[Case]:
    """Return the records without questions of a kind."""
    return [
        dataclasses.replace(c, probes=tuple(p for p in c.probes if p.kind != kind)) for c in cases
    ]


def model(dtype: str = "float32") -> LM:
    return build("qwen3", dtype)


def groups(lm: LM, cases: Sequence[Case] = CASES, **settings: Any) -> list[Group]:
    return make_groups(lm, cases, **{"hops": "all", **settings})


def run(
    out: Path, editor: str | TrainedEditor = "ibke", cases: Any = CASES, **given: Any
) -> Trained:
    """Train for a few steps; settings of the loop and arguments of `train` by name."""
    known = TrainConfig.model_fields
    config = TrainConfig(**{**QUICK, **{k: v for k, v in given.items() if k in known}})
    rest = {k: v for k, v in given.items() if k not in known}
    lm = rest.pop("lm", None) or model()
    chosen = small(editor) if isinstance(editor, str) else editor
    return train(lm, chosen, cases, out, config=config, **rest)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return the networks at the last checkpoint, with optimiser and normalisers."""
    return load_file(folder / FILE)


def saved_step(folder: Path) -> int:
    """Return the step of the last checkpoint."""
    with safe_open(folder / FILE, "pt") as handle:
        return json.loads((handle.metadata() or {})["about"])["progress"]["step"]


def assert_same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for key, tensor in left.items():
        assert torch.equal(tensor, right[key]), key


def assert_same_run(left: Path, right: Path) -> None:
    """Same last checkpoint and same best networks, bit for bit."""
    assert_same(tensors(left), tensors(right))
    name = "best/model.safetensors"
    assert_same(load_file(left / name), load_file(right / name))
