"""GRACE against what EasyEdit's code produced on a fixed model: a stream of edits and probes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.golden.published import golden, near
from torch import Tensor

from errata.case import Edit
from errata.editors import get_editor
from errata.editors.grace.editor import Grace
from errata.model.lm import LM
from errata.model.loading import load
from errata.model.passes import capture
from errata.patch import Module, Patch

KEYS = 1e-5
RADII = 1e-5
"""Absolute, as the references ask."""
VALUES = 1e-3
LOSSES = 1e-4
LOGITS = 1e-3
"""Relative: the values behind them differ by float32's noise after 20 or 40 steps of Adam."""


@pytest.fixture(scope="module")
def lm(reference: Path, model: str) -> LM:
    return load(str(reference / "models" / model), dtype="float32")


def settings(facts: dict[str, Any], **more: Any) -> dict[str, Any]:
    config = facts["config"]
    (path,) = config["inner_params"]
    (layer,) = map(int, re.findall(r"\d+", path.removesuffix(".weight")))
    return {
        "layer": layer,
        "site": "ffn_in" if "c_fc" in path else "ffn_out",
        "radius": config["eps"],
        "lr": config["edit_lr"],
        "steps": config["n_iter"],
        "start": config["val_init"],
        "replacement": config["replacement"],
        **more,
    }


def stream(facts: dict[str, Any]) -> list[Edit]:
    return [Edit(step["prompt"], step["target_new"].strip()) for step in facts["stream"]]


def codebook(patch: Patch) -> dict[str, Tensor]:
    (change,) = patch.changes
    assert isinstance(change, Module)
    return dict(change.weights)


@pytest.mark.parametrize("compat", [False, True], ids=["exact", "released"])
@pytest.mark.parametrize("item", ["grace_warm", "grace_cold"])
def test_the_stream(item: str, compat: bool, reference: Path, model: str, lm: LM) -> None:
    tensors, facts = golden(reference, item, model, "f32")
    editor = get_editor("grace", settings(facts, compat=compat))
    assert isinstance(editor, Grace)
    if item == "grace_cold":  # the published starts are not recorded: only what follows from keys
        editor = get_editor("grace", settings(facts, compat=compat, steps=1))
    patch = None
    for i, (edit, step) in enumerate(zip(stream(facts), facts["stream"], strict=True)):
        row = lm.row(edit.prompt, edit.target)
        assert [*row.ids, row.labels[-1]] == step["input_ids"][0]
        assert row.prompt_length - 1 == step["key_id"]
        patch = editor.edit_one(lm, [edit], after=patch)
        book = codebook(patch)
        assert len(book["keys"]) == step["n_keys"]
        near(book["keys"], tensors[f"step{i}.keys"], KEYS)
        radii = tensors[f"step{i}.epsilons"].flatten()
        torch.testing.assert_close(book["radii"], radii, rtol=0, atol=RADII)
        if item == "grace_warm":
            near(book["values"], tensors[f"step{i}.values"], VALUES)


def test_the_losses(reference: Path, model: str, lm: LM) -> None:
    _, facts = golden(reference, "grace_warm", model, "f32")
    (edit, *_), (step, *_) = stream(facts), facts["stream"]
    row = lm.row(edit.prompt, edit.target)
    for count in (1, 5, 19):
        editor = get_editor("grace", settings(facts, steps=count))
        with editor.edit_one(lm, [edit]).applied(lm):
            (score,) = lm.score([row])
        assert -sum(score.logprobs) == pytest.approx(step["losses"][count], rel=LOSSES)


@pytest.mark.parametrize("item", ["grace_warm", "grace_cold"])
def test_the_probes(item: str, reference: Path, model: str, lm: LM) -> None:
    tensors, facts = golden(reference, item, model, "f32")
    # one prompt of the stream is edited twice, and the published code carries both edits out
    steps = 1 if item == "grace_cold" else 20
    editor = get_editor("grace", settings(facts, steps=steps, conflicts="replace"))
    patch = editor.edit_one(lm, stream(facts))
    if item == "grace_cold":  # the published values behind keys of our own
        (change,) = patch.changes
        assert isinstance(change, Module)
        weights = {**change.weights, "values": tensors["step5.values"]}
        change = Module(change.path, change.name, change.config, weights, change.where)
        patch = Patch((change,), patch.edits, patch.state, patch.meta)
    (change,) = patch.changes
    assert isinstance(change, Module)
    network: Any = change.build()
    for i, probe in enumerate(facts["probes"]):
        row = lm.row(probe["prompt"])
        batch = lm.batch([row], [0])
        with torch.no_grad():
            (given,), _ = capture(lm, batch, [lm.module(change.path)])
        query = given[0, -1]
        near(query, tensors[f"probe{i}.query"], KEYS)
        distances = (change.weights["keys"] - query).norm(dim=1)
        expected = torch.tensor(probe["distance_to_each_key"])
        torch.testing.assert_close(distances, expected, rtol=KEYS, atol=KEYS)
        assert int(distances.argmin()) == probe["nearest"]
        chosen = int(network.book.chosen(query[None])[0])
        assert chosen == (probe["nearest"] if probe["fires"] else -1)
        at = torch.tensor([[0, len(row.ids) - 1]])
        with torch.no_grad(), patch.applied(lm):
            logits = lm.logits(batch, at)[0]
        assert int(logits.argmax()) == probe["argmax_after"]
        near(logits, tensors[f"probe{i}.logits_last"], LOGITS)
