"""Exports against independent readers: PEFT for adapters, transformers for checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tests.tiny_models import TINY, tiny_tokenizer
from transformers import AutoModelForCausalLM

import errata
from errata.errors import ConfigError, ErrataError, PatchError
from errata.patch import Dense, LowRank, Module, Patch
from errata.patch.export import from_lora, low_rank_svd, to_lora, to_merged
from errata.patch.folder import same_tensors

AGREE = 1e-5
"""Largest difference of float32 logits between the patched model and its export."""


@pytest.fixture
def saved(tmp_path):
    def save(name: str):
        folder = tmp_path / name
        TINY[name]().save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return errata.load(str(folder)), folder

    return save


def patch_of(lm, *ranks: int, dense: bool = False) -> Patch:
    generator = torch.Generator().manual_seed(3)
    changes = []
    for layer, rank in enumerate(ranks):
        site = lm.site(layer)
        B = torch.randn(site.d_out, rank, generator=generator)
        A = 0.3 * torch.randn(rank, site.d_in, generator=generator)
        changes.append(LowRank(site.path, B, A))
    if dense:
        site = lm.site(0)
        shape = lm.model.get_parameter(site.weight).shape
        changes.append(Dense(site.weight, 0.1 * torch.randn(shape, generator=generator)))
    return Patch.for_model(lm, changes, editor="test")


def logits(model, lm) -> torch.Tensor:
    ids = lm.tokenizer("The capital of France is Rome", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_the_configuration_is_one_that_peft_writes(saved, tmp_path):
    """Its eleven fields are written by hand, so that who makes adapters need not install PEFT."""
    from peft import LoraConfig

    for name in ("gpt2", "llama"):
        lm, _ = saved(name)
        to_lora(lm, patch_of(lm, 1, 3), tmp_path / name)
        ours = json.loads((tmp_path / name / "adapter_config.json").read_text())
        theirs = LoraConfig.from_pretrained(str(tmp_path / name))
        theirs.save_pretrained(str(tmp_path / f"{name}-peft"))
        written = json.loads((tmp_path / f"{name}-peft" / "adapter_config.json").read_text())
        for config in (ours, written):
            config["target_modules"] = sorted(config["target_modules"])
        assert ours == {key: written[key] for key in ours}
        plain = LoraConfig().to_dict()  # no other feature is on
        kept = plain.keys() - ours.keys() - {"peft_version"}
        assert {key: theirs.to_dict()[key] for key in kept} == {key: plain[key] for key in kept}


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3", "gptj", "phi3"])
@pytest.mark.parametrize("dense", [False, True], ids=["low-rank", "dense"])
def test_peft_loads_the_adapter_and_agrees(saved, tmp_path, name, dense):
    from peft import PeftModel

    lm, folder = saved(name)
    patch = patch_of(lm, 1, 3, dense=dense)
    report = to_lora(lm, patch, tmp_path / "adapter")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == report.rank
    assert max(report.lost_energy.values()) < 1e-12
    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(folder), str(tmp_path / "adapter")
    ).eval()
    with patch.applied(lm):
        expected = logits(lm.model, lm)
    torch.testing.assert_close(logits(adapted, lm), expected, rtol=0, atol=AGREE)
    assert (expected - logits(lm.model, lm)).abs().max() > 100 * AGREE
    back = from_lora(lm, tmp_path / "adapter")
    with back.applied(lm):
        torch.testing.assert_close(logits(lm.model, lm), expected, rtol=0, atol=AGREE)


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"alpha_pattern": {"down_proj": 7}}])
def test_an_adapter_written_by_peft_becomes_a_patch(saved, tmp_path, options):
    from peft import LoraConfig, get_peft_model

    lm, folder = saved("llama")
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["down_proj"], **options)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config).eval()
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    adapted.save_pretrained(str(tmp_path / "theirs"))
    patch = from_lora(lm, tmp_path / "theirs")
    with patch.applied(lm):
        torch.testing.assert_close(logits(lm.model, lm), logits(adapted, lm), rtol=0, atol=AGREE)


def test_truncation_reports_the_energy_it_loses(saved, tmp_path):
    lm, _ = saved("llama")
    patch = patch_of(lm, 6)
    change = patch.changes[0]
    singular = torch.linalg.svdvals(change.B.double() @ change.A.double())
    report = to_lora(lm, patch, tmp_path / "a", max_rank=2)
    expected = float((singular[2:] ** 2).sum() / (singular**2).sum())
    assert report.rank == 2
    assert report.lost_energy[change.path] == pytest.approx(expected, rel=1e-9)
    cut = from_lora(lm, tmp_path / "a").changes[0]
    best = float((singular[2:] ** 2).sum().sqrt())
    error = torch.linalg.norm(
        change.B.double() @ change.A.double() - cut.B.double() @ cut.A.double()
    )
    assert float(error) == pytest.approx(best, rel=1e-4)  # no rank-2 matrix is closer


def test_thin_svd_equals_the_dense_one():
    generator = torch.Generator().manual_seed(0)
    B = torch.randn(20, 4, generator=generator, dtype=torch.float64)
    A = torch.randn(4, 11, generator=generator, dtype=torch.float64)
    u, s, vh = low_rank_svd(B, A)
    torch.testing.assert_close(u * s @ vh, B @ A)
    torch.testing.assert_close(s, torch.linalg.svdvals(B @ A)[:4])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_merged_checkpoint_loads_with_transformers(saved, tmp_path, name):
    lm, _ = saved(name)
    before = {key: value.clone() for key, value in lm.model.state_dict().items()}
    patch = patch_of(lm, 1, 2, dense=True)
    to_merged(lm, patch, tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with patch.applied(lm):
        assert torch.equal(logits(merged, lm), logits(lm.model, lm))
    assert same_tensors(before, lm.model.state_dict())
    assert errata.load(str(tmp_path / "merged")).fingerprint != lm.fingerprint
    with pytest.raises(PatchError, match="not empty"):
        to_merged(lm, patch, tmp_path / "merged")
    to_merged(lm, patch, tmp_path / "merged", force=True)
    (tmp_path / "diary").mkdir()
    (tmp_path / "diary" / "monday.txt").write_text("keep me")
    with pytest.raises(PatchError, match="would be lost"):
        to_merged(lm, patch, tmp_path / "diary", force=True)


def test_what_lora_cannot_carry_is_refused(saved, tmp_path):
    lm, _ = saved("gpt2")
    bias = Patch((Dense(f"{lm.site(0).path}.bias", torch.ones(lm.spec.d_model)),))
    with pytest.raises(PatchError, match=r"c_proj\.bias"):
        to_lora(lm, bias, tmp_path / "a")
    vector = {"vector": torch.ones(lm.spec.d_model)}
    module = Patch((Module(lm.spec.blocks[0], "shift", {}, vector),))
    for export in (to_lora, to_merged):
        with pytest.raises(PatchError, match="shift module"):
            export(lm, module, tmp_path / "b")
    with pytest.raises(PatchError, match="changes nothing"):
        to_lora(lm, Patch(), tmp_path / "c")
    to_lora(lm, patch_of(lm, 1), tmp_path / "d")
    with pytest.raises(PatchError, match="already holds an adapter"):
        to_lora(lm, patch_of(lm, 1), tmp_path / "d")
    assert not any((tmp_path / name).exists() for name in "abc")


def test_unreadable_adapters_are_refused(saved, tmp_path):
    lm, _ = saved("gpt2")
    with pytest.raises(PatchError, match="not a readable LoRA folder"):
        from_lora(lm, tmp_path / "nothing")
    to_lora(lm, patch_of(lm, 1), tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(PatchError, match="DoRA"):
        from_lora(lm, tmp_path / "a")


def test_the_serving_line_names_a_rank_that_vllm_accepts(saved, tmp_path):
    lm, folder = saved("llama")
    report = to_lora(lm, patch_of(lm, 9), tmp_path / "france")
    assert report.serve == (
        f"vllm serve {folder} --enable-lora --max-lora-rank 16 "
        f"--lora-modules france={tmp_path / 'france'}"
    )


def test_a_checkpoint_is_sharded_as_transformers_does(saved, tmp_path):
    lm, _ = saved("llama")
    patch = patch_of(lm, 1, 2)
    to_merged(lm, patch, tmp_path / "merged", max_shard_size="40KB")
    parts = list((tmp_path / "merged").glob("model-*.safetensors"))
    assert len(parts) > 1
    assert (tmp_path / "merged" / "model.safetensors.index.json").is_file()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with patch.applied(lm):
        assert torch.equal(logits(merged, lm), logits(lm.model, lm))


@pytest.mark.parametrize("name", ["llama", "gpt2"])  # gpt2's head is tied
def test_a_checkpoint_in_the_type_of_the_base_files(tmp_path, name):
    TINY[name]().to(torch.bfloat16).save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    lm = errata.load(str(tmp_path / "base"), dtype="float32")
    patch = patch_of(lm, 1, 2)
    to_merged(lm, patch, tmp_path / "wide")
    to_merged(lm, patch, tmp_path / "merged", as_stored=True)
    with patch.applied(lm):
        expected = {k: v.to(torch.bfloat16) for k, v in lm.model.state_dict().items()}
    for folder, dtype in (("wide", torch.float32), ("merged", torch.bfloat16)):
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / folder)
        assert merged.dtype == dtype
    assert same_tensors(expected, merged.state_dict())
    sizes = [(tmp_path / f / "model.safetensors").stat().st_size for f in ("merged", "base")]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)
    assert lm.dtype == torch.float32


def test_a_patch_made_on_a_model_that_peft_wraps_names_paths_of_the_base(saved, tmp_path):
    from peft import LoraConfig, get_peft_model

    lm, folder = saved("llama")
    wrapped = get_peft_model(
        AutoModelForCausalLM.from_pretrained(folder), LoraConfig(target_modules=["down_proj"])
    )
    own = errata.LM(wrapped, lm.tokenizer, name=str(folder))  # pyright: ignore[reportArgumentType]
    head = "base_model.model.model.layers"
    changes = [
        LowRank(f"{head}.0.mlp.down_proj.base_layer", torch.ones(32, 1), torch.ones(1, 80)),
        LowRank(f"{head}.1.mlp.up_proj", torch.ones(80, 1), torch.ones(1, 32)),
    ]
    report = to_lora(own, Patch.for_model(own, changes, editor="test"), tmp_path / "adapter")
    assert report.modules == ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.up_proj")
    back = {change.path: change for change in from_lora(lm, tmp_path / "adapter").changes}
    for path, change in zip(report.modules, changes, strict=True):
        torch.testing.assert_close(back[path].B @ back[path].A, change.B @ change.A)


def test_beyond_the_largest_rank_the_loss_of_cutting_is_known(saved, tmp_path, monkeypatch):
    lm, _ = saved("llama")
    patch = patch_of(lm, 6)
    monkeypatch.setattr("errata.patch.export.RANKS", (1, 4))
    report = to_lora(lm, patch, tmp_path / "a")
    assert report.serve is None
    cut = to_lora(lm, patch, tmp_path / "b", max_rank=4)
    assert cut.serve is not None
    assert report.lost_when_served == pytest.approx(cut.lost_energy, rel=1e-4)
    assert min(report.lost_when_served.values()) > 0


class Hub:
    """What stands in for the Hub's interface."""

    calls: ClassVar[list] = []
    error: Exception | None = None

    def create_repo(self, repo, *, private, exist_ok):
        Hub.calls.append(("create", repo, private, exist_ok))
        return f"https://hub.example/{repo}"

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        if Hub.error is not None:
            raise Hub.error
        names = sorted(path.name for path in Path(folder_path).iterdir())
        Hub.calls.append(("upload", repo_id, names))


def test_an_adapter_is_pushed_with_its_card(saved, tmp_path, monkeypatch):
    from errata.patch.hub import push

    lm, _ = saved("llama")
    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    Hub.calls, Hub.error = [], None
    to_lora(lm, patch_of(lm, 1), tmp_path / "a")
    assert push(tmp_path / "a", "me/a", private=True) == "https://hub.example/me/a"
    files = ["README.md", "adapter_config.json", "adapter_model.safetensors", "errata.json"]
    assert Hub.calls == [("create", "me/a", True, True), ("upload", "me/a", files)]
    Hub.error = OSError("no route to host\nand more")
    with pytest.raises(ErrataError, match="pushed: no route to host") as raised:
        push(tmp_path / "a", "me/a")
    assert "is complete" in str(raised.value.hint)
    assert "and more" not in raised.value.message
    for name in ("me", "me/a/b", "", "a b/c"):
        with pytest.raises(ConfigError):
            push(tmp_path / "a", name)
