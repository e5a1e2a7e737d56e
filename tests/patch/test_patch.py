"""Patches as values: undone bit for bit, refused on the wrong model, saved whole or not at all."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_models import DEVICE, gpt2, llama, tiny_tokenizer

from errata.case import Edit
from errata.errors import ErrataError, PatchError
from errata.model.lm import LM
from errata.patch import Dense, LowRank, Module, Patch
from errata.patch.folder import same_tensors

EDIT = Edit("The capital of France is", "Rome", "France")


def patch_of(lm: LM, seed: int = 0, *, bias: bool = False, module: bool = False) -> Patch:
    generator = torch.Generator().manual_seed(seed)
    site = lm.site(1)
    changes = [
        LowRank(
            site.path,
            torch.randn(site.d_out, 2, generator=generator),
            torch.randn(2, site.d_in, generator=generator),
        ),
        Dense(site.weight, torch.randn(lm.model.get_parameter(site.weight).shape)),
    ]
    if bias:
        changes.append(Dense(f"{site.path}.bias", torch.randn(site.d_out, generator=generator)))
    if module:
        vector = torch.randn(lm.spec.d_model, generator=generator)
        changes.append(Module(lm.spec.blocks[2], "shift", {}, {"vector": vector}))
    return Patch.for_model(lm, changes, editor="test", config={"layer": 1}, edits=[EDIT])


def weights(lm: LM) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_undo_is_bit_exact(tiny, name, dtype):
    lm = tiny(name, dtype)
    before = weights(lm)
    with patch_of(lm, module=True).applied(lm):
        during = weights(lm)
    assert not same_tensors(before, during)
    assert same_tensors(before, weights(lm))


def test_undo_is_bit_exact_after_an_exception(tiny):
    lm = tiny("llama", "bfloat16")
    before = weights(lm)
    with pytest.raises(ZeroDivisionError), patch_of(lm, module=True).applied(lm):
        _ = 1 / 0
    assert same_tensors(before, weights(lm))
    assert not lm.module(lm.spec.blocks[2])._forward_hooks


def test_gradients_flow_inside_the_block_as_outside(tiny):
    lm = tiny("llama")
    vector = torch.ones(lm.spec.d_model, requires_grad=True)
    shift = Module(lm.spec.blocks[2], "shift", {}, {"vector": vector})
    batch = lm.batch([lm.row("The capital of France is")], [0])
    with Patch((shift,)).applied(lm):
        lm.run(batch).logits.logsumexp(-1).sum().backward()
    assert vector.grad is not None
    assert vector.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_application_is_w_plus_b_a_rounded_once(tiny, name):
    lm = tiny(name, "bfloat16")
    site = lm.site(1)
    patch = patch_of(lm)
    low, dense = patch.changes
    stored = lm.model.get_parameter(site.weight).detach().clone()
    product = low.B.to(DEVICE) @ low.A.to(DEVICE)
    delta = product.T if site.transposed else product
    expected = (stored.float() + delta + dense.delta.to(DEVICE)).to(torch.bfloat16)
    with patch.applied(lm):
        assert torch.equal(lm.model.get_parameter(site.weight), expected)


def test_sum_applies_both_and_compact_keeps_the_sum(tiny):
    lm = tiny("llama", "float64")
    one, two = patch_of(lm, 1), patch_of(lm, 2)
    both = one + two
    assert both.edits == (EDIT, EDIT)
    with both.applied(lm):
        expected = weights(lm)
    with both.compact().applied(lm):
        compacted = weights(lm)
    assert both.compact().ranks() == {lm.site(1).path: 4}
    for name, tensor in expected.items():
        # the factors are float32, so their products are summed in another order
        torch.testing.assert_close(compacted[name], tensor, rtol=0, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(factor=st.floats(-4, 4), seed=st.integers(0, 100))
def test_scaling_is_linear(tiny, factor, seed):
    lm = tiny("gpt2", "float64")
    patch = patch_of(lm, seed)
    name = lm.site(1).weight
    base = lm.model.get_parameter(name).detach().clone()
    with patch.applied(lm):
        full = lm.model.get_parameter(name) - base
    with patch.scaled(factor).applied(lm):
        part = lm.model.get_parameter(name) - base
    torch.testing.assert_close(part, factor * full, rtol=1e-5, atol=1e-5)


def test_another_base_model_is_refused(tiny):
    patch = patch_of(tiny("llama"))
    other = llama()
    with torch.no_grad():
        next(iter(other.parameters()))[0] += 1
    with (
        pytest.raises(PatchError, match="made for tiny-llama"),
        patch.applied(LM(other, tiny_tokenizer(), name="other")),
    ):
        pass
    with pytest.raises(PatchError, match="different base models"):
        _ = patch + patch_of(tiny("gpt2"))


def test_a_change_that_does_not_fit_is_named(tiny):
    lm = tiny("llama")
    wrong = Patch((LowRank(lm.site(1).path, torch.ones(3, 1), torch.ones(1, 5)),))
    with pytest.raises(PatchError, match=r"has shape \(3, 5\), the model's is"), wrong.applied(lm):
        pass
    absent = Patch((Dense("nowhere.weight", torch.ones(1)),))
    with pytest.raises(PatchError, match=r"no parameter nowhere\.weight"), absent.applied(lm):
        pass
    with pytest.raises(PatchError, match="expected d_out x r and r x d_in"):
        LowRank("x", torch.ones(2, 2), torch.ones(3, 2))


def test_nan_updates_are_refused_and_nothing_is_touched(tiny):
    lm = tiny("gpt2")
    before = weights(lm)
    site = lm.site(0)
    B = torch.full((site.d_out, 1), float("nan"))
    bad = Patch((LowRank(site.path, B, torch.ones(1, site.d_in)),))
    with pytest.raises(PatchError, match="NaN or infinite"), bad.applied(lm):
        pass
    assert same_tensors(before, weights(lm))


def test_a_saved_patch_reads_back_equal(tiny, tmp_path):
    lm = tiny("gpt2")
    patch = patch_of(lm, bias=True, module=True)
    patch = Patch(patch.changes, patch.edits, {"keys": torch.ones(2, 3), "seen": 7}, patch.meta)
    patch.save(tmp_path / "p")
    again = Patch.load(tmp_path / "p")
    assert again.edits == patch.edits
    assert dict(again.meta) == dict(patch.meta)
    assert again.state["seen"] == 7
    assert torch.equal(again.state["keys"], patch.state["keys"])
    for left, right in zip(again.changes, patch.changes, strict=True):
        assert left.describe() == right.describe()
        assert same_tensors(left.tensors(), right.tensors())
    with patch.applied(lm):
        expected = weights(lm)
    with again.applied(lm):
        assert same_tensors(expected, weights(lm))
    with pytest.raises(PatchError, match="already holds a patch"):
        patch.save(tmp_path / "p")
    patch.save(tmp_path / "p", force=True)
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [
        "patch.json",
        "patch.safetensors",
    ]


def test_what_lies_on_the_processor_goes_to_the_model(tiny):
    lm = tiny("gpt2")
    change = patch_of(lm).changes[0]
    state = {"keys": torch.ones(2, 3), "count": torch.tensor(2), "note": "x"}
    patch = Patch.for_model(lm, [change], editor="hand", state=state)
    assert patch.on(torch.device("cpu")) is patch
    there = patch.on(torch.device("meta"))  # stands for a card
    assert isinstance(there.changes[0], LowRank)
    assert {t.device.type for t in there.changes[0].tensors().values()} == {"meta"}
    assert there.state["keys"].device.type == "meta"
    assert there.state["count"].device.type == "cpu"  # a number, not looked for on a card
    assert there.state["note"] == "x"
    assert there.on(torch.device("meta")) is there
    assert patch.changes[0] is change


def test_damaged_folders_are_recognised(tiny, tmp_path):
    folder = patch_of(tiny("gpt2")).save(tmp_path / "p")
    tensors = folder / "patch.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-10])
    with pytest.raises(PatchError, match="does not match the checksum"):
        Patch.load(folder)
    tensors.write_bytes(whole)
    described = folder / "patch.json"
    text = described.read_text()
    described.write_text(text[: len(text) // 2])
    with pytest.raises(PatchError, match="not a readable patch"):
        Patch.load(folder)
    described.write_text(json.dumps({**json.loads(text), "format": 99}))
    with pytest.raises(PatchError, match="patch format 99"):
        Patch.load(folder)
    described.unlink()  # what a writer killed between the two files leaves behind
    with pytest.raises(PatchError, match=r"patch\.json is missing"):
        Patch.load(folder)
    with pytest.raises(PatchError, match="no patch folder"):
        Patch.load(tmp_path / "nowhere")


def test_an_unwritable_folder_is_a_clear_error(tiny, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(ErrataError, match="cannot write"):
        patch_of(tiny("gpt2")).save(blocked / "p")
    assert blocked.read_text() == "in the way"


def test_a_full_disk_costs_nothing_that_was_there(tiny, tmp_path):
    """A process whose files may not grow past 512 bytes stands in for a full disk."""
    lm = tiny("gpt2")
    small = Patch.for_model(lm, patch_of(lm).changes[:1], editor="test")
    folder = small.save(tmp_path / "p")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code = (
        "import resource, signal, sys\n"
        "from errata.patch import Patch\n"
        "from errata.errors import ErrataError\n"
        "patch = Patch.load(sys.argv[1])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (512, 512))\n"
        "try:\n"
        "    (patch + patch).save(sys.argv[1], force=True)\n"
        "except ErrataError as error:\n"
        "    sys.exit(f'ErrataError: {error.message}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    assert "ErrataError: cannot write" in done.stderr
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_unknown_kinds_of_module_are_named(tiny):
    lm = tiny("gpt2")
    strange = Patch((Module(lm.spec.blocks[0], "hologram", {}, {}),))
    with pytest.raises(PatchError, match="unknown kind of module 'hologram'"), strange.applied(lm):
        pass


def test_modules_cannot_be_scaled(tiny):
    with pytest.raises(PatchError, match="cannot be scaled"):
        patch_of(tiny("gpt2"), module=True).scaled(2.0)


def test_gpt2_fixture_is_untouched_by_all_of_the_above(tiny):
    fresh = gpt2().to(DEVICE)
    assert same_tensors(fresh.state_dict(), tiny("gpt2").model.state_dict())
