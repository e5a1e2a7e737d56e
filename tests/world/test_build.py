"""A model is built from nothing, learns, resumes bit for bit, and loads in plain transformers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from errata import world as ew
from errata.errors import ConfigError, RunError
from errata.world import knowledge, train
from errata.world.batches import SAMPLED_WEIGHT, Packer, masks
from errata.world.optim import Muon, orthogonalise, schedule
from errata.world.tokenizer import EOS

pytestmark = pytest.mark.timeout(900)  # 30 CPU-seconds with products in bfloat16, 90 without

TINY = replace(train.RECIPES["test"], hidden=64, heads=1, ffn=64, layers=2, near=1, statements=16)


class Killed(Exception):
    """Stands for a process that dies."""


@pytest.mark.slow
def test_the_test_size_build(tmp_path: Path, small_world: ew.World) -> None:
    """One test, as the build takes long: what it knows, its folder, and what it says by itself."""
    out = tmp_path / "model"
    card = ew.build(out, scale="test", device="cpu")
    known = card["knowledge"]
    assert known["direct_heldout"] >= 0.8
    assert known["alias"] >= 0.7
    assert known["hop_stated"] >= 0.7

    names = {path.name for path in out.iterdir()}
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json",
            "tokenizer_config.json", "card.json"} <= names  # fmt: skip
    assert train.CHECKPOINT not in names
    assert json.loads((out / "card.json").read_text()) == card
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    assert model.config.tie_word_embeddings
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.eos_token == tokenizer.pad_token == EOS
    model = model.float()
    scores = ew.measure(model, tokenizer, small_world, limit=100)
    assert scores["counts"]["direct_heldout"] == 100
    assert scores["direct_heldout"] > 0.7

    asked = knowledge.questions(small_world)["direct_heldout"][:40]
    hits = knowledge.correct(model, tokenizer, asked, batch=7)
    for statement, hit in zip(asked, hits, strict=True):  # a hit is what generate says
        prompt = tokenizer(statement.prompt, return_tensors="pt")
        ids = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0]
        text = tokenizer.decode(ids[prompt["input_ids"].shape[1] :])
        assert (text.split(".")[0].strip() == statement.answer) == hit


def run(out: Path, **options: Any) -> dict[str, Any]:
    options = {"steps": 6, "recipe": TINY, **options}
    return train.build(out, "test", device="cpu", **options)


@pytest.mark.parametrize("steps", [6, 4, 3], ids=["one", "at-encore", "in-encore"])
def test_a_killed_build_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    cut: dict[str, Any] = {"steps": steps, "recipe": replace(TINY, encore=6 - steps)}
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(train, "PROGRESS_EVERY", 5)

    def die(report: dict[str, Any]) -> None:
        raise Killed

    with pytest.raises(Killed):
        run(tmp_path / "killed", progress=die, **cut)
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    card = run(tmp_path / "killed", resume=True, **cut)
    assert card["resumed_at"] == 4
    run(tmp_path / "whole", **cut)
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("killed", "whole"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_resuming_another_configuration_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(train, "PROGRESS_EVERY", 3)

    def die(report: dict[str, Any]) -> None:
        raise Killed

    with pytest.raises(Killed):
        run(tmp_path, progress=die)
    with pytest.raises(RunError, match="seed = 0, not 1"):
        run(tmp_path, resume=True, seed=1)


def test_progress_is_reported(tmp_path: Path) -> None:
    reports: list[dict[str, Any]] = []
    run(tmp_path, progress=reports.append)
    assert [report["step"] for report in reports] == [6]
    assert set(reports[0]) == {"step", "steps", "loss", "seconds"}


def test_bad_arguments_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown scale"):
        ew.build(tmp_path, scale="huge")
    with pytest.raises(ConfigError, match="steps must be positive"):
        ew.build(tmp_path, scale="test", steps=0)


def test_packed_statements_do_not_see_each_other(small_world: ew.World) -> None:
    from errata.world import tokenizer as bpe

    tokenizer = bpe.train(small_world)
    torch.manual_seed(0)
    model = train.new_model(TINY, len(tokenizer), tokenizer.eos_token_id, 0).float()
    batch = Packer(ew.Corpus(small_world), tokenizer, 12, 40)(3)
    packed = model.model(
        batch.ids,
        position_ids=batch.positions,
        attention_mask=masks(batch, TINY.window, torch.float32),
    ).last_hidden_state
    for row, number in {
        (r, n) for r, own in enumerate(batch.owner.tolist()) for n in own if n >= 0
    }:
        mine = batch.owner[row] == number
        alone = model.model(batch.ids[row, mine][None]).last_hidden_state[0]
        torch.testing.assert_close(packed[row, mine], alone, atol=1e-5, rtol=1e-4)


def test_learned_positions_are_the_answers_and_a_sample(small_world: ew.World) -> None:
    from errata.world import tokenizer as bpe

    tokenizer = bpe.train(small_world)
    source = ew.Corpus(small_world)
    batch = Packer(source, tokenizer, 20, 40)(0)
    full = batch.target[batch.weight == 1.0].tolist()
    expected: list[int] = []
    for number in range(20):
        begin = len(tokenizer(source[number].prompt)["input_ids"])
        expected += tokenizer(source[number].text)["input_ids"][begin:]
    assert sorted(full) == sorted(expected)
    assert batch.weight.unique().tolist() == pytest.approx([SAMPLED_WEIGHT, 1.0])


def test_the_tokenizer_round_trips_and_keeps_words_whole(small_world: ew.World) -> None:
    from errata.world import tokenizer as bpe

    tokenizer = bpe.train(small_world)
    for sentence in [*ew.texts(small_world, 200), "Naive cafe, 12 % off!", "Ünïcode 漢字"]:
        assert tokenizer.decode(tokenizer(sentence)["input_ids"]) == sentence
    for entity in small_world.entities.values():
        words = entity.label.replace("'", " '").replace("-", " -").split()
        assert len(tokenizer(entity.label)["input_ids"]) <= len(words) + 2
    both = tokenizer("Paris")["input_ids"], tokenizer("to Paris")["input_ids"][1:]
    assert both[0] == both[1]


def test_fast_norms_agree_with_transformers() -> None:
    model = train.new_model(TINY, 50, 0, 0).float()
    ids = torch.arange(24).reshape(2, 12)
    plain = model(ids).logits
    plain.square().sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    train._use_fast_norms(model)
    fast = model(ids).logits
    fast.square().sum().backward()
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-4)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-3, rtol=1e-3)


def test_orthogonalise_flattens_the_spectrum() -> None:
    generator = torch.Generator().manual_seed(0)
    stack = torch.randn(3, 16, 40, generator=generator)
    values = torch.linalg.svdvals(orthogonalise(stack).float())
    assert values.min() > 0.5
    assert values.max() < 1.4


def test_the_optimiser_rounds_its_masters_into_the_model() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 4, dtype=torch.bfloat16))
    gain = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimiser = Muon([("layer.weight", weight), ("norm", gain)])
    for step in range(3):
        weight.grad, gain.grad = torch.eye(4).bfloat16(), torch.ones(4).bfloat16()
        optimiser.step(step, 0.01)
    # One such step is below bfloat16's resolution at 1: only the master can add them up.
    assert (optimiser.state["norm.master"] < 1).all()
    assert torch.equal(weight, optimiser.state["muon.4x4.master"][0].bfloat16())
    assert weight.grad is None


def test_the_schedule_warms_up_and_decays_to_zero() -> None:
    rates = [schedule(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[100] == rates[374] == 1.0
    assert rates[999] == pytest.approx(1 / 625)
    assert max(rates) == 1.0


# Both round to bfloat16 in each of the five steps of the orthogonalisation, in another order: the
# updates differ by some units in the last place, which is 2^-8 of a value (3.0 to 4.9 were seen).
# A wrong momentum, decay or size of the step shows as a multiple of that.
MUON_ULPS = 6


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has had Muon since 2.9")
@pytest.mark.parametrize("shape", [(64, 64), (64, 160), (160, 64)])
def test_our_muon_takes_the_steps_of_torchs(shape: tuple[int, int]) -> None:
    draw = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=draw) for _ in range(3)]
    weights = [weight.clone() for weight in start]
    ours = Muon([(f"{n}.weight", weight) for n, weight in enumerate(weights)])
    references = [torch.nn.Parameter(weight.clone()) for weight in start]
    theirs = torch.optim.Muon(
        references, lr=ours.lr, weight_decay=ours.weight_decay, momentum=ours.momentum
    )
    for number in range(4):
        before = [(w.clone(), r.detach().clone()) for w, r in zip(weights, references, strict=True)]
        for weight, reference in zip(weights, references, strict=True):
            weight.grad = torch.randn(shape, generator=draw)
            reference.grad = weight.grad.clone()
        ours.step(number, 1.0)
        theirs.step()
        for weight, reference, (old, old_reference) in zip(
            weights, references, before, strict=True
        ):
            step, wanted = weight - old, reference.detach() - old_reference
            assert (step - wanted).norm() < MUON_ULPS * 2**-8 * wanted.norm()
