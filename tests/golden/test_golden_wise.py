"""WISE against what EasyEdit's code produced on fixed models: six single edits, two memories."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.golden.published import golden, input_of, near, requests_of, stored
from torch import Tensor

from errata.case import Edit
from errata.editors import get_editor
from errata.editors.wise.editor import Wise
from errata.editors.wise.route import SideRoute
from errata.editors.wise.sides import ties
from errata.model.lm import LM
from errata.model.loading import load
from errata.model.passes import Pass, capture
from errata.patch import Module, Patch

DELTA = 1e-6
"""Relative, as weight updates are compared: 1e-15 where no norm computes in float32."""
PRINTED = 5.1e-4
"""Losses are recorded with three decimals."""
LOGITS = 1e-6


@pytest.fixture(scope="module")
def lm(reference: Path, model: str) -> LM:
    return load(str(reference / "models" / model), dtype="float64")


def editor_of(reference: Path, facts: dict[str, Any], irrelevant: str) -> Wise:
    config = facts["config"]
    path = facts["layer"]
    (layer,) = map(int, re.findall(r"\d+", path.removesuffix(".weight")))
    inner = "c_fc" in path or "up_proj" in path or "gate_proj" in path
    contexts = json.loads(input_of(reference, "context_templates.json").read_text())["flat"]
    editor = get_editor(
        "wise",
        {
            "layer": layer,
            "site": "ffn_in" if inner else "ffn_out",
            "contexts": tuple(contexts),
            "irrelevant": (irrelevant,),
            "memory_length": 200,
            "lr": config["edit_lr"],
            "steps": config["n_iter"],
            "alpha": config["alpha"],
            "beta": config["beta"],
            "gamma": config["gamma"],
            "act_ratio": config["act_ratio"],
            "mask_ratio": config["mask_ratio"],
            "limit": config["norm_constraint"],
            "save_freq": config["save_freq"],
            "merge_freq": config["merge_freq"],
            "merge": config["merge_alg"],
            "density": config["densities"],
            "compat": True,
        },
    )
    assert isinstance(editor, Wise)
    return editor


@cache
def stream(reference: Path, model: str, lm: LM) -> tuple[list[dict[str, Any]], list[Patch]]:
    """Carry out the six edits, each with its own irrelevant text."""
    _, facts = golden(reference, "wise_2x3", model)
    by_id = {request["case_id"]: request for request in requests_of(reference, model)}
    patch, made = None, []
    for number in facts["order"]:
        one = by_id[number]
        editor = editor_of(
            reference, facts, f"{one['locality_prompt']} {one['locality_ground_truth']}"
        )
        edit = Edit(prompt_of(one), one["target_new"], one["subject"])
        patch = editor.edit_one(lm, [edit], after=patch)
        made.append(patch)
    return [by_id[number] for number in facts["order"]], made


def prompt_of(one: dict[str, Any]) -> str:
    return one.get("prompt_filled") or one["prompt"].replace("{}", one["subject"])


def memories(patch: Patch) -> tuple[Module, Tensor]:
    (change,) = patch.changes
    assert isinstance(change, Module)
    return change, change.weights["deltas"]


def test_what_is_trained_on(reference: Path, model: str, lm: LM) -> None:
    tensors, facts = golden(reference, "wise_2x3", model)
    for one in requests_of(reference, model):
        text = f"{one['locality_prompt']} {one['locality_ground_truth']}"
        editor = editor_of(reference, facts, text)
        asked = editor.rows_of(lm, Edit(prompt_of(one), one["target_new"]), -1)
        ids, labels = (tensors[f"{one['case_id']}.{name}"] for name in ("input_ids", "labels"))
        width = max(len(row.ids) for row in asked.rows)
        assert ids.shape == (len(asked.rows), width)
        for row, given, label in zip(asked.rows, ids.tolist(), labels.tolist(), strict=True):
            assert list(row.ids) == given[width - len(row.ids) :]
            if row is not asked.rows[-1]:
                assert list(row.labels) == [n for n in label if n != -100]


def test_the_copies_and_their_masks(reference: Path, model: str, lm: LM) -> None:
    tensors, facts = golden(reference, "wise_2x3", model)
    requests, patches = stream(reference, model, lm)
    save = facts["config"]["save_freq"]
    for count, (one, patch) in enumerate(zip(requests, patches, strict=True), 1):
        name = f"{one['case_id']}.side_weight_minus_W_after"
        if name not in tensors:  # the copy was merged at once
            continue
        _, deltas = memories(patch)
        delta = stored(deltas[-1], tensors[name])
        near(delta, tensors[name], DELTA)
        mask = tensors[f"{one['case_id']}.mask"].bool()
        moved = float(delta[~mask].abs().max())
        published = facts["max_change_of_masked_out_entries"].get(str(one["case_id"]))
        if published is not None:
            assert moved == pytest.approx(published, rel=1e-6)
        assert (count - 1) % save != 0 or len(deltas) == (count - 1) // save + 1


def test_the_merge(reference: Path, model: str, lm: LM) -> None:
    tensors, facts = golden(reference, "wise_2x3", model)
    _, patches = stream(reference, model, lm)
    (change, deltas), (_, first) = memories(patches[-1]), memories(patches[2])
    assert len(deltas) == facts["memories_after_merge"]
    near(stored(deltas[0], tensors["merged_minus_W"]), tensors["merged_minus_W"], DELTA)
    near(stored(first[0], tensors["memory0"]), tensors["memory0"], DELTA)  # less W, as the other
    acts = [float(memories(patch)[0].weights["acts"][-1]) for patch in (patches[2], patches[-1])]
    expected = [facts["min_act_memory0"], facts["min_act_merged"]]
    assert acts == pytest.approx(expected, rel=DELTA)
    assert change.config["count"] == len(facts["order"])


def test_the_losses(reference: Path, model: str, lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    from errata.editors.wise import editor as module

    seen: list[Any] = []
    original = module.move

    def kept(*args: Any) -> Any:
        seen.append(original(*args))
        return seen[-1]

    monkeypatch.setattr(module, "move", kept)
    stream.__wrapped__(reference, model, lm)
    _, facts = golden(reference, "wise_2x3", model)
    assert len(seen) == len(facts["order"])
    for number, trained in zip(facts["order"], seen, strict=True):
        published = facts["losses"][str(number)]
        assert len(trained.losses) == len(published)
        for found, printed in zip(trained.losses, published, strict=True):
            assert [float(part) for part in found] == pytest.approx(
                [float(part) for part in printed], abs=PRINTED
            )


def test_what_is_asked(reference: Path, model: str, lm: LM) -> None:
    """Answers under the merged memory, where the published code could give any."""
    tensors, _ = golden(reference, "wise_2x3", model)
    requests, patches = stream(reference, model, lm)
    texts = {"edit": prompt_of, "rephrase": lambda one: one["rephrase_prompt"],
             "locality": lambda one: one["locality_prompt"]}  # fmt: skip
    asked = [
        (tensors[name], ask(one))
        for one in requests
        for kind, ask in texts.items()
        if (name := f"ask.{one['case_id']}.{kind}.logits_last") in tensors
    ]
    if not asked:
        pytest.skip("the published code cannot ask this model")
    for expected, text in asked:
        row = lm.row(text)
        batch = lm.batch([row], [0])
        with torch.no_grad(), patches[-1].applied(lm):
            logits = lm.logits(batch, torch.tensor([[0, len(row.ids) - 1]]))[0]
        near(logits, expected.flatten(), LOGITS)


def test_distances_decide(reference: Path, model: str, lm: LM) -> None:
    """The route by its definition: the memory answers from a share of its least distance on."""
    _, facts = golden(reference, "wise_2x3", model)
    requests, patches = stream(reference, model, lm)
    change, deltas = memories(patches[-1])
    network: Any = change.build()
    assert isinstance(network, SideRoute)
    limit = facts["config"]["act_ratio"] * facts["min_act_merged"]
    for one in requests:
        row = lm.row(prompt_of(one))
        batch = lm.batch([row], [0])
        module = lm.module(change.path)
        with torch.no_grad():
            (given,), (output,) = capture(lm, batch, [module], [module])
        act = network.activation
        own = (act(output + given @ deltas[0].T) - act(output)).square().sum(-1).sqrt().mean()
        seen = Pass(batch.input_ids, batch.attention_mask.bool(), torch.tensor([len(row.ids)]))
        assert int(network.chosen(given, output, seen)[0]) == (0 if float(own) > limit else -1)


def test_ties_by_hand() -> None:
    """Entries of opposite sign, of one sign, and too small to be kept."""
    a = torch.tensor([[3.0, 1.0], [-2.0, 0.1]])
    b = torch.tensor([[-1.0, 2.0], [-4.0, 0.2]])
    merged = ties([a, b], 0.75)
    assert merged.tolist() == [[3.0, 1.5], [-3.0, 0.0]]
