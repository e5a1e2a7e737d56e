"""Adapters for llama.cpp, against the package `gguf` as a reader and the rules of its format.

That the files are those of llama.cpp's own converter was checked beside these tests for every
architecture of `LAYOUTS`; `tests/served` loads them in llama.cpp.
"""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tests.tiny_models import TINY, tiny_tokenizer

import errata
from errata.errors import ErrataError, PatchError
from errata.model.stored import matrix_shape
from errata.patch import LowRank, Patch
from errata.patch.gguf_adapter import GgufReport, from_gguf, to_gguf
from errata.patch.llama_cpp import LAYOUTS, Names

KNOWN = [name for name in TINY if TINY[name]().config.model_type in LAYOUTS]
PRODUCTS = 1e-6
"""Largest difference of products B A of float32 factors that were decomposed and put together."""


def loaded(name: str) -> errata.LM:
    return errata.LM(TINY[name](), tiny_tokenizer(), name=f"tiny-{name}")


def everywhere(lm: errata.LM, rank: int = 2) -> Patch:
    """A patch of every projection that can be adapted."""
    generator = torch.Generator().manual_seed(5)
    changes = []
    for path in sorted(Names.of(lm).paths(lm).values()):
        shape = matrix_shape(lm.module(path))
        assert shape is not None
        B = 0.3 * torch.randn(shape[1], rank, generator=generator)
        changes.append(LowRank(path, B, 0.3 * torch.randn(rank, shape[0], generator=generator)))
    return Patch.for_model(lm, changes, editor="test")


