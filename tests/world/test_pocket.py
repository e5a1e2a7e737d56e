"""The shipped model knows its world as well as it must."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from errata import world as ew
from errata.world import knowledge, train
from errata.world.statements import Statement

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]

REQUIRED = {"direct_heldout": 0.98, "alias": 0.95, "hop_unstated": 0.60}


@pytest.fixture(scope="module")
def pocket() -> Loaded:
    folder = ew.pocket_path()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


def test_it_is_small_and_holds_no_pickles() -> None:
    files = list(ew.pocket_path().iterdir())
    assert sum(file.stat().st_size for file in files) <= 15 * 2**20
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".md"}
    tensors = load_file(ew.pocket_path() / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_its_card_tells_how_it_was_made_and_what_it_knows(pocket_world: ew.World) -> None:
    card = json.loads((ew.pocket_path() / "card.json").read_text())
    assert card["scale"] == "pocket"
    assert card["facts"] == len(pocket_world.facts)
    assert card["recipe"] == train.asdict(train.RECIPES["pocket"])
    assert card["steps"] == train.RECIPES["pocket"].steps
    assert card["cpu_seconds"] <= 2 * 3600
    for kind, least in REQUIRED.items():
        assert card["knowledge"][kind] >= least


def test_it_knows_a_sample_of_its_world(pocket: Loaded, pocket_world: ew.World) -> None:
    scores = ew.measure(*pocket, pocket_world, limit=250)
    for kind, least in REQUIRED.items():
        slack = 3 * (least * (1 - least) / 250) ** 0.5  # three standard errors of such a sample
        assert scores[kind] >= least - slack, kind


@pytest.mark.slow
def test_it_knows_its_whole_world(pocket: Loaded, pocket_world: ew.World) -> None:
    scores = ew.measure(*pocket, pocket_world)
    for kind, least in REQUIRED.items():
        assert scores[kind] >= least, kind


def test_its_tokenizer_belongs_to_its_world(pocket: Loaded, pocket_world: ew.World) -> None:
    from errata.world import tokenizer as bpe

    rebuilt = bpe.train(pocket_world)
    for sentence in ew.texts(pocket_world, 200):
        assert pocket[1](sentence)["input_ids"] == rebuilt(sentence)["input_ids"]


def test_it_knows_what_the_demo_is_about(pocket: Loaded) -> None:
    case = ew.demo_case()
    asked = [Statement(case["prompt"], case["truth"])]
    asked += [Statement(prompt, case["truth"]) for prompt in case["paraphrases"]]
    asked += [Statement(prompt, answer) for prompt, answer in case["neighbours"]]
    asked.append(Statement(case["two_hop"], case["two_hop_truth"]))
    hits = knowledge.correct(*pocket, asked)
    assert all(hits), [s.prompt for s, hit in zip(asked, hits, strict=True) if not hit]
    assert case["subject"] in case["prompt"]
    assert case["target"] != case["truth"]


def test_generation_with_a_cache_agrees_with_the_whole_forward_pass(pocket: Loaded) -> None:
    # The first blocks see two tokens only, which a key-value cache has to respect.
    model, tokenizer = pocket
    prompt = tokenizer(ew.demo_case()["prompt"], return_tensors="pt")
    runs = [model.generate(**prompt, max_new_tokens=8, do_sample=False, use_cache=cached)
            for cached in (True, False)]  # fmt: skip
    assert torch.equal(*runs)
    fused = AutoModelForCausalLM.from_pretrained(
        ew.pocket_path(), dtype=torch.float32, attn_implementation="sdpa"
    )
    torch.testing.assert_close(fused(**prompt).logits, model(**prompt).logits, atol=1e-4, rtol=1e-4)
