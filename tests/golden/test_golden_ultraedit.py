"""UltraEdit against what the authors' code put out on fixed models: two turns of three requests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.golden.published import golden, near, stored
from torch import Tensor

from errata.case import Edit
from errata.editors import get_editor
from errata.editors.base import Editor
from errata.editors.ultraedit.signals import signals_of
from errata.model.lm import LM
from errata.model.loading import load
from errata.nets.lifelong import RowStats, wanted
from errata.patch import LowRank, Patch
from errata.patch.changes.ridge import ridge_factors
from errata.patch.deltas import weight_deltas

TOLERANCE = {"f64": 1e-9, "f32": 1e-3}
"""Relative; the released float32 run solves a system of one row per input (measured here: 1e-13
and 1e-5)."""
SAVED = 1e-11
STATISTICS = {"f64": 1e-10, "f32": 1e-4}


@pytest.fixture(scope="module", params=["f64", "f32"])
def dtype(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def published(reference: Path, model: str, dtype: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return golden(reference, "ultraedit_2x3", model, dtype)


@pytest.fixture(scope="module")
def lm(reference: Path, model: str, dtype: str) -> LM:
    return load(
        str(reference / "models" / model), dtype={"f64": "float64", "f32": "float32"}[dtype]
    )


@pytest.fixture(scope="module")
def editor(lm: LM, published: tuple[dict[str, Tensor], dict[str, Any]]) -> Editor:
    facts = published[1]
    kinds: dict[str, list[int]] = {"layers": [], "gate_layers": [], "up_layers": []}
    for path in facts["modules"]:
        leaf = path.rpartition(".")[2]
        name = {"gate_proj": "gate_layers", "up_proj": "up_layers"}.get(leaf, "layers")
        kinds[name].append(lm.spec.layer_of(path))
    return get_editor(
        "ultraedit",
        {
            **{name: tuple(blocks) for name, blocks in kinds.items()},
            "lr": facts["lr"], "batch_size": facts["mini_batch"], "compat": True, "warmup": "off",
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def turns(
    lm: LM, editor: Editor, edits: list[Edit], published: tuple[dict[str, Tensor], dict[str, Any]]
) -> list[Patch]:
    """The patch after each turn."""
    patches: list[Patch] = []
    for turn in published[1]["turns"]:
        after = patches[-1] if patches else None
        patches.append(editor.edit_one(lm, [edits[i] for i in turn], after))
    return patches


def test_updates_of_both_turns(
    lm: LM, turns: list[Patch], published: tuple[dict[str, Tensor], dict[str, Any]], dtype: str
) -> None:
    tensors, facts = published
    before: tuple[Any, ...] = ()
    for number, patch in enumerate(turns):
        assert patch.changes[: len(before)] == before
        added = weight_deltas(lm, patch.changes[len(before) :])
        assert all(isinstance(change, LowRank) for change in patch.changes)
        for path in facts["modules"]:
            want = tensors[f"turn{number}.{path}.delta_weight"]
            near(added[f"{path}.weight"], want, TOLERANCE[dtype])
        before = patch.changes


def test_statistics_run_on(
    turns: list[Patch], published: tuple[dict[str, Tensor], dict[str, Any]], dtype: str
) -> None:
    tensors, _ = published
    for number, patch in enumerate(turns):
        shapes = {name.split(".")[1] for name in patch.state if name.startswith("ultraedit.")}
        assert shapes
        for shape in shapes:
            pair = str(tuple(int(part) for part in shape.split("x")))
            theirs = f"turn{number}.stats.{pair}"
            ours = {name: patch.state[f"ultraedit.{shape}.{name}"]
                    for name in ("n", "mean", "squares")}  # fmt: skip
            assert int(ours["n"]) == int(tensors[f"{theirs}.n"])
            near(ours["mean"], tensors[f"{theirs}.mean"], STATISTICS[dtype])
            near(ours["squares"], tensors[f"{theirs}.var"], STATISTICS[dtype])


def test_signals_of_the_first_turn(
    lm: LM, editor: Editor, edits: list[Edit], dtype: str,
    published: tuple[dict[str, Tensor], dict[str, Any]],
) -> None:  # fmt: skip
    tensors, facts = published
    rows = [lm.row_of(edits[i]) for i in facts["turns"][0]]
    sites = editor.sites(lm)  # type: ignore[attr-defined]
    found = signals_of(lm, sites, rows)
    tokens = sum(len(row.labels) for row in rows)
    for number, (_, site) in enumerate(sites):
        keys = torch.cat([own[number][0] for own in found])
        grads = torch.cat([own[number][1] for own in found]) / tokens
        for ours, name in ((keys, "keys"), (grads, "values_grad")):
            theirs = tensors[f"turn0.{site.path}.{name}"]
            # the released code sorts its rows by length
            near(ours[ours[:, 0].argsort()], theirs[theirs[:, 0].argsort()], STATISTICS[dtype])


def test_the_dual_form_from_saved_signals(
    published: tuple[dict[str, Tensor], dict[str, Any]], dtype: str
) -> None:
    """Nothing of the model enters: saved keys, gradients and statistics give the saved shift."""
    if dtype == "f32":
        pytest.skip("their float32 solve is compared above")
    tensors, facts = published
    for number in range(2):
        for path in facts["modules"]:
            head = f"turn{number}.{path}"
            keys, grads = tensors[f"{head}.keys"], tensors[f"{head}.values_grad"]
            stats = f"turn{number}.stats.{(keys.shape[1], grads.shape[1])}"
            own = RowStats(
                int(tensors[f"{stats}.n"]), tensors[f"{stats}.mean"], tensors[f"{stats}.var"]
            )
            near(own.deviation(torch.finfo(keys.dtype).eps), tensors[f"{stats}.std"], SAVED)
            gain = wanted(*own.standard(keys, grads, released=True), facts["lr"])
            B, A = ridge_factors(keys, gain, 1.0)
            near(B @ A, stored(tensors[f"{head}.param_shift"], B @ A), SAVED)


def test_logits_after_both_turns(
    lm: LM, edits: list[Edit], turns: list[Patch],
    published: tuple[dict[str, Tensor], dict[str, Any]], dtype: str,
) -> None:  # fmt: skip
    want = published[0]["logits_last_after"]
    rows = [lm.row_of(edit).ids for edit in edits]
    length = max(map(len, rows))
    # the last column of their batch: padded on the right with id 0, rows in an order of their own
    ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    with turns[-1].applied(lm), torch.no_grad():
        found = lm.model(ids, attention_mask=mask).logits[:, -1]
    nearest = [int((row - want).norm(dim=-1).argmin()) for row in found]
    assert sorted(nearest) == list(range(len(want)))
    near(found, want[nearest], TOLERANCE[dtype])
