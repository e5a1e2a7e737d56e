"""ROME against numbers that the published code produced on a fixed model, in float64.

Tolerances are those of the folder's own description: what the published code and another
implementation can agree on, with an inverse of a moment of condition 1e5 in between.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.golden.published import golden, input_of, near, stored
from torch import Tensor

from errata.case import Edit
from errata.data.corpus import Corpus
from errata.editors import get_editor
from errata.locate import solve
from errata.locate.contexts import Contexts, given_contexts
from errata.locate.keys import EditKeys, edit_keys, subject_rows
from errata.locate.moments import count_moments
from errata.locate.rows import edit_rows
from errata.locate.values import Values, ValueSettings, optimise_values
from errata.model.lm import LM
from errata.model.loading import load
from errata.patch import LowRank

KEYS = 1e-9
VALUES = 1e-7
UPDATE = 1e-6
SOLVE = 1e-10
MOMENT = 1e-5  # the reference moments are float32 sums
LAYER = 2


@pytest.fixture(scope="module")
def lm(reference: Path, model: str) -> LM:
    return load(str(reference / "models" / model), dtype="float64")


@pytest.fixture(scope="module")
def templates(reference: Path) -> list[str]:
    return json.loads((reference / "inputs" / "context_templates.json").read_text())["flat"]


@pytest.fixture(scope="module")
def contexts(templates: list[str]) -> Contexts:
    return given_contexts(templates)


@pytest.fixture(scope="module")
def keys(lm: LM, edits: list[Edit], contexts: Contexts) -> EditKeys:
    return edit_keys(lm, edits, contexts, [LAYER])[LAYER]


@pytest.fixture(scope="module")
def values(reference: Path, model: str, lm: LM, edits: list[Edit], contexts: Contexts) -> Values:
    rate = golden(reference, "rome", model)[1]["hparams"]["v_lr"]
    return optimise_values(lm, edits, contexts, LAYER, ValueSettings(lr=rate))


@pytest.fixture(scope="module")
def factor(reference: Path, model: str) -> solve.Factor:
    moments = load_file(input_of(reference, f"moments_{model}.safetensors"))
    return solve.factor(moments[f"mom2.{LAYER}"])


def test_rows_are_the_published_ones(
    reference: Path, model: str, lm: LM, edits: list[Edit], contexts: Contexts
) -> None:
    published = json.loads(input_of(reference, f"tokenised_{model}.json").read_text())
    for edit, record in zip(edits, published, strict=True):
        *rows, essence = edit_rows(lm, edit, contexts)
        for row, want in zip(rows, record["rows"], strict=True):
            assert list(row.ids) == want["input_ids"]
            assert row.subject_last == want["subject_last_index"]
            assert list(row.positions) == want["label_positions"]
            assert list(row.labels) == want["labels"]
        assert list(essence.ids) == record["essence"]["input_ids"]
        assert essence.subject_last == record["essence"]["subject_last_index"]


def test_keys_and_values_before_the_edit(
    reference: Path,
    model: str,
    keys: EditKeys,
    lm: LM,
    edits: list[Edit],
    ids: list[int],
    contexts: Contexts,
) -> None:
    tensors, _ = golden(reference, "rome", model)
    assert len(subject_rows(lm, edits, contexts)) == len(edits) * len(contexts)
    for i, name in enumerate(ids):
        near(keys.mean_key[i], tensors[f"{name}.keys_per_context"].mean(0), KEYS)
        near(keys.key[i], tensors[f"{name}.k_clean"], KEYS)
        near(keys.value[i], tensors[f"{name}.v_cur"], KEYS)


def test_target_values(reference: Path, model: str, values: Values, ids: list[int]) -> None:
    tensors, facts = golden(reference, "rome", model)
    for i, name in enumerate(ids):
        record = facts["requests"][i]
        assert values.updates[i] == record["adam_updates"]
        *before, _ = values.losses[i]
        assert before == pytest.approx(record["loss_at_each_backward"], rel=VALUES)
        assert values.losses[i] == pytest.approx(record["loss_printed_each_forward"], abs=6e-4)
        near(values.delta["ffn"][i], tensors[f"{name}.delta"], VALUES)
        near(values.target("ffn")[i], tensors[f"{name}.v_star"], VALUES)


@pytest.mark.parametrize("item", ["rome", "rome_nomom2"])
def test_the_update(
    item: str,
    reference: Path,
    model: str,
    lm: LM,
    edits: list[Edit],
    ids: list[int],
    templates: list[str],
) -> None:
    tensors, facts = golden(reference, item, model)
    hparams = facts["hparams"]
    editor = get_editor(
        "rome",
        {
            "layer": hparams["layers"][0],
            "steps": hparams["v_num_grad_steps"],
            "lr": hparams["v_lr"],
            "weight_decay": hparams["v_weight_decay"],
            "clamp": hparams["clamp_norm_factor"],
            "kl_factor": hparams["kl_factor"],
            "mom2_adjustment": hparams["mom2_adjustment"],
            "contexts": templates,
            "moments_file": str(input_of(reference, f"moments_{model}.safetensors")),
        },
    )
    for name, patch in zip(ids, editor.edit(lm, [[edit] for edit in edits]), strict=True):
        (change,) = patch.changes
        assert isinstance(change, LowRank)
        expected = tensors[f"{name}.delta_weight"]
        near(stored(change.B @ change.A, expected), expected, UPDATE)


@pytest.mark.parametrize("item", ["rome", "rome_nomom2"])
def test_only_the_solution(
    item: str, reference: Path, model: str, ids: list[int], factor: solve.Factor
) -> None:
    tensors, facts = golden(reference, item, model)

    def column(kind: str) -> Tensor:
        return torch.stack([tensors[f"{name}.{kind}"] for name in ids])

    mean = column("keys_per_context").mean(1)
    moment = factor if facts["hparams"]["mom2_adjustment"] else None
    B, A = solve.rome(column("v_star"), column("v_cur"), mean, column("k_clean"), moment)
    direction = solve.unit(solve.whiten(mean, moment))
    for i, name in enumerate(ids):
        expected = tensors[f"{name}.delta_weight"]
        near(stored(torch.outer(B[i], A[i]), expected), expected, SOLVE)
        near(direction[i], tensors[f"{name}.u"], SOLVE)
        denominator = float(direction[i] @ tensors[f"{name}.k_clean"])
        assert denominator == pytest.approx(facts["requests"][i]["denominator"], rel=SOLVE)


@pytest.mark.parametrize("variant", ["r_rome", "p_rome"])
def test_only_the_solution_of_r_rome(
    variant: str, reference: Path, model: str, ids: list[int], factor: solve.Factor
) -> None:
    tensors, _ = golden(reference, "r_rome", model)

    def column(kind: str) -> Tensor:
        return torch.stack([tensors[f"{variant}.{name}.{kind}"] for name in ids])

    B, A = solve.r_rome(column("v_star"), column("v_cur"), column("k"), factor)
    for i, name in enumerate(ids):
        expected = tensors[f"{variant}.{name}.delta_weight"]
        near(stored(torch.outer(B[i], A[i]), expected), expected, SOLVE)


def test_r_rome_from_the_shared_parts(
    reference: Path,
    model: str,
    keys: EditKeys,
    values: Values,
    ids: list[int],
    factor: solve.Factor,
) -> None:
    tensors, _ = golden(reference, "r_rome", model)
    B, A = solve.r_rome(values.target("ffn"), keys.mean_value, keys.mean_key, factor)
    for i, name in enumerate(ids):
        near(keys.mean_value[i], tensors[f"r_rome.{name}.v_cur"], KEYS)
        expected = tensors[f"r_rome.{name}.delta_weight"]
        near(stored(torch.outer(B[i], A[i]), expected), expected, UPDATE)


def test_second_moments(reference: Path, model: str, shared: Path, lm: LM) -> None:
    source = shared / "data" / "text" / "wikipedia-paragraphs.json"
    if not source.is_file():
        pytest.skip("needs the texts the moments were counted on")
    texts = tuple(record["text"] for record in json.loads(source.read_text())[:200])
    published = load_file(input_of(reference, f"moments_{model}.safetensors"))
    layers = [1, 2, 3]
    found = count_moments(lm, Corpus("texts", texts, ""), layers, 128, dtype=torch.float64)
    for layer in layers:
        near(found[layer].matrix, published[f"mom2_raw.{layer}"].double(), MOMENT)
        assert found[layer].tokens == int(published["token_count"])


def test_two_level_means_and_block_values_of_later_methods(
    reference: Path, model: str, lm: LM, edits: list[Edit], ids: list[int], contexts: Contexts
) -> None:
    """EMMET's keys and target states at one layer come from the same functions."""
    tensors, facts = golden(reference, "emmet_batch6", model)
    found = edit_keys(lm, edits, contexts, [LAYER], mean="two_level", hidden=True)[LAYER]
    assert found.hidden is not None
    near(found.mean_key, tensors["keys"], KEYS)
    near(found.hidden, tensors["h_current"], KEYS)
    hparams = facts["hparams"]
    settings = ValueSettings(
        steps=hparams["v_num_grad_steps"], lr=hparams["v_lr"],
        weight_decay=hparams["v_weight_decay"], clamp=hparams["clamp_norm_factor"],
        kl_factor=hparams["kl_factor"], loss_layer=hparams["v_loss_layer"],
    )  # fmt: skip
    values = optimise_values(lm, edits, contexts, LAYER, settings, places=("block",))
    near(values.delta["block"], tensors["z_delta"], VALUES)
    near(values.target("block"), tensors["z"], VALUES)
    assert ids == [request["case_id"] for request in facts["requests"]]
