"""Units as part of a checkpoint: it loads anywhere and computes what the patch computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.locate.samples import build
from tests.tiny_models import TINY, tiny_tokenizer
from torch import Tensor
from transformers import AutoModelForCausalLM

from errata.editors.t_patcher.units import Units
from errata.errors import PatchError
from errata.model.lm import LM
from errata.model.tokens import positions_of
from errata.nets.ffn import ffn_form
from errata.patch import LowRank, Patch
from errata.patch.export import to_lora, to_merged

CLOSE = 1e-10
"""Float64; a wider sum is rounded in another order."""

FLOAT32_NORM = {"gemma2": 1e-5}
"""Gemma computes norms in float32 whatever the model's type, also behind the FFN."""

TEXTS = ["The capital of France is", "Anna lives in Paris and", "Who"]


def units(lm: LM, layer: int, n: int, *, biases: bool = False, seed: int = 0) -> Any:
    """Random units that matter."""
    g = torch.Generator().manual_seed(seed)
    form, site = ffn_form(lm, layer), lm.site(layer)

    def drawn(*shape: int) -> Tensor:
        return 0.5 * torch.randn(*shape, generator=g, dtype=torch.float64)

    made = Units(
        drawn(form.parts, n, lm.spec.ffn_in[layer][0].d_in),
        drawn(n, site.d_out),
        drawn(form.parts, n) if biases else None,
    )
    return made.module(site.path, form)


def logits(lm: LM) -> Tensor:
    rows = [lm.row(text) for text in TEXTS]
    with torch.no_grad():
        at = positions_of(rows, range(len(rows)))
        return lm.logits(lm.batch(rows, range(len(rows))), at)


def exported(lm: LM, patch: Patch, folder: Path) -> LM:
    to_merged(lm, patch, folder)
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    )
    return LM(model, tiny_tokenizer(), name="merged")


@pytest.mark.parametrize(
    "kind",
    [
        "gpt2", "gptj", "gpt_neox", "opt", "falcon", "llama", "llama-square", "gpt2-square",
        "llama-mha", "qwen3", "phi", "phi3", "gemma2", "starcoder2",
    ],
)  # fmt: skip
def test_the_checkpoint_computes_what_the_patch_does(kind: str, tmp_path: Path) -> None:
    lm = LM(TINY[kind]().double(), tiny_tokenizer(), name=kind)
    lm.model.set_attn_implementation("eager")
    base = logits(lm)
    biased = all(site.bias for site in lm.spec.ffn_in[1])
    changes = [units(lm, lm.n_layers - 1, 2, biases=biased), units(lm, 0, 3, seed=1)]
    patch = Patch.for_model(lm, changes, editor="t_patcher")
    with patch.applied(lm):
        wanted = logits(lm)
    assert not torch.allclose(wanted, base, atol=1e-3)
    merged = exported(lm, patch, tmp_path / "merged")
    close = FLOAT32_NORM.get(kind, CLOSE)
    torch.testing.assert_close(logits(merged), wanted, rtol=close, atol=close)
    assert torch.equal(logits(lm), base)
    assert [site.d_in for site in merged.spec.ffn_out] == [lm.spec.d_ffn + 3] * lm.n_layers


def test_other_changes_are_merged_too(tmp_path: Path) -> None:
    lm = build("gpt2")
    site = lm.site(1)
    g = torch.Generator().manual_seed(3)
    low = LowRank(
        site.path,
        torch.randn(site.d_out, 1, generator=g, dtype=torch.float64),
        torch.randn(1, site.d_in, generator=g, dtype=torch.float64),
    )
    patch = Patch.for_model(lm, [low, units(lm, 1, 2), units(lm, 1, 1, seed=5)], editor="t_patcher")
    with patch.applied(lm):
        wanted = logits(lm)
    merged = exported(lm, patch, tmp_path / "merged")
    torch.testing.assert_close(logits(merged), wanted, rtol=CLOSE, atol=CLOSE)
    assert merged.site(1).d_in == lm.spec.d_ffn + 3


def test_tied_heads_stay_tied(tmp_path: Path) -> None:
    lm = build("gpt2")
    merged = exported(
        lm, Patch.for_model(lm, [units(lm, 2, 1)], editor="t_patcher"), tmp_path / "m"
    )
    assert merged.model.lm_head.weight is merged.model.transformer.wte.weight


def test_biases_need_a_bias(tmp_path: Path) -> None:
    lm = build("qwen3")
    patch = Patch.for_model(lm, [units(lm, 1, 2, biases=True)], editor="t_patcher")
    with pytest.raises(PatchError, match="gate_proj has none") as caught:
        to_merged(lm, patch, tmp_path / "merged")
    assert "--set bias=false" in str(caught.value.hint)
    assert not (tmp_path / "merged").exists()


def test_a_width_that_is_no_setting_is_refused(tmp_path: Path) -> None:
    lm = LM(TINY["bloom"]().double(), tiny_tokenizer(), name="bloom")
    patch = Patch.for_model(lm, [units(lm, 1, 2)], editor="t_patcher")
    with pytest.raises(PatchError, match="no setting of its own"):
        to_merged(lm, patch, tmp_path / "merged")


def test_units_elsewhere_are_refused(tmp_path: Path) -> None:
    lm = build("gpt2")
    lost = replace(units(lm, 1, 2), path=lm.site(1, "attn_out").path)
    patch = Patch.for_model(lm, [lost], editor="t_patcher")
    with pytest.raises(PatchError, match="does not belong to an FFN"):
        to_merged(lm, patch, tmp_path / "merged")


def test_a_patch_of_another_model_is_refused(tmp_path: Path) -> None:
    patch = Patch.for_model(build("qwen3"), [units(build("qwen3"), 1, 2)], editor="t_patcher")
    with pytest.raises(PatchError, match="was made for"):
        to_merged(build("gpt2"), patch, tmp_path / "merged")


def test_lora_says_why_it_cannot(tmp_path: Path) -> None:
    lm = build("gpt2")
    patch = Patch.for_model(lm, [units(lm, 1, 2)], editor="t_patcher")
    with pytest.raises(PatchError, match="no weight") as caught:
        to_lora(lm, patch, tmp_path / "lora")
    assert "--to merged" in str(caught.value.hint)
