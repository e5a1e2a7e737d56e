"""Scores of published evaluation code on a fixed model, reproduced record by record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import errata
from errata.evaluation import evaluate
from errata.model.lm import LM
from tests.golden.published import golden_file, input_of, models

EXACT = 1e-6
"""Fractions of tokens; the published reliability is a float32 quotient."""

MEANS = 1e-7
PUBLISHED_NLL = 2e-7
"""Relative; the published code keeps negative log-likelihoods in float32."""

SETS = {
    "counterfact_val": ("counterfact", "records_counterfact_val_150.json"),
    "zsre_1k": ("zsre", "records_zsre_150.json"),
    "proto_world": ("counterfact", "proto_world_60.json"),
}
"""Data set and file of inputs; a model has outputs for some."""
KINDS = ("reliability", "generality", "locality")


@pytest.fixture(scope="module")
def reference(shared) -> Path:
    return shared / "reference"


@pytest.fixture(scope="module", params=models())
def name(reference, request) -> str:
    """Each of the fixed models that is there."""
    if not (reference / "models" / request.param).is_dir():
        pytest.skip("needs the golden outputs (ERRATA_SHARED)")
    return request.param


@pytest.fixture(scope="module")
def model(reference, name) -> LM:
    return errata.load(str(reference / "models" / name), dtype="float32")


def cases_of(reference: Path, data: str):
    known, file = SETS[data]
    return errata.load_cases(f"{known}:{input_of(reference, file)}").cases


def golden(reference: Path, name: str, item: str) -> dict:
    return json.loads(golden_file(reference, name, f"{item}.json").read_text())


def compare(result, published) -> None:
    for mine, theirs in zip(result.records, published["per_record"], strict=True):
        for kind in KINDS:
            scores = [q["score"] for q in mine["questions"] if q["kind"] == kind]
            wanted = theirs[kind] if kind == "reliability" else next(iter(theirs[kind].values()))
            assert scores == pytest.approx(wanted, abs=EXACT)
        said = [q["predicted"] for q in mine["questions"] if q["kind"] == "reliability"]
        assert said == theirs["predict_after_edit"]
    for kind in KINDS:
        mean = published["mean"][kind]
        wanted = mean["acc"] if kind == "reliability" else mean["mean_acc"]
        assert result.summary[kind] == pytest.approx(wanted, abs=MEANS)


@pytest.mark.parametrize("data", SETS)
def test_unedited_model(reference, model, name, data):
    published = golden(reference, name, f"uniedit_eval_none_{data}.f32")
    cases = cases_of(reference, data)
    result = evaluate(model, "none", cases, bootstrap=0)
    compare(result, published)
    for case, theirs in zip(cases, published["per_record"], strict=True):
        (probe,) = case.of("locality")
        own = model.score([model.row(probe.prompt, probe.target)])[0].argmax
        (tokens,) = next(iter(theirs["locality_pre_edit_tokens"].values()))
        assert [model.tokenizer.decode([token]) for token in own] == tokens


@pytest.mark.parametrize("data", SETS)
def test_fine_tuned_model(reference, model, name, data):
    published = golden(reference, name, f"uniedit_eval_ft_mid_{data}.f32")
    config = published["config"]
    editor = errata.get_editor(
        "ft",
        {
            "layers": config["layers"],
            "optimizer": "adamw",
            "lr": config["lr"],
            "steps": config["num_steps"],
            "bias": any(path.endswith(".bias") for path in published["trained_parameters"]),
            "batch_size": 1,
        },
    )
    result = evaluate(model, editor, cases_of(reference, data)[:30], bootstrap=0)
    compare(result, published)


PROMPTS = {
    "reliability": "rewrite_prompts",
    "generality": "paraphrase_prompts",
    "locality": "neighborhood_prompts",
}


def counterfact(reference: Path, name: str, limit: int, when: tuple[str, ...], edited=False):
    """Compare every prompt's two likelihoods and return the result and the published file."""
    published = golden(reference, name, "counterfact_scores_rome20.f64")
    lm = errata.load(str(reference / "models" / name), dtype="float64")
    path = input_of(reference, "records_counterfact_nested_20.json")
    editor = rome(reference, name) if edited else "none"
    cases = errata.load_cases(f"counterfact:{path}").cases[:limit]
    result = evaluate(lm, editor, cases, bootstrap=0)
    for mine, theirs in zip(result.records, published["cases"][:limit], strict=True):
        assert mine["id"] == str(theirs["case_id"])
        for moment in when:
            for kind, prompts in PROMPTS.items():
                entries = [q for q in mine["questions"] if q["kind"] == kind]
                for q, pair, correct in zip(
                    entries,
                    theirs[moment][f"{prompts}_probs"],
                    theirs[moment][f"{prompts}_correct"],
                    strict=True,
                ):
                    values = q["before"] if moment == "pre" else q
                    answer, other = pair["target_new"], pair["target_true"]
                    if kind == "locality":
                        answer, other = other, answer
                    assert values["nll"] == pytest.approx(answer, rel=PUBLISHED_NLL)
                    assert values["foil_nll"] == pytest.approx(other, rel=PUBLISHED_NLL)
                    assert values["greedy"] == int(correct)
    return result.summary["counterfact"], published["summary_percent_mean_std"][0]


NAMES = {
    "ES": "rewrite_success",
    "PS": "paraphrase_success",
    "NS": "neighborhood_success",
    "EM": "rewrite_diff",
    "PM": "paraphrase_diff",
    "NM": "neighborhood_diff",
}


def agree(mine, published, moment: str) -> None:
    for name, theirs in NAMES.items():
        assert round(100 * mine[name], 2) == pytest.approx(published[f"{moment}_{theirs}"][0])
    assert 100 * mine["S"] == pytest.approx(published[f"{moment}_score"][0], abs=1e-9)


def test_counterfact_before_an_edit(reference, name):
    mine, published = counterfact(reference, name, 20, ("pre",))
    agree(mine["before"], published, "pre")
    agree(mine, published, "pre")  # nothing was edited


def rome(reference: Path, name: str):
    templates = json.loads((reference / "inputs" / "context_templates.json").read_text())["flat"]
    moments = input_of(reference, f"moments_{name}.safetensors")
    return errata.get_editor(
        "rome", {"layer": 2, "contexts": templates, "moments_file": str(moments)}
    )


def test_counterfact_after_rome_on_a_few(reference, name):
    counterfact(reference, name, 3, ("pre", "post"), edited=True)


@pytest.mark.slow
def test_counterfact_after_rome(reference, name):
    mine, published = counterfact(reference, name, 20, ("pre", "post"), edited=True)
    agree(mine, published, "post")
