"""What every editor owes: one suite over all files of the folder.

A new editor is tested by being there.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.locate.samples import EDITS
from tests.tiny_models import DEVICE, TINY, tiny_tokenizer
from torch import Tensor

from errata.case import Edit
from errata.config import settings_from
from errata.editors import editors
from errata.editors.base import Editor
from errata.errors import EditError, ErrataError, ModelError, PatchError
from errata.model.lm import LM
from errata.model.tokens import positions_of
from errata.patch import Dense, LowRank, Patch

NAMES = list(editors.all)
MODELS = ["gpt2", "qwen3"]
GROUPS: list[list[Edit]] = [EDITS[:1], EDITS[1:3], EDITS[3:]]
TOGETHER = 1e-8
"""Float64: groups edited together against one by one; Adam's first steps amplify rounding."""
SAVED = 0.0
"""A patch from disk is the patch: not one bit may differ."""

WITHOUT_ADDRESS = {"none", "ibke"}
"""Editors without a paper, or whose paper has no public address."""

WITHOUT_TRAINING = {"none", "ike"}
"""Editors that leave it to the model what becomes of an edit; a random one does not read."""

Make = Callable[..., Editor]
Tiny = Callable[..., LM]

everywhere = pytest.mark.parametrize("name", NAMES)
on_both = pytest.mark.parametrize("kind", MODELS)


def snapshot(lm: LM) -> dict[str, Any]:
    """Everything an editor could leave behind."""
    modules = dict(lm.model.named_modules())
    return {
        "weights": {k: v.detach().clone() for k, v in lm.model.state_dict().items()},
        "training": {path: m.training for path, m in modules.items()},
        "grads": {n: (p.requires_grad, p.grad) for n, p in lm.model.named_parameters()},
        "hooks": {
            path: [len(v) for k, v in sorted(vars(m).items()) if k.endswith("_hooks")]
            for path, m in modules.items()
        },
        "own": {path: sorted(k for k in vars(m) if k == "forward") for path, m in modules.items()},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if lm.device.type == "cuda" else None,
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),  # noqa: NPY002 -- the global one is meant
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "enabled": torch.is_grad_enabled(),
        "precision": torch.get_float32_matmul_precision(),
    }


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return a == b


def logits(lm: LM, patch: Patch | None = None) -> Tensor:
    rows = [lm.row(edit.prompt, edit.target) for edit in EDITS]
    batch = lm.batch(rows, range(len(rows)))
    at = positions_of(rows, range(len(rows)), lm.device)
    with torch.no_grad():
        if patch is None:
            return lm.logits(batch, at)
        with patch.applied(lm):
            return lm.logits(batch, at)


def likelihood(lm: LM, edits: Sequence[Edit]) -> float:
    scores = lm.score([lm.row(edit.prompt, edit.target) for edit in edits])
    return sum(sum(score.logprobs) / len(score.logprobs) for score in scores) / len(scores)


def distance(a: Tensor, b: Tensor | float = 0.0) -> float:
    """Also of token ids, which have no norm."""
    return float((a - b).double().norm())


def tensors(patch: Patch) -> list[Tensor]:
    return [tensor for change in patch.changes for tensor in change.tensors().values()]


def low_rank(lm: LM, seed: int = 0) -> Patch:
    g = torch.Generator().manual_seed(seed)
    site = lm.site(1)
    B = 0.1 * torch.randn(site.d_out, 1, generator=g, dtype=torch.float64)
    A = 0.1 * torch.randn(1, site.d_in, generator=g, dtype=torch.float64)
    return Patch.for_model(lm, [LowRank(site.path, B, A)], editor="hand", edits=EDITS[:1])


# ---------------------------------------------------------------------- the model


@everywhere
@on_both
def test_the_model_is_what_it_was(name: str, kind: str, tiny: Tiny, make: Make) -> None:
    lm = tiny(kind, "float32")
    logits(lm)
    before = snapshot(lm)
    make(name).edit(lm, GROUPS)
    make(name).edit(lm, GROUPS, after=low_rank(lm))
    after = snapshot(lm)
    for key, value in before.items():
        assert equal(value, after[key]), key


