"""LoRA's oracles (lifelong.md 6): start, one step, export, groups side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.locate.samples import EDITS
from torch import Tensor

from errata.editors.base import Editor
from errata.model.lm import LM
from errata.patch import LowRank, Patch
from errata.tuning.factors import TunedFactors
from errata.tuning.places import matrices_of
from errata.tuning.rows import TuningRows

SAME = 1e-9
CLOSE = 1e-5
"""Float32: PEFT multiplies in another order."""
Make = Callable[..., Editor]
Tiny = Callable[..., LM]
SMALL: dict[str, Any] = {"layers": (1,), "rank": 3, "alpha": 6.0, "lr": 0.01, "steps": 3}


def logits(lm: LM, patch: Patch | None = None) -> Tensor:
    rows = [lm.row(edit.prompt) for edit in EDITS]
    batch = lm.batch(rows, range(len(rows)))
    if patch is None:
        return lm.run(batch).logits.detach()
    with patch.applied(lm):
        return lm.run(batch).logits.detach()


def by_torch(lm: LM, patch: Patch, steps: int) -> dict[str, tuple[Tensor, Tensor]]:
    """Adam on factors that enter as `W + scale B A`, all edits in every step."""
    sites = [site for _, site in matrices_of(lm, [1], "ffn")]
    start = TunedFactors(lm, [(1, site) for site in sites], 1, 3, 2.0, 0)
    As = [A[0].clone().requires_grad_() for A in start.values[::2]]
    Bs = [B[0].clone().requires_grad_() for B in start.values[1::2]]
    adam = torch.optim.Adam([*As, *Bs], lr=0.01)
    for _ in range(steps):
        weights = {}
        for site, A, B in zip(sites, As, Bs, strict=True):
            delta = 2.0 * B @ A
            base = lm.model.get_parameter(site.weight)
            weights[site.weight] = base + (delta.T if site.transposed else delta)
        losses = []
        for edit in EDITS[:2]:
            row = lm.row_of(edit)
            ids = torch.tensor([[*row.ids, row.labels[-1]]])
            found: Any = torch.func.functional_call(lm.model, weights, (ids,))
            labels = torch.tensor([*row.labels, lm.tokenizer.eos_token_id])
            at = list(range(row.prompt_length - 1, row.prompt_length - 1 + len(labels)))
            losses.append(torch.nn.functional.cross_entropy(found.logits[0, at], labels))
        adam.zero_grad()
        torch.stack(losses).mean().backward()
        adam.step()
    return {
        site.path: (2.0 * B.detach(), A.detach()) for site, A, B in zip(sites, As, Bs, strict=True)
    }


def test_at_the_start_nothing_is_changed(tiny: Tiny) -> None:
    """Bit for bit: `B` is zero."""
    lm = tiny("llama", "float32")
    tuned = TunedFactors(lm, matrices_of(lm, [0, 1], "ffn"), 1, 4, 2.0, 0)
    rows = [lm.row(edit.prompt) for edit in EDITS]
    batch = lm.batch(rows, range(len(rows)))
    before = lm.run(batch).logits
    with tuned.installed([0] * len(rows), tuned.values, batch, torch.tensor([1] * len(rows))):
        assert torch.equal(lm.run(batch).logits, before)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_it_is_adam_on_the_factors(kind: str, tiny: Tiny, make: Make) -> None:
    lm = tiny(kind)
    for steps in (1, 3):
        patch = make("lora", **{**SMALL, "steps": steps}).edit_one(lm, EDITS[:2])
        expected = by_torch(lm, patch, steps)
        assert {change.path for change in patch.changes} == expected.keys()
        for change in patch.changes:
            assert isinstance(change, LowRank)
            for found, want in zip((change.B, change.A), expected[change.path], strict=True):
                assert float((found - want).norm()) <= 1e-7 * float(want.norm())


def test_the_first_step_moves_b_alone(tiny: Tiny) -> None:
    """`dB = (alpha/r) G^T (A X)^T` and `dA = 0` while `B` is zero."""
    lm = tiny("gpt2")
    tuned = TunedFactors(lm, matrices_of(lm, [1], "out"), 1, 3, 2.0, 0)
    batch = TuningRows(tuned, [[lm.row_of(edit) for edit in EDITS[:2]]])
    _, (dA, dB) = batch.losses(torch.ones(1, dtype=torch.bool), 0.0)
    assert not bool(dA.any())
    assert bool(dB.any())


def test_what_was_trained_is_what_is_exported(tiny: Tiny, make: Make, tmp_path: Path) -> None:
    """PEFT with the exported folder, merged or not, answers as the patch does; the rank is r."""
    from peft import PeftModel
    from safetensors.torch import load_file

    lm = tiny("llama", "float32")
    patch = make("lora", **SMALL).edit_one(lm, EDITS[:2])
    report = patch.to_lora(lm, tmp_path / "adapter")
    assert report is not None
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {t.shape[0] for name, t in tensors.items() if "lora_A" in name} == {3}
    expected = logits(lm, patch)
    import copy

    adapted = PeftModel.from_pretrained(copy.deepcopy(lm.model), str(tmp_path / "adapter")).eval()
    rows = [lm.row(edit.prompt) for edit in EDITS]
    batch = lm.batch(rows, range(len(rows)))
    found = adapted(batch.input_ids, attention_mask=batch.attention_mask).logits.detach()
    real = batch.attention_mask.bool()
    torch.testing.assert_close(found[real], expected[real], rtol=CLOSE, atol=CLOSE)
    back = Patch.from_lora(lm, tmp_path / "adapter")
    torch.testing.assert_close(logits(lm, back), expected, rtol=CLOSE, atol=CLOSE)


def test_a_matrix_narrower_than_the_rank(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    patch = make("lora", **{**SMALL, "rank": 1000, "alpha": 1000.0}).edit_one(lm, EDITS[:1])
    assert all(isinstance(c, LowRank) and c.rank <= 32 for c in patch.changes)


def test_bfloat16_bases_keep_float32_factors(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2", "bfloat16")
    patch = make("lora", **SMALL).edit_one(lm, EDITS[:2])
    assert {c.tensors()["B"].dtype for c in patch.changes} == {torch.float32}


def test_the_middle_third(tiny: Tiny, make: Make) -> None:
    lm = tiny("llama")
    editor = make("lora", layers="auto")
    patch = editor.edit_one(lm, EDITS[:1])
    layers = {lm.spec.layer_of(change.path) for change in patch.changes}
    assert layers == set(range(lm.n_layers // 3, max(lm.n_layers // 3 + 1, 2 * lm.n_layers // 3)))
