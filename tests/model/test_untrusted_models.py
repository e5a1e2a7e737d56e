"""Folders of models that come from a stranger: nothing runs, nothing waits, everything is said."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import TINY, tiny_tokenizer

import errata
from errata.errors import ConfigError, ErrataError, ModelError
from errata.nets.small import by_name

MARK = "ran"
CODE = """
import pathlib
pathlib.Path({mark!r}).write_text("ran")
from transformers import Qwen3Config as C, Qwen3ForCausalLM as M
class Config(C):
    model_type = "strange"
class Model(M):
    config_class = Config
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    TINY["qwen3"]().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


def changed(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **values}), "utf-8")


@pytest.fixture
def with_code(folder: Path, tmp_path: Path) -> Path:
    """A folder that brings code of its own, for its model and its tokenizer."""
    (folder / "strange.py").write_text(CODE.format(mark=str(tmp_path / MARK)))
    parts = {"AutoConfig": "strange.Config", "AutoModelForCausalLM": "strange.Model",
             "AutoModel": "strange.Model"}  # fmt: skip
    changed(folder, "config.json", model_type="strange", auto_map=parts)
    changed(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["strange.T", None]})
    return folder


@pytest.mark.parametrize("load", [errata.load, by_name], ids=["load", "inner model"])
def test_code_of_a_repository_is_refused_without_a_question(
    load: Callable[[str], Any], with_code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(*words: object) -> str:
        raise AssertionError("asked on standard input")

    monkeypatch.setattr("builtins.input", ask)
    with pytest.raises(ModelError, match="code of its own"):
        load(str(with_code))
    assert not (tmp_path / MARK).exists()


def test_code_of_a_repository_runs_where_it_is_allowed(with_code: Path, tmp_path: Path) -> None:
    with pytest.raises(ErrataError):  # our stranger has no such tokenizer
        errata.load(str(with_code), trust_remote_code=True)
    assert (tmp_path / MARK).exists()


@pytest.mark.parametrize("load", [errata.load, by_name], ids=["load", "inner model"])
def test_pickled_weights_are_refused_in_a_sentence(
    load: Callable[[str], Any], folder: Path
) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.ones(1)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin, which can run code"):
        load(str(folder))


def broken(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(data) and None


def piped(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return damage


def declaring(**values: Any) -> Callable[[Path], None]:
    return lambda folder: changed(folder, "config.json", **values)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "config is no JSON": (broken("config.json", b'{"model_type": '), "damaged model"),
    "config is a list": (broken("config.json", b"[]"), "damaged model"),
    "config is nested": (broken("config.json", b"[" * 200_000), "damaged model"),
    "config is bytes": (broken("config.json", bytes(range(256))), "damaged model"),
    "config is a pipe": (piped("config.json"), "a pipe|holds no config"),
    "weights are a pipe": (piped("model.safetensors"), "a pipe"),
    "tokenizer is a pipe": (piped("tokenizer.json"), "a pipe"),
    "another file is a pipe": (piped("anything"), "a pipe"),
    "weights are no safetensors": (broken("model.safetensors", b"x" * 64), "model"),
    "tokenizer is no JSON": (broken("tokenizer.json", b'{"model"'), "cannot load"),
    "tokenizer of another shape": (broken("tokenizer.json", b'{"model": 3}'), "cannot load"),
    "tokenizer configuration a list": (broken("tokenizer_config.json", b"[1]"), "cannot load"),
    "widths are texts": (declaring(hidden_size="x"), "cannot load"),
    "no head": (declaring(num_attention_heads=0), "cannot load"),
    "more blocks than there are": (declaring(num_hidden_layers=10**9), "at most 10,000"),
    "a vocabulary of 10¹²": (declaring(vocab_size=10**12), "declares a matrix"),
    "a width of 10¹²": (declaring(intermediate_size=10**12), "declares a matrix"),
    "an index that leaves": (
        broken("model.safetensors.index.json", b'{"weight_map": {"x": "../../etc/passwd"}}'),
        "outside of its folder",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_folder_is_said(name: str, folder: Path) -> None:
    damage, said = DAMAGE[name]
    damage(folder)
    with pytest.raises(ModelError, match=said):
        errata.load(str(folder))


def test_a_whole_folder_loads(folder: Path, tmp_path: Path) -> None:
    assert errata.load(str(folder)).n_layers
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "link").symlink_to(tmp_path / "copy", target_is_directory=True)
    assert errata.load(str(tmp_path / "link")).n_layers


@pytest.mark.parametrize("device", ["meta", "mps", "xpu", "cpu:7x", "gpu", "cuda:99", "", "\n"])
def test_devices_that_are_not_there(device: str) -> None:
    if device == "":
        assert str(errata.load("pocket", device=device).device) in ("cpu", "cuda:0")
        return
    with pytest.raises(ConfigError, match="device"):
        errata.load("pocket", device=device)