@everywhere
def test_the_model_is_what_it_was_after_a_failure(
    name: str, tiny: Tiny, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny("gpt2", "float32")
    editor = make(name)
    before = snapshot(lm)
    calls = 0
    original = LM.run

    def fails(self: LM, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 12:
            raise MemoryError
        return original(self, *args, **kwargs)

    monkeypatch.setattr(LM, "run", fails)
    try:
        editor.edit(lm, GROUPS, after=low_rank(lm))
    except MemoryError:
        pass
    monkeypatch.undo()
    after = snapshot(lm)
    for key, value in before.items():
        assert equal(value, after[key]), key


# ---------------------------------------------------------------------- the patches


@everywhere
@on_both
def test_one_patch_per_group(name: str, kind: str, tiny: Tiny, make: Make) -> None:
    lm = tiny(kind)
    patches = make(name).edit(lm, GROUPS)
    assert [list(patch.edits) for patch in patches] == GROUPS
    for patch in patches:
        assert patch.meta["editor"] == name
        assert patch.fingerprint == lm.fingerprint
        patch.check(lm)
        patch.check_finite()
    assert make(name).edit(lm, []) == []


@everywhere
@on_both
def test_edits_take(name: str, kind: str, tiny: Tiny, make: Make) -> None:
    lm = tiny(kind)
    before = after = 0.0
    for group, patch in zip(GROUPS, make(name).edit(lm, GROUPS), strict=True):
        before += likelihood(lm, group)
        with patch.applied(lm):
            after += likelihood(lm, group)
    if name in WITHOUT_TRAINING:
        assert (after == before) is (name == "none")
    else:  # on average: random keys are alike, so one edit may be spoilt by its own other tokens
        assert after > before


@everywhere
@on_both
def test_together_is_one_by_one(name: str, kind: str, tiny: Tiny, make: Make) -> None:
    lm = tiny(kind)
    after = [None, low_rank(lm), low_rank(lm, 1)]
    together = make(name).edit(lm, GROUPS, after=after)
    for i, group in enumerate(GROUPS):
        alone = make(name).edit_one(lm, group, after=after[i])
        for a, b in zip(tensors(together[i]), tensors(alone), strict=True):
            assert distance(a, b) <= TOGETHER * distance(b)
        torch.testing.assert_close(
            logits(lm, together[i]), logits(lm, alone), rtol=TOGETHER, atol=TOGETHER
        )


@everywhere
@on_both
def test_it_is_deterministic(name: str, kind: str, tiny: Tiny, make: Make) -> None:
    lm = tiny(kind, "float32")
    one, again = make(name).edit(lm, GROUPS), make(name).edit(lm, GROUPS)
    for a, b in zip(one, again, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))
        assert a.meta == b.meta


@everywhere
@on_both
def test_an_earlier_patch_is_contained(name: str, kind: str, tiny: Tiny, make: Make) -> None:
    lm = tiny(kind)
    after = low_rank(lm)
    kept = [tensor.clone() for tensor in tensors(after)]
    (patch,) = make(name).edit(lm, GROUPS[1:2], after=after)
    assert patch.changes[: len(after.changes)] == after.changes
    assert patch.edits == (*after.edits, *GROUPS[1])
    assert all(torch.equal(x, y) for x, y in zip(tensors(after), kept, strict=True))
    if name == "none":
        assert torch.equal(logits(lm, patch), logits(lm, after))


@everywhere
def test_an_earlier_patch_that_cannot_be_stacked(name: str, tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    delta = 0.01 * torch.randn(
        lm.model.get_input_embeddings().weight.shape,
        generator=torch.Generator().manual_seed(0),
        dtype=torch.float64,
    )
    after = Patch.for_model(lm, [Dense("transformer.wte.weight", delta)], editor="hand")
    patches = make(name).edit(lm, GROUPS[:2], after=[after, None])
    assert patches[0].changes[0] is after.changes[0]
    plain = make(name).edit_one(lm, GROUPS[1])
    for a, b in zip(tensors(patches[1]), tensors(plain), strict=True):
        assert distance(a, b) <= TOGETHER * distance(b)


@everywhere
@on_both
def test_saved_and_loaded_it_is_the_same(
    name: str, kind: str, tiny: Tiny, make: Make, tmp_path: Path
) -> None:
    lm = tiny(kind, "float32")
    patch = make(name).edit_one(lm, GROUPS[1])
    loaded = Patch.load(patch.save(tmp_path / "patch"))
    torch.testing.assert_close(logits(lm, loaded), logits(lm, patch), rtol=SAVED, atol=SAVED)
    assert loaded.edits == patch.edits
    assert settings_from(editors.load(name).Config, loaded.meta["config"]) is not None


@everywhere
@on_both
def test_undo_is_exact(name: str, kind: str, tiny: Tiny, make: Make) -> None:
    lm = tiny(kind, "bfloat16")
    patch = make(name).edit_one(lm, GROUPS[1])
    before, was = snapshot(lm), logits(lm)
    logits(lm, patch)
    assert equal(snapshot(lm)["weights"], before["weights"])
    assert torch.equal(logits(lm), was)


# ---------------------------------------------------------------------- what is refused


@everywhere
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_weights_are_refused(name: str, make: Make, bad: float) -> None:
    model = TINY["gpt2"]().to(DEVICE)
    lm = LM(model, tiny_tokenizer(), name="broken")
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight[3, 2] = bad
    with pytest.raises((EditError, ModelError), match="NaN"):
        make(name).edit(lm, GROUPS)


@everywhere
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_nan_update_is_refused(
    name: str, tiny: Tiny, make: Make, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    lm, editor = tiny("gpt2"), make(name)
    site = lm.site(1)
    broken = LowRank(site.path, torch.full((site.d_out, 1), bad), torch.ones(1, site.d_in))
    monkeypatch.setattr(editor, "edit_groups", lambda lm, groups, before: [Patch((broken,))])
    before = snapshot(lm)
    with pytest.raises(EditError, match="NaN or infinite"):
        editor.edit(lm, GROUPS[:1])
    assert equal(snapshot(lm)["weights"], before["weights"])


@everywhere
def test_an_empty_group_is_refused(name: str, tiny: Tiny, make: Make) -> None:
    with pytest.raises(EditError, match="group 1 is empty"):
        make(name).edit(tiny("gpt2"), [EDITS[:1], []])


@everywhere
@pytest.mark.parametrize(
    "edit",
    [Edit("The capital of France is", "Rome"), Edit("It is", "Rome", subject="France")],
    ids=["none", "elsewhere"],
)
def test_a_missing_subject_is_refused_where_it_is_needed(
    name: str, tiny: Tiny, make: Make, edit: Edit
) -> None:
    if "subject" in editors.load(name).needs:
        with pytest.raises(EditError, match="subject"):
            make(name).edit(tiny("gpt2"), [[edit]])
    else:
        assert len(make(name).edit(tiny("gpt2"), [[edit]])) == 1


@everywhere
def test_earlier_patches_have_to_fit(name: str, tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    with pytest.raises(EditError, match="2 earlier patches for 3 groups"):
        make(name).edit(lm, GROUPS, after=[None, None])
    with pytest.raises(PatchError):
        make(name).edit(lm, GROUPS, after=low_rank(tiny("qwen3")))


# ---------------------------------------------------------------------- what is said about it


@everywhere
def test_it_introduces_itself(name: str) -> None:
    cls, entry = editors.load(name), editors.entry(name)
    assert issubclass(cls, Editor)
    for fact in ("name", "title", "paper", "needs", "weights", "batch", "sequence", "exports"):
        assert entry.facts[fact] == getattr(cls, fact)  # literals, readable without an import
    assert set(cls.needs) <= {"subject", "moments", "training"}
    assert cls.batch in ("joint", "in turn", "memory")
    assert cls.sequence in ("adds", "grows")
    assert set(cls.exports) <= {"lora", "merged"}
    assert name in WITHOUT_ADDRESS or "arXiv" in cls.paper or "http" in cls.paper
    assert entry.summary
    for field, info in cls.Config.model_fields.items():
        assert info.description, field


@everywhere
def test_published_settings_are_settings(name: str) -> None:
    cls = editors.load(name)
    for backbone, values in cls.published.items():
        assert backbone == backbone.lower()
        settings_from(cls.Config, values)


@everywhere
def test_unknown_settings_are_refused(name: str, make: Make) -> None:
    with pytest.raises(ErrataError, match="unknown setting"):
        make(name, no_such_setting=1)
