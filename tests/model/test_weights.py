"""One checkpoint is recognised in every type that it is loaded in; another one never is."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from tests.tiny_models import TINY, tiny_tokenizer

import errata
from errata.errors import PatchError
from errata.model.lm import LM
from errata.model.weights import Identity, identity, weight_digests, weight_fingerprint
from errata.patch import LowRank, Patch

DTYPES = ("float32", "bfloat16", "float16")


def tiny(dtype: str, shift: float = 0.0, at: int = 0, stored: str = "float32") -> LM:
    """Load one random checkpoint in a type; `shift` makes it another one."""
    model = TINY["qwen3"]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.to(getattr(torch, stored)))
            # some weights that float16 has no numbers for
            parameter.view(-1)[1::7] *= 1e-7
        model.model.layers[1].mlp.down_proj.weight.view(-1)[at] += shift
    return LM(model.to(getattr(torch, dtype)), tiny_tokenizer(), name="tiny")


def patch_of(lm: LM) -> Patch:
    site = lm.site(1)
    change = LowRank(site.path, torch.ones(site.d_out, 1), torch.ones(1, site.d_in))
    return Patch.for_model(lm, [change], editor="test")


def accepts(patch: Patch, lm: LM) -> bool:
    try:
        patch.check(lm)
    except PatchError:
        return False
    return True


@pytest.mark.parametrize("other", ["float16", "bfloat16", "float64"])
def test_a_patch_of_pocket_made_in_float32_fits_it_in_other_types(
    other: str, tmp_path: Path
) -> None:
    lm = errata.load("pocket")
    made = errata.edit(lm, "The capital of France is", "Rome", subject="France", steps=2)
    read = Patch.load(made.save(tmp_path / "patch"))
    loaded = errata.load("pocket", dtype=other)
    with read.applied(loaded):
        pass
    back = patch_of(loaded)
    back.check(lm)
    assert (read + back).base is not None  # they may be added, too


def test_all_types_of_one_checkpoint_stored_in_bfloat16() -> None:
    models = {dtype: tiny(dtype, stored="bfloat16") for dtype in DTYPES}
    # half of them are products with 1e-7, so not bfloat16 exactly: store them so
    for lm in models.values():
        for wide, narrow in zip(
            lm.model.parameters(), models["bfloat16"].model.parameters(), strict=True
        ):
            wide.copy_(narrow.to(wide.dtype))
    assert identity(models["float32"]).fingerprint != identity(models["float16"]).fingerprint
    for made, used in itertools.product(DTYPES, DTYPES):
        assert accepts(patch_of(models[made]), models[used]), (made, used)


def test_all_types_of_one_checkpoint_stored_in_float32() -> None:
    """Rounded twice, float16 and bfloat16 have nothing in common, and that is said."""
    models = {dtype: tiny(dtype) for dtype in DTYPES}
    for made, used in itertools.product(DTYPES, DTYPES):
        expected = {made, used} != {"float16", "bfloat16"}
        assert accepts(patch_of(models[made]), models[used]) == expected, (made, used)
    with pytest.raises(PatchError) as caught:
        patch_of(models["bfloat16"]).check(models["float16"])
    assert "(bfloat16 weights " in caught.value.message
    assert "(float16 weights " in caught.value.message
    assert "--dtype bfloat16" in (caught.value.hint or "")


@pytest.mark.parametrize("shift", [0.05, -0.001])
def test_another_checkpoint_is_refused_in_every_type(shift: float) -> None:
    models = {dtype: tiny(dtype) for dtype in DTYPES}
    others = {dtype: tiny(dtype, shift) for dtype in DTYPES}
    for made, used in itertools.product(DTYPES, DTYPES):
        assert not accepts(patch_of(models[made]), others[used]), (made, used)


def test_what_only_float16_cannot_see_is_another_checkpoint_in_wider_types() -> None:
    one, two = tiny("float32"), tiny("float32", 1e-9, at=1)
    assert identity(one).float16 == identity(two).float16
    assert not accepts(patch_of(one), two)
    assert not accepts(patch_of(one), tiny("bfloat16", 1e-9, at=1))
    # in float16 itself the two are one and the same, bit for bit
    assert accepts(patch_of(two), tiny("float16"))


def test_a_patch_of_an_older_version_is_compared_as_before() -> None:
    lm = tiny("float32")
    old = Patch((), meta={"fingerprint": lm.fingerprint, "model": "tiny"})
    old.check(lm)
    old.check(tiny("bfloat16"))
    assert not accepts(old, tiny("float16"))
    assert Identity.recorded({}) is None


def test_digests() -> None:
    lm = tiny("float32")
    plain, half = weight_digests(lm.model)
    assert plain == weight_fingerprint(lm.model) == lm.fingerprint
    assert half == weight_fingerprint(tiny("float16").model)
    exact = tiny("float16")
    assert len(set(weight_digests(exact.model))) == 1
