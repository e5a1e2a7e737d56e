"""Models over several devices, with offloaded weights: the same answers, edits and fingerprints."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import cpu_offload, dispatch_model
from packaging import version
from tests.tiny_models import TINY, tiny_tokenizer
from torch import nn

import errata
from errata import Stack
from errata.editors import get_editor
from errata.errors import ModelError, PatchError
from errata.model.lm import LM
from errata.model.passes import reuse_below
from errata.model.stored import read, tensors_of
from errata.model.weights import identity

PROMPT = "The capital of France is the city named"
ENDS = ("model.embed_tokens", "lm_head", "model.norm", "model.rotary_emb")
SOME: dict[str, Any] = dict.fromkeys(ENDS, "cpu") | {
    f"model.layers.{i}": "disk" if i in (2, 3, 5) else "cpu" for i in range(7)
}
ALL: dict[str, Any] = dict.fromkeys([*ENDS, *(f"model.layers.{i}" for i in range(7))], "disk")
MAPS: dict[str, Any] = {"some on disk": SOME, "all on disk": ALL | {"model.rotary_emb": "cpu"}}


@pytest.fixture(scope="module")
def whole() -> LM:
    return errata.load("pocket")


@pytest.fixture(scope="module", params=MAPS)
def spread(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LM:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ERRATA_CACHE", str(tmp_path_factory.mktemp("cache")))
        try:
            return errata.load("pocket", device=MAPS[request.param])
        except ModelError as error:  # older releases of transformers cannot offload a tied head
            old = version.parse(transformers.__version__) < version.parse("5.20")
            if not old or "lm_head.weight were not offloaded" not in error.message:
                raise
            pytest.skip(error.message)


def logprob(lm: LM, stack: Stack | None = None) -> float:
    (score,) = lm.score([lm.row(PROMPT, "Tokyo")], stack=stack)
    return score.logprobs[0]


def test_it_is_the_same_model(whole: LM, spread: LM, capfd: pytest.CaptureFixture[str]) -> None:
    assert spread.spread
    assert not whole.spread
    assert spread.device == torch.device("cpu")
    assert any(parameter.is_meta for parameter in spread.model.parameters())
    assert identity(spread) == identity(whole)
    assert spread.top([PROMPT]) == whole.top([PROMPT])
    assert torch.equal(spread.embedding, whole.embedding)
    names = [name for name, _ in tensors_of(whole.model)]
    for name, tensor in tensors_of(spread.model):
        assert torch.equal(tensor, whole.model.state_dict()[name]), name
        names.remove(name)
    assert not names
    assert capfd.readouterr().err == ""


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("memit", "rect", "t_patcher")]
"""Further editors whose edits are compared: the kinds of changes they make are those of others."""


@pytest.mark.parametrize("editor", ["rome", "ft", "grace", "mend", *SLOW])
def test_edits_are_the_same_and_work(whole: LM, spread: LM, editor: str) -> None:
    made = errata.edit(whole, PROMPT, "Tokyo", subject="France", editor=editor)
    patch = errata.edit(spread, PROMPT, "Tokyo", subject="France", editor=editor)
    for one, other in zip(made.changes, patch.changes, strict=True):
        for name, tensor in one.tensors().items():
            assert torch.equal(tensor, other.tensors()[name]), name
    with made.applied(whole):
        expected = logprob(whole)
    before = logprob(spread)
    with patch.applied(spread):
        assert logprob(spread) == pytest.approx(expected, abs=1e-5)
    with Stack(spread, [patch]) as stack:
        assert logprob(spread, stack) == pytest.approx(expected, abs=1e-5)
    assert logprob(spread) == before
    assert expected > -0.1


def test_evaluation_is_the_same(whole: LM, spread: LM) -> None:
    cases = errata.load_cases("world", limit=2)
    found = [
        errata.evaluate(lm, get_editor("ft", model="pocket"), cases, perplexity=None).records
        for lm in (whole, spread)
    ]
    questions = [[record["questions"] for record in records] for records in found]
    assert questions[0] == questions[1]


def test_what_is_offloaded_is_not_written_to(spread: LM, tmp_path: Path) -> None:
    patch = errata.edit(spread, PROMPT, "Tokyo", subject="France")
    with pytest.raises(PatchError, match="is offloaded: a patch cannot be merged") as caught:
        patch.to_merged(spread, tmp_path / "merged")
    assert "--to lora" in (caught.value.hint or "")
    assert not (tmp_path / "merged").exists()
    again = errata.Patch.from_lora(spread, patch.to_lora(spread, tmp_path / "lora").folder)
    with again.applied(spread):
        assert logprob(spread) > -0.1


def test_skipped_blocks_are_given_back_to_accelerate(spread: LM) -> None:
    blocks = [spread.module(path) for path in spread.spec.blocks]
    forwards = [vars(block).get("forward") for block in blocks]
    hidden = torch.zeros(1, 5, spread.spec.d_model)
    with reuse_below(spread, 3, hidden):
        pass
    assert [vars(block).get("forward") for block in blocks] == forwards


def test_damage_in_an_offloaded_weight_is_found() -> None:
    model = TINY["qwen3"]()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[2, 3] = float("nan")
    lm = LM(cpu_offload(model, torch.device("cpu")), tiny_tokenizer(), name="tiny")
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.down_proj\.weight of tiny holds NaN"):
        lm.check_finite()


def test_weights_without_values_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match="are nowhere: it lies on the meta device") as caught:
        LM(TINY["qwen3"]().to("meta"), tiny_tokenizer())
    assert "errata.load" in (caught.value.hint or "")


def test_offloaded_by_accelerate_itself() -> None:
    plain = LM(TINY["gpt2"](), tiny_tokenizer(), name="tiny")
    lm = LM(cpu_offload(TINY["gpt2"](), torch.device("cpu")), tiny_tokenizer(), name="tiny")
    assert lm.fingerprint == plain.fingerprint
    site = lm.site(1)
    assert torch.equal(read(lm.model, site.weight), plain.model.get_parameter(site.weight))
    made = [
        errata.edit(one, "The capital of France is", "Rome", subject="France", steps=4, layer=1,
                    moments_text="world", moments_samples=50)
        for one in (plain, lm)
    ]  # fmt: skip
    for one, other in zip(made[0].changes, made[1].changes, strict=True):
        for name, tensor in one.tensors().items():
            assert torch.equal(tensor, other.tensors()[name])


def test_without_accelerate_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "accelerate" else there(name)
    )
    with pytest.raises(ModelError, match="needs the package accelerate") as caught:
        errata.load("pocket", device="auto")
    assert "pip install accelerate" in (caught.value.hint or "")


def test_auto_on_a_machine_where_everything_fits(whole: LM) -> None:
    lm = errata.load("pocket", device="auto", dtype="float32")
    assert identity(lm) == identity(whole)
    assert lm.top([PROMPT])[0][0][0] == whole.top([PROMPT])[0][0][0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("editor", ["rome", "memit", "ft", "grace", "rect", "t_patcher"])
def test_over_two_devices(whole: LM, editor: str) -> None:
    """Blocks take turns between processor and GPU; what errata computes lies with the token ids."""
    model: nn.Module = errata.load("pocket", device="cpu").model
    places = dict.fromkeys(ENDS, "cpu") | {
        f"model.layers.{i}": 0 if i % 2 else "cpu" for i in range(7)
    }
    lm = LM(dispatch_model(model, places, main_device="cpu"), whole.tokenizer, name="pocket")
    assert {p.device.type for p in lm.model.parameters()} == {"cpu", "cuda"}
    assert identity(lm) == identity(whole)
    made = errata.edit(whole, PROMPT, "Tokyo", subject="France", editor=editor)
    patch = errata.edit(lm, PROMPT, "Tokyo", subject="France", editor=editor)
    with made.applied(whole):
        expected = logprob(whole)
    before = logprob(lm)
    for own in (patch, made):
        with own.applied(lm):
            assert logprob(lm) == pytest.approx(expected, abs=0.02)
        with Stack(lm, [own]) as stack:
            assert logprob(lm, stack) == pytest.approx(expected, abs=0.02)
    assert logprob(lm) == before
    cases = errata.load_cases("world", limit=3)
    result = errata.evaluate(lm, get_editor(editor, model="pocket"), cases, perplexity=None)
    assert result.summary["reliability"] == 1.0
