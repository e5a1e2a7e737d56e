"""Quantised models: edits are computed on them, stand beside their weights and leave as LoRA."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import TINY
from torch import Tensor, nn

import errata
from errata import Stack
from errata.errors import ModelError, PatchError
from errata.model.lm import LM
from errata.model.spec import weight_of
from errata.model.stored import dequantised, is_quantised, matrix_shape, quantised_in
from errata.patch import Dense, LowRank, Patch
from errata.world.shipped import pocket_path

PROMPT = "The capital of France is the city named"
EDITORS = ["rome", "memit", "alphaedit", "rect", "ft", "grace", "t_patcher"]
LIKE_ROME = {"memit", "alphaedit", "rect"}
"""Editors whose changes are of ROME's kind: in the slow tests, but for one with one layout."""


def packed(weight: Tensor) -> tuple[Tensor, Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round().to(torch.int8), scale


class Int8(nn.Linear):
    """As bitsandbytes has it: a Linear whose weight holds other numbers."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, plain.bias is not None)
        rows, scale = packed(plain.weight.detach())
        self.weight = nn.Parameter(rows, requires_grad=False)  # type: ignore[assignment]
        self.register_buffer("scale", scale)
        self.bias = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        scale: Any = self.scale
        return nn.functional.linear(x, self.weight.to(scale.dtype) * scale, self.bias)


class QuantLinear(nn.Module):
    """As GPTQ and AWQ have it: no Linear, no weight."""

    def __init__(self, plain: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = plain.in_features, plain.out_features
        rows, scale = packed(plain.weight.detach())
        self.register_buffer("qweight", rows.T.contiguous())
        self.register_buffer("scales", scale)
        self.bias = plain.bias

    def forward(self, x: Tensor) -> Tensor:
        rows: Any = self.qweight
        scale: Any = self.scales
        return nn.functional.linear(x, rows.T.to(scale.dtype) * scale, self.bias)


def convert(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and ".layers." in path:
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, make(module))


def of_pocket(make: Callable[[nn.Linear], nn.Module]) -> LM:
    lm = errata.load("pocket")
    convert(lm.model, make)
    return LM(lm.model, lm.tokenizer, name="pocket")


def rounded(plain: nn.Linear) -> nn.Module:
    """The same numbers as a plain matrix: what a quantised model has to agree with."""
    rows, scale = packed(plain.weight.detach())
    plain.weight = nn.Parameter(rows.float() * scale, requires_grad=False)
    return plain


KINDS = [Int8, QuantLinear]


@pytest.fixture(scope="module", params=KINDS)
def lm(request: pytest.FixtureRequest) -> LM:
    return of_pocket(request.param)


@pytest.fixture(scope="module")
def plain() -> LM:
    return of_pocket(rounded)


@pytest.fixture(scope="module")
def expected(plain: LM) -> Callable[[str], float]:
    """Return what an editor makes of the plain model, each asked once."""

    @cache
    def ask(editor: str) -> float:
        made = errata.edit(plain, PROMPT, "Tokyo", subject="France", editor=editor)
        with made.applied(plain):
            return logprob(plain)

    return ask


def logprob(lm: LM, stack: Stack | None = None) -> float:
    (score,) = lm.score([lm.row(PROMPT, "Tokyo")], stack=stack)
    return score.logprobs[0]


def test_sites_are_found_and_one_matrix_is_dequantised(lm: LM, plain: LM) -> None:
    assert lm.spec == plain.spec
    assert len(quantised_in(lm.model)) == 7 * 7
    assert not quantised_in(plain.model)
    for site in (lm.site(3), lm.site(0, "attn_out"), lm.spec.ffn_in[2][0]):
        assert is_quantised(lm.module(site.path))
        assert matrix_shape(lm.module(site.path)) == (site.d_in, site.d_out, False)
        expected = plain.model.get_parameter(site.weight)
        torch.testing.assert_close(weight_of(lm.model, site), expected, rtol=1e-6, atol=1e-7)
    lm.check_finite()


def pairs() -> list[Any]:
    return [
        pytest.param(kind, editor, marks=pytest.mark.slow if late else ())
        for kind in KINDS
        for editor in EDITORS
        for late in [editor in LIKE_ROME and (kind, editor) != (Int8, "memit")]
    ]


@pytest.mark.parametrize(("lm", "editor"), pairs(), indirect=["lm"])
def test_edits_are_those_of_the_dequantised_model(
    lm: LM, expected: Callable[[str], float], editor: str
) -> None:
    before = lm.fingerprint, logprob(lm)
    patch = errata.edit(lm, PROMPT, "Tokyo", subject="France", editor=editor)
    with patch.applied(lm):
        assert logprob(lm) == pytest.approx(expected(editor), abs=1e-3)
    with Stack(lm, [patch]) as stack:
        assert logprob(lm, stack) == pytest.approx(expected(editor), abs=1e-3)
    assert expected(editor) > -0.1
    assert (LM(lm.model, lm.tokenizer).fingerprint, logprob(lm)) == before


def test_it_leaves_as_lora_and_is_never_merged(lm: LM, tmp_path: Path) -> None:
    patch = errata.edit(lm, PROMPT, "Tokyo", subject="France")
    (change,) = patch.changes
    assert isinstance(change, LowRank)
    with pytest.raises(PatchError, match=r"is quantised \((Int8|QuantLinear)\)") as caught:
        patch.to_merged(lm, tmp_path / "merged")
    assert "--to lora" in (caught.value.hint or "")
    assert not (tmp_path / "merged").exists()
    back = Patch.from_lora(lm, patch.to_lora(lm, tmp_path / "lora").folder)
    with patch.applied(lm):
        expected = logprob(lm)
    with back.applied(lm):
        assert logprob(lm) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(PatchError, match="is quantised"):
        errata.edit(lm, PROMPT, "Tokyo", subject="France", editor="t_patcher").to_merged(
            lm, tmp_path / "wider"
        )


def test_beside_is_what_adding_would_be(lm: LM, plain: LM) -> None:
    """All forms of change at one projection: two low-rank ones and a whole matrix."""
    site, draw = lm.site(2), torch.Generator().manual_seed(0)
    B, A = torch.randn(site.d_out, 3, generator=draw), torch.randn(3, site.d_in, generator=draw)
    changes = (
        LowRank(site.path, B / 300, A),
        LowRank(site.path, B[:, :2] / 100, A[1:].flip(1)),
        Dense(site.weight, torch.randn(site.d_out, site.d_in, generator=draw) / 300),
        Dense("model.norm.weight", torch.full((site.d_out,), 0.1)),
    )
    patch, rows = Patch(changes), [lm.row(PROMPT, "Tokyo"), lm.row("The author of Dracula is", "x")]
    with patch.applied(plain):
        expected = [score.logprobs for score in plain.score(rows)]
    before = [score.logprobs for score in lm.score(rows)]
    with patch.applied(lm):
        found = [score.logprobs for score in lm.score(rows)]
    for one, other, old in zip(found, expected, before, strict=True):
        assert one == pytest.approx(other, abs=2e-3)
        assert one != pytest.approx(old, abs=0.05)
    assert [score.logprobs for score in lm.score(rows)] == before


def test_a_patch_of_the_plain_model_is_for_another_one(lm: LM, plain: LM) -> None:
    with pytest.raises(PatchError, match="this patch was made for"):
        errata.edit(plain, PROMPT, "Tokyo", subject="France", steps=1).check(lm)


def test_biases_and_turned_weights() -> None:
    model = TINY["qwen2"]()  # its attention has biases
    convert(model, Int8)
    module = model.get_submodule("model.layers.1.self_attn.q_proj")
    assert isinstance(module, Int8)
    scale: Any = module.scale
    torch.testing.assert_close(dequantised(module), module.weight * scale, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "package"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptqmodel"),
        ({"quant_method": "hqq"}, "hqq"),
    ],
)
def test_without_its_package_it_says_what_to_install(
    config: dict[str, Any], package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    there = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == package else there(name)
    )
    folder = tmp_path / "model"
    shutil.copytree(pocket_path(), folder)
    stated = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stated, "quantization_config": config}))
    with pytest.raises(ModelError) as caught:
        errata.load(str(folder))
    assert f"the package {package} is not installed" in caught.value.message
    assert f"pip install {package}" in (caught.value.hint or "")


@pytest.mark.parametrize("bits", [8, 4])
class TestBitsandbytes:
    """On the processor, where bitsandbytes is installed: it is not needed for anything else."""

    @pytest.fixture
    def folder(self, bits: int, tmp_path: Path) -> Path:
        pytest.importorskip("bitsandbytes")
        from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

        eight, four = {"load_in_8bit": True}, {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
        config = BitsAndBytesConfig(**(eight if bits == 8 else four))
        model: Any = AutoModelForCausalLM.from_pretrained(
            pocket_path(), dtype=torch.float32, quantization_config=config
        )
        model.save_pretrained(tmp_path / "model")
        AutoTokenizer.from_pretrained(pocket_path()).save_pretrained(tmp_path / "model")
        shutil.copy(pocket_path() / "card.json", tmp_path / "model")
        return tmp_path / "model"

    @pytest.mark.filterwarnings("ignore:MatMul8bitLt")
    def test_a_checkpoint_is_edited_and_served_as_lora(self, folder: Path, tmp_path: Path) -> None:
        from peft import PeftModel

        lm = errata.load(str(folder), device="cpu")
        assert len(quantised_in(lm.model)) == 7 * 7
        before = lm.fingerprint
        for editor in ("rome", "memit", "ft"):
            patch = errata.edit(lm, PROMPT, "Tokyo", subject="France", editor=editor)
            with patch.applied(lm):
                inside = logprob(lm)
            with Stack(lm, [patch]) as stack:
                assert logprob(lm, stack) == pytest.approx(inside, abs=1e-3)
            assert inside > -0.1
            assert logprob(lm) < -10
        assert LM(lm.model, lm.tokenizer).fingerprint == before
        with pytest.raises(PatchError, match="is quantised"):
            patch.to_merged(lm, tmp_path / "merged")
        patch = errata.edit(lm, PROMPT, "Tokyo", subject="France")
        with patch.applied(lm):
            inside = logprob(lm)
        adapter = patch.to_lora(lm, tmp_path / "lora").folder
        served: Any = PeftModel.from_pretrained(lm.model, adapter)
        row = lm.row(PROMPT, "Tokyo")
        with torch.no_grad():
            logits = served(torch.tensor([row.ids])).logits[0, row.positions[0]]
        assert float(logits.log_softmax(-1)[row.labels[0]]) == pytest.approx(inside, abs=5e-3)

    @pytest.mark.filterwarnings("ignore:MatMul8bitLt")
    def test_gradients_reach_the_input_after_a_pass_without_them(self, folder: Path) -> None:
        """bitsandbytes packs 4-bit weights anew on some processors and loses gradients then."""
        lm = errata.load(str(folder), device="cpu")
        module = lm.module(lm.site(3).path)
        x = torch.randn(4, lm.site(3).d_in)
        with torch.no_grad():
            first = module(x)
        x.requires_grad_()
        out = module(x)
        (found,) = torch.autograd.grad(out.sum(), x)
        expected = dequantised(module).float().sum(0).expand_as(found)
        torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)
        torch.testing.assert_close(out.detach(), first, rtol=1e-3, atol=1e-3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", ["torchao", "quanto"])
def test_other_libraries_in_8_bits(library: str) -> None:
    """Where they are installed: tensors and modules of their own instead of a plain matrix."""
    import transformers

    if library == "torchao":
        made = pytest.importorskip("torchao.quantization").Int8WeightOnlyConfig()
        config: Any = transformers.TorchAoConfig(made)
    else:
        pytest.importorskip("optimum.quanto")
        config = transformers.QuantoConfig(weights="int8")
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(
        pocket_path(), dtype=torch.float32, quantization_config=config, device_map={"": "cpu"}
    )
    lm = LM(model, transformers.AutoTokenizer.from_pretrained(pocket_path()), name="pocket")
    assert len(quantised_in(lm.model)) == 7 * 7
    before = lm.fingerprint, logprob(lm)
    patch = errata.edit(lm, PROMPT, "Tokyo", subject="France")
    with patch.applied(lm):
        inside = logprob(lm)
    with Stack(lm, [patch]) as stack:
        assert logprob(lm, stack) == pytest.approx(inside, abs=1e-3)
    assert inside > -0.1
    assert (LM(lm.model, lm.tokenizer).fingerprint, logprob(lm)) == before