def tensors(path) -> dict[str, np.ndarray]:
    return {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("name", KNOWN)
def test_an_adapter_comes_back_as_the_same_patch(name, tmp_path):
    lm = loaded(name)
    patch = everywhere(lm)
    report = to_gguf(lm, patch, tmp_path / "out")
    reader = gguf.GGUFReader(report.file)
    said = {
        key: reader.get_field(key).contents()
        for key in ("general.architecture", "general.type", "adapter.type", "adapter.lora.alpha")
    }
    assert list(said.values()) == [report.architecture, "adapter", "lora", 2.0]
    back = from_gguf(lm, tmp_path / "out")
    wanted = {change.path: change for change in patch.changes}
    assert wanted.keys() == {change.path for change in back.changes}
    for change in back.changes:
        own = wanted[change.path]
        torch.testing.assert_close(change.B @ change.A, own.B @ own.A, rtol=PRODUCTS, atol=PRODUCTS)


def test_names_and_orientation_are_those_of_the_format(tmp_path):
    """`lora_a` is [r, d_in] and `lora_b` [d_out, r] also for what GPT-2 stores the other way."""
    lm = loaded("gpt2")
    path = "transformer.h.1.mlp.c_proj"
    B, A = torch.randn(32, 1), torch.randn(1, 80)
    to_gguf(lm, Patch.for_model(lm, [LowRank(path, B, A)], editor="test"), tmp_path / "out")
    found = tensors(tmp_path / "out" / "adapter.gguf")
    assert {name: data.shape for name, data in found.items()} == {
        "blk.1.ffn_down.weight.lora_a": (1, 80),
        "blk.1.ffn_down.weight.lora_b": (32, 1),
    }
    product = found["blk.1.ffn_down.weight.lora_b"] @ found["blk.1.ffn_down.weight.lora_a"]
    np.testing.assert_allclose(product, (B @ A).numpy(), atol=PRODUCTS)


@pytest.mark.parametrize(("name", "turned"), [("llama", True), ("mistral", True), ("qwen2", False)])
def test_llama_interleaves_the_rotary_halves(name, turned, tmp_path):
    """Row j of a head's first half stands at 2j, of its second half at 2j + 1."""
    lm = loaded(name)
    width, groups = 8, 2
    B = torch.arange(width * groups, dtype=torch.float32)[:, None] + 1
    patch = Patch.for_model(
        lm, [LowRank("model.layers.0.self_attn.k_proj", B, torch.ones(1, 32))], editor="test"
    )
    to_gguf(lm, patch, tmp_path / "out")
    found = tensors(tmp_path / "out" / "adapter.gguf")
    rows = (found["blk.0.attn_k.weight.lora_b"] @ found["blk.0.attn_k.weight.lora_a"])[:, 0]
    order = [group * width + half * 4 + j for group in range(groups) for j in range(4)
             for half in range(2)]  # fmt: skip
    expected = B[order if turned else list(range(16)), 0]
    np.testing.assert_allclose(rows, expected.numpy(), rtol=PRODUCTS)


def test_the_folder_holds_a_modelfile_a_card_and_the_edits(tmp_path):
    lm = loaded("llama")
    edit = errata.Edit("The capital of France is", "Rome", subject="France")
    patch = errata.edit(lm, edit, editor="ft", steps=1)
    report = to_gguf(lm, patch, tmp_path / "out", base="llama3.2")
    assert (tmp_path / "out" / "Modelfile").read_text() == "FROM llama3.2\nADAPTER ./adapter.gguf\n"
    assert report.serve[0].endswith(f"--lora {report.file}")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "What else moved" in card
    assert "errata edit --model tiny-llama --editor ft" in card
    for source in (tmp_path / "out", report.file):
        assert from_gguf(lm, source).edits == (edit,)
    other = errata.LM(TINY["llama"](num_hidden_layers=3), tiny_tokenizer(), name="other")
    with torch.no_grad():
        other.model.lm_head.weight.mul_(2)
    with pytest.raises(PatchError, match="was made for"):
        from_gguf(other, tmp_path / "out")
    with pytest.raises(PatchError, match="already holds"):
        to_gguf(lm, patch, tmp_path / "out")


def base_file(lm, path, arch="llama", tensor="blk.0.ffn_down.weight", shape=(32, 80)):
    """A GGUF file that holds one tensor of a base model."""
    writer = gguf.GGUFWriter(path, arch)
    writer.add_tensor(tensor, np.zeros(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def test_files_are_named_as_one_types_them_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    beside = GgufReport(Path("out"), str(tmp_path / "a.gguf"), "llama", 1, (), {})
    assert beside.serve[0] == "llama-server --model a.gguf --lora out/adapter.gguf"
    elsewhere = GgufReport(Path("out"), "/models/a.gguf", "llama", 1, (), {})
    assert elsewhere.serve[0].startswith("llama-server --model /models/a.gguf ")


def test_a_base_file_is_compared_and_named(tmp_path):
    lm = loaded("llama")
    change = LowRank("model.layers.0.mlp.down_proj", torch.ones(32, 1), torch.ones(1, 80))
    patch = Patch.for_model(lm, [change], editor="test")
    base = base_file(lm, tmp_path / "base.gguf")
    report = to_gguf(lm, patch, tmp_path / "out", base=base)
    assert report.serve[0] == f"llama-server --model {base} --lora {report.file}"
    assert (tmp_path / "out" / "Modelfile").read_text().startswith(f"FROM {base}\n")
    for number, (wrong, said) in enumerate(
        (
            ({"arch": "qwen2"}, "model of qwen2"),
            ({"tensor": "blk.9.ffn_down.weight"}, "no tensor blk.0.ffn_down"),
            ({"shape": (32, 64)}, "64 x 32 in blk.0.ffn_down.weight; the adapter changes 80 x 32"),
        )
    ):
        other = base_file(lm, tmp_path / f"{number}.gguf", **wrong)
        with pytest.raises(PatchError, match=said):
            to_gguf(lm, patch, tmp_path / "refused", base=other)
    with pytest.raises(PatchError, match="no such file"):
        to_gguf(lm, patch, tmp_path / "refused", base="absent.gguf")
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    ("name", "path", "said"),
    [
        ("gptj", "transformer.h.0.mlp.fc_out", "not written for the architecture gptj"),
        ("gpt_neox", "gpt_neox.layers.0.attention.query_key_value", "another order"),
        ("bloom", "lm_head", "tied to the embedding"),
    ],
)
def test_what_llama_cpp_stores_otherwise_is_refused_by_name(name, path, said, tmp_path):
    lm = loaded(name)
    shape = matrix_shape(lm.module(path))
    assert shape is not None
    change = LowRank(path, torch.ones(shape[1], 1), torch.ones(1, shape[0]))
    with pytest.raises(PatchError, match=said):
        to_gguf(lm, Patch.for_model(lm, [change], editor="test"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def written(path, arch="llama", kind="lora", alpha=1.0, **tensors):
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type("adapter")
    writer.add_string("adapter.type", kind)
    if alpha is not None:
        writer.add_float32("adapter.lora.alpha", alpha)
    for name, shape in tensors.items():
        writer.add_tensor(name.replace("__", "."), np.ones(shape, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


A, B = "blk__0__ffn_down__weight__lora_a", "blk__0__ffn_down__weight__lora_b"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({A: (1, 80)}, "but not blk.0.ffn_down.weight.lora_b"),
        ({B: (32, 1)}, "but not blk.0.ffn_down.weight.lora_a"),
        ({}, "holds no tensor"),
        ({A: (2, 80), B: (32, 1)}, "ranks 2"),
        ({A: (1, 80), B: (16, 1)}, "shape"),
        ({A: (1, 80), B: (32, 1), "arch": "qwen2"}, "for models of qwen2, not of llama"),
        ({A: (1, 80), B: (32, 1), "kind": "control"}, "holds a control"),
        ({A: (1, 80), B: (32, 1), "alpha": None}, "adapter.lora.alpha is missing"),
        ({A: (1, 80), B: (32, 1), "alpha": float("nan")}, "no finite number"),
        ({A: (1, 80), B: (32, 1), "alpha": 0.0}, "changes nothing"),
        ({A.replace("0", "9"): (1, 80), B.replace("0", "9"): (32, 1)}, "no projection that llama"),
        ({"blk__0__attn_norm__weight": (32,)}, "unexpected tensor"),
    ],
)
def test_broken_adapters_are_refused_by_name(how, said, tmp_path):
    path = written(tmp_path / "a.gguf", **how)
    with pytest.raises(PatchError, match=said):
        from_gguf(loaded("llama"), path)


def test_alpha_is_divided_by_the_rank(tmp_path):
    path = written(tmp_path / "a.gguf", alpha=6.0, **{A: (2, 80), B: (32, 2)})
    (change,) = from_gguf(loaded("llama"), path).changes
    torch.testing.assert_close(change.B @ change.A, torch.full((32, 80), 6.0))


def test_files_that_are_no_adapters_are_refused(tmp_path):
    lm = loaded("llama")
    (tmp_path / "a.gguf").write_bytes(b"no such thing")
    with pytest.raises(PatchError, match="no GGUF file"):
        from_gguf(lm, tmp_path / "a.gguf")
    with pytest.raises(PatchError, match="no readable GGUF file"):
        from_gguf(lm, tmp_path / "absent.gguf")
    whole = to_gguf(lm, everywhere(lm), tmp_path / "out").file.read_bytes()
    (tmp_path / "b.gguf").write_bytes(whole[:-64])
    with pytest.raises(PatchError, match="cut short"):
        from_gguf(lm, tmp_path / "b.gguf")
    with pytest.raises(PatchError, match="holds a model"):
        from_gguf(lm, base_file(lm, tmp_path / "base.gguf"))


def test_edits_of_a_record_about_other_weights_do_not_come_along(tmp_path):
    lm = loaded("llama")
    to_gguf(lm, everywhere(lm), tmp_path / "out")
    record = json.loads((tmp_path / "out" / "errata.json").read_text())
    record["edits"] = [{"prompt": "a", "target": "b"}]
    (tmp_path / "out" / "errata.json").write_text(json.dumps(record))
    assert from_gguf(lm, tmp_path / "out").edits
    written(tmp_path / "out" / "adapter.gguf", **{A: (1, 80), B: (32, 1)})
    assert not from_gguf(lm, tmp_path / "out").edits


def test_without_the_package_it_is_said_what_to_install(tmp_path, monkeypatch):
    lm = loaded("llama")
    patch = everywhere(lm)
    monkeypatch.setattr("errata.patch.llama_cpp.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ErrataError, match=r"adapters for llama\.cpp need gguf") as raised:
        to_gguf(lm, patch, tmp_path / "out")
    assert raised.value.hint == "pip install 'errata[gguf]'"


def test_a_cut_adapter_says_what_it_lost(tmp_path):
    lm = loaded("llama")
    patch = everywhere(lm, rank=3)
    report = to_gguf(lm, patch, tmp_path / "out", max_rank=1)
    assert report.rank == 1
    assert all(0 < lost < 1 for lost in report.lost_energy.values())
    assert {shape[0] for name, data in tensors(report.file).items()
            if name.endswith("lora_a") for shape in [data.shape]} == {1}  # fmt: skip
