"""SimIE and SPHERE against what published code put out on fixed models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.golden.published import golden, golden_file, input_of, near
from torch import Tensor

from errata.case import Edit
from errata.editors import get_editor
from errata.model.lm import LM
from errata.model.loading import load
from errata.patch import Ridge
from errata.patch.deltas import weight_deltas
from errata.patch.removal import edit_key
from errata.strategies.simie import inputs_of
from errata.strategies.sphere import kept_off, main_directions

KEYS = 1e-9
SOLVE = 1e-11
UPDATE = 1e-6  # as ROME's own: the inverse of C enters
LAYER = 2


@pytest.fixture(scope="module")
def lm(reference: Path, model: str) -> LM:
    return load(str(reference / "models" / model), dtype="float64")


def oriented(delta: Tensor, lm: LM) -> Tensor:
    """Return a stored update as `d x f`."""
    return delta.T if lm.site(LAYER).transposed else delta


def test_simie_reads_the_published_inputs(
    reference: Path, model: str, lm: LM, edits: list[Edit], ids: list[int]
) -> None:
    tensors, _ = golden(reference, "simie_rome6", model)
    for edit, number in zip(edits, ids, strict=True):
        (keys,) = inputs_of(lm, edit, [lm.site(LAYER)])
        near(keys, tensors[f"{number}.keys_all_tokens"], KEYS)


def test_simie_is_the_published_recursion_after_every_edit(
    reference: Path, model: str, lm: LM, edits: list[Edit], ids: list[int]
) -> None:
    """From the saved updates and inputs; the recursion is theirs, the closed form ours."""
    tensors, facts = golden(reference, "simie_rome6", model)
    host = golden(reference, "rome", model)[0]
    path, change = lm.site(LAYER).path, None
    for edit, number in zip(edits, ids, strict=True):
        keys = tensors[f"{number}.keys_all_tokens"]
        gain = keys @ oriented(host[f"{number}.delta_weight"], lm).T
        rows = [(edit_key(edit), keys, gain)]
        change = (
            Ridge.of(path, rows, facts["lambda"], "hand")
            if change is None
            else change.with_rows(rows)
        )
        want = oriented(tensors[f"{number}.weight_minus_W0_after"], lm)
        near(change.B @ change.A, want, SOLVE)


def test_simie_end_to_end(reference: Path, model: str, lm: LM, edits: list[Edit],
                          ids: list[int]) -> None:  # fmt: skip
    """The pair `rome+simie` from text, one edit per turn, in the published setting."""
    tensors, facts = golden(reference, "simie_rome6", model)
    rate = golden(reference, "rome", model)[1]["hparams"]["v_lr"]
    templates = json.loads((reference / "inputs" / "context_templates.json").read_text())["flat"]
    editor = get_editor(
        "rome+simie",
        {
            "layer": LAYER, "contexts": tuple(templates), "lr": rate, "sink_prefix": "off",
            "moments_file": str(input_of(reference, f"moments_{model}.safetensors")),
            "simie_ridge": facts["lambda"],
        },
    )  # fmt: skip
    patch = None
    for edit, number in zip(edits, ids, strict=True):
        patch = editor.edit_one(lm, [edit], patch)
        assert len(patch.changes) == 1
        (delta,) = weight_deltas(lm, patch.changes).values()
        near(delta, tensors[f"{number}.weight_minus_W0_after"], UPDATE)


@pytest.mark.parametrize("strength", [0.5, 0.8])
def test_sphere_projects_as_published(reference: Path, model: str, strength: float) -> None:
    tensors = load_file(
        golden_file(reference, model, f"sphere_eta0.5_alpha{strength}.f64.safetensors")
    )
    U = main_directions(tensors["A"], 0.5)
    projector = torch.eye(len(U), dtype=U.dtype) - strength * U @ U.T
    near(projector, tensors["P"], SOLVE)
    near(kept_off(tensors["update"], U, strength), tensors["projected"], SOLVE)
