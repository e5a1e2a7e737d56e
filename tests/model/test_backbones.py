"""Published backbones are known by their own configuration, and by name where that is shared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    GPT2Config,
    GPTJConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from errata.editors import editors, get_editor, published_settings
from errata.errors import ConfigError
from errata.model.backbones import BACKBONES, identify, keys_for
from errata.model.named import MODELS
from errata.world.shipped import pocket_path


def llama(vocabulary: int, inner: int, positions: int, **more: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=4096, intermediate_size=inner, num_hidden_layers=32,
        num_attention_heads=32, max_position_embeddings=positions, **more,
    )  # fmt: skip


def qwen2() -> Qwen2Config:
    return Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28,
        num_attention_heads=28, num_key_value_heads=4, max_position_embeddings=32768,
    )  # fmt: skip


# The published config.json of each, and the key in the tables of settings
PUBLISHED: dict[str, tuple[PreTrainedConfig, str]] = {
    "meta-llama/Meta-Llama-3-8B-Instruct": (
        llama(128256, 14336, 8192, num_key_value_heads=8), "llama-3-8b",
    ),
    "meta-llama/Llama-3.1-8B-Instruct": (
        llama(128256, 14336, 131072, num_key_value_heads=8), "llama-3.1-8b",
    ),
    "meta-llama/Llama-2-7b-hf": (llama(32000, 11008, 4096), "llama-2-7b"),
    "mistralai/Mistral-7B-v0.1": (
        MistralConfig(
            vocab_size=32000, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
            num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=32768,
        ),
        "mistral-7b",
    ),
    "Qwen/Qwen2.5-7B-Instruct": (qwen2(), "qwen2.5-7b"),
    "EleutherAI/gpt-j-6b": (
        GPTJConfig(vocab_size=50400, n_embd=4096, n_layer=28, n_head=16, n_positions=2048),
        "gpt-j-6b",
    ),
    "openai-community/gpt2-xl": (
        GPT2Config(vocab_size=50257, n_embd=1600, n_layer=48, n_head=25), "gpt2-xl",
    ),
    "Qwen/Qwen3-8B": (
        Qwen3Config(
            vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_hidden_layers=36,
            max_position_embeddings=40960,
        ),
        "qwen3-8b",
    ),
}  # fmt: skip


@pytest.mark.parametrize("hub", PUBLISHED)
def test_known_by_configuration_and_by_id(hub: str) -> None:
    config, key = PUBLISHED[hub]
    by_config = identify("./my-finetune", config.to_dict())
    assert by_config is not None
    assert key in by_config.names
    for known in (identify(hub, config.to_dict()), identify(hub), identify(hub.lower())):
        assert known is not None
        assert known.names == (key,)


@pytest.mark.parametrize("hub", PUBLISHED)
def test_a_folder_of_any_name_is_recognised(hub: str, tmp_path: Path) -> None:
    config, key = PUBLISHED[hub]
    config.save_pretrained(tmp_path)
    known = identify(f"{tmp_path}/")
    assert known is not None
    assert known.by == "configuration"
    assert known.model.name == key


@pytest.mark.parametrize(
    ("hub", "layer", "layers"),
    [
        ("meta-llama/Meta-Llama-3-8B-Instruct", 5, (4, 5, 6, 7, 8)),
        ("meta-llama/Llama-2-7b-hf", 5, (4, 5, 6, 7, 8)),
        ("mistralai/Mistral-7B-v0.1", 5, (4, 5, 6, 7, 8)),
        ("Qwen/Qwen2.5-7B-Instruct", 5, (4, 5, 6, 7, 8)),
        ("EleutherAI/gpt-j-6b", 5, (3, 4, 5, 6, 7, 8)),
        ("openai-community/gpt2-xl", 17, (13, 14, 15, 16, 17)),
    ],
)
def test_published_settings_by_hub_id(
    hub: str, layer: int, layers: tuple[int, ...], tmp_path: Path
) -> None:
    PUBLISHED[hub][0].save_pretrained(tmp_path)
    for asked in (hub, str(tmp_path)):
        assert published_settings(editors.load("rome"), asked)["layer"] == layer
        assert published_settings(editors.load("memit"), asked)["layers"] == layers
    editor = get_editor("rome", overrides=["steps=3"], as_published=hub)
    assert editor.origins["layer"] == f"published for {PUBLISHED[hub][1]}"
    assert "steps" not in editor.origins


def test_a_name_breaks_ties_and_otherwise_it_is_said_which_was_assumed() -> None:
    config = qwen2().to_dict()
    either = identify("./qwen", config)
    assert either is not None
    assert either.names == ("qwen2.5-7b", "qwen2-7b")
    assert "shares with qwen2-7b" in str(either)
    older = identify("Qwen/Qwen2-7B-Instruct", config)
    assert older is not None
    assert (older.names, older.by) == (("qwen2-7b",), "name")


def test_a_configuration_that_differs_is_not_overruled_by_a_name() -> None:
    """A folder called gpt2-xl with four blocks has no block 17."""
    small = GPT2Config(vocab_size=50257, n_embd=64, n_layer=4, n_head=4).to_dict()
    assert identify("gpt2-xl", small) is None
    assert keys_for("gpt2-xl", None) == ()
    # the first Llama has the widths of the second, and fewer positions
    assert identify("huggyllama/llama-7b", llama(32000, 11008, 2048).to_dict()) is None
    # Code Llama's vocabulary and positions are others
    assert identify("code", llama(32016, 11008, 16384).to_dict()) is None


def test_a_name_holds_where_a_fine_tune_changed_vocabulary_and_positions() -> None:
    stretched = llama(128256 + 9000, 14336, 65536).to_dict()
    assert identify("x", stretched) is None
    known = identify("someone/Meta-Llama-3-8B", stretched)
    assert known is not None
    assert (known.model.name, known.by) == ("llama-3-8b", "name")
    padded = identify("x", llama(32001, 11008, 4096).to_dict())  # one more token for padding
    assert padded is not None
    assert padded.model.name == "llama-2-7b"


def test_pocket_is_known_by_its_card(tmp_path: Path) -> None:
    copy = tmp_path / "anything"
    shutil.copytree(pocket_path(), copy)
    for name in ("pocket", str(copy)):
        known = identify(name)
        assert known is not None
        assert (known.model.name, known.by) == ("pocket", "card")
    assert get_editor("rome", model=str(copy)).origins["layer"] == "found for pocket"
    card = json.loads((copy / "card.json").read_text())
    (copy / "card.json").write_text(json.dumps({**card, "seed": 1}))
    assert identify(str(copy)) is None  # another world
    assert identify("someone/pocket") is None


def test_every_key_of_the_tables_is_a_backbone() -> None:
    special = ("uniedit-", "liveedit-", "locft")  # baselines of other papers, asked for by name
    for name in editors.all:
        cls = editors.load(name)
        for key in {**cls.published, **cls.presets}:
            known = key in BACKBONES or key in MODELS  # a model that has a name of its own here
            assert known or key.startswith(special), (name, key)


def test_no_two_backbones_share_a_name() -> None:
    names = [name for model in BACKBONES.values() for name in model.called]
    assert len(names) == len(set(names))


def test_an_editor_without_settings_says_what_the_model_is_known_as() -> None:
    with pytest.raises(ConfigError) as caught:
        get_editor("rome", as_published="meta-llama/Llama-3.1-8B-Instruct")
    assert "(llama-3.1-8b, by its name)" in caught.value.message
    assert "llama-3-8b" in (caught.value.hint or "")
