"""Fine-tuning against what UniEdit's code produced on a fixed model (float32)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.golden.published import golden, input_of

from errata.case import Edit
from errata.editors import get_editor
from errata.editors.ft import FineTuning
from errata.model.lm import LM
from errata.model.loading import load
from errata.patch import Dense, Patch

DELTA = 1e-3
"""Relative, as the references ask: Adam's first steps are sign-like (measured 3e-6)."""
COSINE = 1 - 1e-6
NORM = 1e-4

DATA = {
    "counterfact_val": "records_counterfact_val_150.json",
    "zsre_1k": "records_zsre_150.json",
    "proto_world": "proto_world_60.json",
}
ITEMS = [f"{kind}_{data}" for kind in ("ft", "ft_mid") for data in DATA]


@pytest.fixture(scope="module")
def lm(reference: Path, model: str) -> LM:
    return load(str(reference / "models" / model), dtype="float32")


def edits_of(records: list[dict[str, Any]]) -> list[Edit]:
    if "src" in records[0]:
        # two spaces before the target: the suffix ends in one and the target brings its own
        return [Edit(f"{r['src']} The answer is: ", f" {r['alt']}") for r in records]
    return [Edit(r["prompt"], r["target_new"]) for r in records]


@pytest.mark.parametrize("item", ITEMS)
def test_deltas(item: str, reference: Path, model: str, lm: LM) -> None:
    tensors, facts = golden(reference, f"uniedit_eval_{item}", model, "f32")
    config = facts["config"]
    data = DATA[item.removeprefix("ft_mid_").removeprefix("ft_")]
    records = json.loads(input_of(reference, data).read_text())
    edits = edits_of(records)[: len(tensors["delta_norms"])]
    editor = get_editor(
        "ft",
        {
            "layers": config["layers"],
            "steps": config["num_steps"],
            "lr": config["lr"],
            "weight_decay": config["weight_decay"],
            "optimizer": "adamw",
            # the published filter of names takes it along
            "bias": any(name.endswith(".bias") for name in facts["trained_parameters"]),
        },
    )
    patches = editor.edit(lm, [[edit] for edit in edits])
    for i, patch in enumerate(patches):
        deltas = {c.path: c.delta for c in patch.changes if isinstance(c, Dense)}
        assert sorted(deltas) == sorted(facts["trained_parameters"])
        norm = torch.stack([delta.norm() for delta in deltas.values()]).norm()
        assert float(norm) == pytest.approx(float(tensors["delta_norms"][i]), rel=NORM)
        for name, delta in deltas.items():
            if (published := tensors.get(f"{i}.{name}")) is not None:
                assert float((delta - published).norm() / published.norm()) <= DELTA
                cosine = torch.cosine_similarity(delta.ravel(), published.ravel(), dim=0)
                assert float(cosine) >= COSINE


def test_the_losses_are_the_published_ones(reference: Path, model: str, lm: LM) -> None:
    _, facts = golden(reference, "uniedit_eval_ft_mid_counterfact_val", model, "f32")
    records = json.loads(input_of(reference, DATA["counterfact_val"]).read_text())
    edits = edits_of(records)[:5]
    config = facts["config"]
    for steps in range(config["num_steps"]):
        bias = any(name.endswith(".bias") for name in facts["trained_parameters"])
        settings = {"layers": config["layers"], "lr": config["lr"], "optimizer": "adamw"}
        settings["bias"] = bias
        patches: list[Patch] = [Patch()] * len(edits)
        if steps:
            editor = get_editor("ft", {**settings, "steps": steps})
            assert isinstance(editor, FineTuning)
            patches = editor.edit(lm, [[edit] for edit in edits])
        for i, (edit, patch) in enumerate(zip(edits, patches, strict=True)):
            with patch.applied(lm):
                (score,) = lm.score([lm.row(edit.prompt, edit.target)])
            loss = -sum(score.logprobs) / len(score.logprobs)
            assert loss == pytest.approx(facts["loss_per_step"][i][steps], rel=1e-5)
