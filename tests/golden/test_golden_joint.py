"""MEMIT, EMMET, PMET, AlphaEdit and BLUE, whole, against numbers that the published code produced.

Each editor runs as a user runs it; what it reads and finds on the way is noted and compared too.
Tolerances are those of the folder's own description.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.golden.published import golden, near
from torch import Tensor

from errata.case import Edit
from errata.editors import base_joint, get_editor
from errata.editors.base_joint import JointEditor, Write
from errata.locate.values import Values
from errata.model.lm import LM
from errata.model.loading import load
from errata.patch import Change, Patch
from errata.patch.deltas import weight_deltas

KEYS = 1e-9
VALUES = 1e-7
UPDATE = 1e-6

COMMON: dict[str, Any] = {"clamp": 4.0, "mom2_weight": 10.0, "layers": (1, 2, 3)}
BATCHES = {
    "memit_batch6": ("memit", COMMON),
    "memit_single0": ("memit", COMMON),
    "emmet_batch6": ("emmet", {"clamp": 4.0, "mom2_weight": 100.0, "layers": (2,)}),
    "emmet_single0": ("emmet", {"clamp": 4.0, "mom2_weight": 100.0, "layers": (2,)}),
    "pmet_batch6": ("pmet", {**COMMON, "compat": True}),
    "pmet_single0": ("pmet", {**COMMON, "compat": True}),
    "blue_memit_batch6": ("memit+blue", COMMON),
}


@dataclass
class Seen:
    """What an editor found on the way."""

    writes: list[Write] = field(default_factory=list)
    values: list[Values] = field(default_factory=list)


@pytest.fixture(scope="module")
def lm(reference: Path, model: str) -> LM:
    return load(str(reference / "models" / model), dtype="float64")


@pytest.fixture(scope="module")
def given(reference: Path, model: str) -> dict[str, Any]:
    inputs = reference / "inputs"
    return {
        "contexts": json.loads((inputs / "context_templates.json").read_text())["flat"],
        "moments_file": str(inputs / f"moments_{model}.safetensors"),
    }


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found = Seen()
    optimise = base_joint.optimise_values

    def values(*args: Any, **kwargs: Any) -> Values:
        found.values.append(optimise(*args, **kwargs))
        return found.values[-1]

    original = JointEditor.change

    def change(self: JointEditor, lm: LM, write: Write) -> Change:
        found.writes.append(write)
        return original(self, lm, write)

    monkeypatch.setattr(base_joint, "optimise_values", values)
    monkeypatch.setattr(JointEditor, "change", change)
    return found


def deltas(lm: LM, patch: Patch, start: int = 0) -> dict[str, Tensor]:
    return weight_deltas(lm, patch.changes[start:])


@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_is_the_published_one(
    name: str,
    reference: Path,
    model: str,
    lm: LM,
    edits: list[Edit],
    ids: list[int],
    given: dict[str, Any],
    seen: Seen,
) -> None:
    tensors, facts = golden(reference, name, model)
    editor, settings = BATCHES[name]
    group = edits[:1] if name.endswith("single0") else edits
    rate = facts["hparams"]["v_lr"]
    patch = get_editor(editor, {**given, **settings, "lr": rate}).edit_one(lm, group)

    blue = editor.endswith("+blue")
    layers = [1, 3] if blue else list(settings["layers"])
    ids = ids[: len(group)]
    for write, layer in zip(seen.writes, layers, strict=True):
        assert write.layer == layer
        prefix = "" if name.startswith("emmet") else f"layer{layer}."
        suffix = f".layer{layer}" if blue else ""
        prefix = "" if blue else prefix
        near(write.keys, tensors[f"{prefix}keys{suffix}"], KEYS)
        if f"{prefix}resid{suffix}" in tensors:
            near(write.residual.T, tensors[f"{prefix}resid{suffix}"], VALUES)
        delta = deltas(lm, patch)[lm.site(layer).weight]
        near(delta, tensors[f"{prefix}delta_weight{suffix}"], UPDATE)
    for number, values in enumerate(seen.values):
        if blue:
            z = torch.stack([tensors[f"z.layer{layers[number]}.{case}"] for case in ids])
            near(values.target("block"), z, VALUES)
        elif name.startswith("pmet"):
            near(values.target("ffn"), tensors["z_mlp"], VALUES)
            near(values.target("attn"), tensors["z_attn"], VALUES)
        else:
            near(values.target("block"), tensors["z"], VALUES)
            near(values.delta["block"], tensors["z_delta"], VALUES)
    if not blue:
        published = facts["requests"]
        assert seen.values[0].updates == [r["adam_updates"] for r in published]
        for mine, theirs in zip(seen.values[0].losses, published, strict=True):
            wanted = theirs["loss_at_each_backward"]
            assert mine[: len(wanted)] == pytest.approx(wanted, rel=VALUES)


@pytest.mark.parametrize("name", ["alphaedit_2x3", "blue_alphaedit_2x3"])
def test_two_batches_of_alphaedit_are_the_published_ones(
    name: str,
    reference: Path,
    model: str,
    lm: LM,
    edits: list[Edit],
    ids: list[int],
    given: dict[str, Any],
    seen: Seen,
) -> None:
    tensors, facts = golden(reference, name, model)
    blue = name.startswith("blue")
    layers = (1, 3) if blue else (1, 2, 3)
    editor = get_editor(
        "alphaedit+blue" if blue else "alphaedit",
        {
            **given, "lr": facts["hparams"]["v_lr"], "clamp": 4.0, "layers": (1, 2, 3), "l2": 0.1,
            "nullspace_threshold": facts["hparams"]["nullspace_threshold"],
        },
    )  # fmt: skip
    ranks = dict(zip(layers, facts["null_space_rank"], strict=True))
    patch: Patch | None = None
    for batch, group in enumerate((edits[:3], edits[3:])):
        seen.writes.clear()
        seen.values.clear()
        done = 0 if patch is None else len(patch.changes)
        patch = editor.edit_one(lm, group, after=patch)
        assert len(seen.values) == (2 if blue else 1)
        aims: Sequence[int] = layers if blue else (3,)
        for values, aim in zip(seen.values, aims, strict=True):
            z = torch.stack(
                [
                    tensors[f"batch{batch}.z.layer{aim}.{case}"]
                    for case in ids[3 * batch : 3 * batch + 3]
                ]
            )
            near(values.target("block"), z, UPDATE)
        for write, layer in zip(seen.writes, layers, strict=True):
            near(write.keys, tensors[f"batch{batch}.keys_before.layer{layer}"], UPDATE)
            delta = deltas(lm, patch, done)[lm.site(layer).weight]
            near(delta, tensors[f"batch{batch}.delta_weight.layer{layer}"], UPDATE)
            keys = patch.state[f"memory.{layer}.keys"]
            near(keys[-3:], tensors[f"batch{batch}.keys_after.layer{layer}"], UPDATE)
            near(keys.T @ keys, tensors[f"batch{batch}.cache.layer{layer}"], UPDATE)
            assert patch.state[f"null_space_rank.{layer}"] == ranks[layer]
