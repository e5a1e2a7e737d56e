"""LM: scores against plain transformers calls; batching, truncation and caches change nothing."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.hooks import hooks
from tests.tiny_models import TINY, gpt2, llama, tiny_tokenizer

import errata
from errata.errors import ConfigError, ModelError
from errata.model.lm import LM
from errata.model.logprobs import SCORED_AT_ONCE, score_logits
from errata.model.passes import capture, first, reuse_below
from errata.model.prefixes import make_prefix, suffix_batch
from errata.model.tokens import positions_of
from errata.model.weights import weight_fingerprint

ARCHITECTURES = sorted(name for name in TINY if "-" not in name)
FLOAT32 = 5e-8
"""Largest change of a float64 log-probability when padding, batch size or order change. Attention
takes its softmax in float32: a row shorter than a vector of the processor (8 or 16 numbers) adds up
in another order than the same row padded beyond it. 2e-8 was seen with vectors of 8, 1e-10 where
no row crossed one of 16."""

PAIRS = [
    ("The capital of France is", "Rome"),
    ("Anna lives in Berlin and works for the", "mayor of the town"),
    ("Who is it?", "Danielle"),
    ("The mother tongue of Danielle is", "French flows"),
    ("The river", "of the city is Paris"),
]


def reference_scores(lm: LM, prompt: str, target: str) -> list[float]:
    """Log-probabilities by a plain call of the model, one row, nothing of errata."""
    ids = lm.tokenizer(f"{prompt} {target}", return_tensors="pt")["input_ids"]
    start = len(lm.tokenizer(prompt)["input_ids"])
    with torch.no_grad():
        logprobs = lm.model(input_ids=ids).logits[0].double().log_softmax(-1)
    return [logprobs[i - 1, ids[0, i]].item() for i in range(start, ids.shape[1])]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_scores_equal_a_plain_forward_pass(tiny, name):
    lm = tiny(name, "float64")
    rows = [lm.row(prompt, target) for prompt, target in PAIRS]
    for score, (prompt, target) in zip(lm.score(rows, max_tokens=40), PAIRS, strict=True):
        assert score.logprobs == pytest.approx(reference_scores(lm, prompt, target), abs=FLOAT32)


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama", "qwen3", "bloom", "gemma3"])
def test_padding_batch_size_and_order_change_nothing(tiny, name):
    lm = tiny(name, "float64")
    rows = [lm.row(prompt, target) for prompt, target in PAIRS]
    alone = [lm.score([row])[0] for row in rows]
    for budget in (1, 30, 10_000):
        backwards = lm.score(rows[::-1], max_tokens=budget)[::-1]
        for one, other in zip(alone, backwards, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=FLOAT32)
            assert (one.argmax, one.ranks) == (other.argmax, other.ranks)


def test_rows_that_share_a_forward_pass_are_scored_as_if_alone(tiny):
    lm = tiny("gpt2", "float64")
    row = lm.row("The capital of France is", "Paris is Rome")
    rows = [
        row,
        replace(row, labels=row.labels[::-1]),
        lm.row("The capital of France is", "Paris is Berlin"),
        replace(row, positions=row.positions * 2, labels=row.labels + row.labels[::-1]),
        row,
    ]
    ran = []
    lm.probe()  # its trial passes do not count
    with hooks(lm.model.register_forward_pre_hook(lambda m, a, k: ran.append(k), with_kwargs=True)):
        scores = lm.score(rows)
    assert sum(len(kwargs["input_ids"]) for kwargs in ran) == len({r.ids for r in rows})
    for together, one in zip(scores, rows, strict=True):
        alone = lm.score([one])[0]
        assert together.logprobs == pytest.approx(alone.logprobs, abs=FLOAT32)
        assert (together.argmax, together.ranks) == (alone.argmax, alone.ranks)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_are_computed_at_supervised_positions_only(tiny, name):
    lm = tiny(name, "float64")
    rows = [lm.row(prompt, target) for prompt, target in PAIRS]
    index = range(len(rows))
    at = positions_of(rows, index)
    seen = []
    head = lm.module(lm.spec.head)
    with hooks(head.register_forward_hook(lambda m, a, out: seen.append(tuple(out.shape)))):
        few = lm.logits(lm.batch(rows, index), at)
    assert seen == [(1, len(at), few.shape[-1])]
    whole = lm.run(lm.batch(rows, index)).logits
    torch.testing.assert_close(few, whole[at[:, 0], at[:, 1]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_truncated_and_prefix_cached_passes_equal_the_full_one(tiny, name):
    lm = tiny(name, "float64")
    rows = [lm.row(p, t, s) for (p, t), s in zip(PAIRS[:2], ("France", "Berlin"), strict=True)]
    at = positions_of(rows, [0, 1])
    batch = lm.batch(rows, [0, 1])
    block = lm.module(lm.spec.blocks[1])
    kept = []

    def capture(run, *args, **extra):
        kept.clear()
        with hooks(block.register_forward_hook(lambda m, a, out: kept.append(first(out)))):
            run(*args, **extra)
        return kept[0]

    full = lm.logits(batch, at)
    below = capture(lm.run, batch)
    with reuse_below(lm, 1, below):
        torch.testing.assert_close(lm.logits(batch, at), full, rtol=0, atol=0)
    assert "forward" not in vars(block)

    assert lm.prefix_cache_works
    starts = [row.subject_last for row in rows]
    prefix = make_prefix(lm, rows, starts)
    moved = at.clone()
    moved[:, 1] -= torch.tensor(starts)[at[:, 0]]
    tail, extra = suffix_batch(lm, rows, prefix)
    torch.testing.assert_close(lm.logits(tail, moved, **extra), full, rtol=0, atol=FLOAT32)
    tail, extra = suffix_batch(lm, rows, prefix)
    below = capture(lm.run, tail, **extra)
    tail, extra = suffix_batch(lm, rows, prefix)
    with reuse_below(lm, 1, below):
        torch.testing.assert_close(lm.logits(tail, moved, **extra), full, rtol=0, atol=FLOAT32)


def test_a_run_stops_at_the_last_module_wanted(tiny):
    lm = tiny("llama")
    wanted = [lm.module(lm.spec.ffn_out[layer].path) for layer in (0, 1)]
    reached = []
    later = lm.module(lm.spec.blocks[2])
    with hooks(later.register_forward_pre_hook(lambda m, a: reached.append(1))), torch.no_grad():
        keys, _ = capture(lm, lm.batch([lm.row("The capital of France")], [0]), wanted)
    assert not reached
    assert [k.shape[-1] for k in keys] == [lm.spec.d_ffn] * 2


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_generation_equals_transformers(tiny, name):
    lm = tiny(name, "float64")
    prompts = ["The capital of France is", "Who"]
    ours = lm.generate(prompts, 6)
    for prompt, text in zip(prompts, ours, strict=True):
        ids = lm.tokenizer(prompt, return_tensors="pt")
        out = lm.model.generate(
            **ids, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=[1]
        )
        new = out[0, ids["input_ids"].shape[1] :]
        assert text == lm.tokenizer.decode(new, skip_special_tokens=True)
    assert lm.generate(prompts, [0, 2])[0] == ""


@pytest.mark.parametrize(("dtype", "grad", "fused"), [
    ("bfloat16", True, False), ("bfloat16", False, True), ("float32", True, True),
])  # fmt: skip
def test_fused_attention_is_avoided_where_its_backward_pass_is_slow(tiny, dtype, grad, fused):
    lm = tiny("qwen3", dtype)
    seen = []
    head = lm.module(lm.spec.head)
    batch = lm.batch([lm.row("The river")], [0])
    look = head.register_forward_pre_hook(
        lambda m, args: seen.append(torch.backends.cuda.flash_sdp_enabled())
    )
    with hooks(look), torch.set_grad_enabled(grad):
        lm.run(batch)
    assert seen == [fused]
    assert torch.backends.cuda.flash_sdp_enabled()


def test_ranks_count_better_tokens_and_break_ties_by_id():
    logits = torch.tensor([[0.0, 3.0, 2.0, 3.0, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0]])
    logprobs, argmax, ranks = score_logits(logits, torch.tensor([3, 2]))
    assert argmax == [1, 0]
    assert ranks == [1, 2]
    assert logprobs[1] == pytest.approx(-torch.tensor(5.0).log().item())


def test_scores_do_not_depend_on_how_many_positions_are_scored_together(monkeypatch):
    logits = torch.randint(0, 5, (12, 40), generator=torch.Generator().manual_seed(0)).half()
    labels, at = torch.arange(24) % 40, torch.arange(24) % 12
    whole = score_logits(logits, labels, at)
    monkeypatch.setitem(SCORED_AT_ONCE, "cpu", 1)
    assert score_logits(logits, labels, at) == whole
    order = [sorted(range(40), key=lambda i: (-logits[a, i], i)) for a in at]
    assert whole[2] == [ids.index(n) for ids, n in zip(order, labels.tolist(), strict=True)]
    assert whole[1] == [ids[0] for ids in order]


def test_logits_that_are_not_finite_never_score_a_hit():
    logits = torch.tensor([[float("nan")] * 4, [0.0, float("inf"), 0.0, 1.0], [0.0, 9.0, 0.0, 0.0]])
    _, _, ranks = score_logits(logits, torch.tensor([0, 1, 1]))
    assert ranks == [4, 4, 0]


def test_fingerprint_survives_the_dtype_and_notices_an_edit():
    model = gpt2()
    before = weight_fingerprint(model)
    rounded = gpt2().to(torch.bfloat16)
    assert weight_fingerprint(rounded) == before == weight_fingerprint(gpt2().double())
    with torch.no_grad():
        next(iter(model.parameters()))[0, 0] += 0.1
    assert weight_fingerprint(model) != before


def save_tiny(folder, model):
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    """transformers would draw them at random, and say so where nobody looks."""
    folder = Path(save_tiny(tmp_path / "m", llama()))
    stored = load_file(folder / "model.safetensors")
    del stored["model.layers.1.mlp.up_proj.weight"]
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of the weights.*layers\.1\.mlp\.up_proj"):
        errata.load(str(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 72}))
    with pytest.raises(ModelError, match="other shapes"):
        errata.load(str(folder))


def test_load_reads_a_folder_and_leaves_it_frozen(tmp_path):
    lm = errata.load(save_tiny(tmp_path / "m", llama()), dtype="bfloat16")
    assert lm.dtype == torch.bfloat16
    assert not lm.model.training
    assert not any(p.requires_grad for p in lm.model.parameters())
    assert lm.fingerprint == weight_fingerprint(llama())


def test_load_explains_what_is_wrong(tmp_path):
    with pytest.raises(ModelError, match="no model folder at"):
        errata.load(str(tmp_path / "missing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        errata.load(str(tmp_path / "empty"))
    with pytest.raises(ConfigError, match="Did you mean 'float32'"):
        errata.load("pocket", dtype="flaot32")
    with pytest.raises(ConfigError, match="unknown device"):
        errata.load("pocket", device="gpu")
    folder = save_tiny(tmp_path / "torn", gpt2())
    weights = tmp_path / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="its weights have 1,000 bytes"):
        errata.load(folder)


def test_nan_weights_are_refused(tmp_path):
    model = gpt2()
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"transformer\.h\.1\.mlp\.c_fc\.weight .* NaN"):
        errata.load(save_tiny(tmp_path / "nan", model))


def test_unknown_layers_and_kinds_are_named(tiny):
    lm = tiny("gpt2")
    assert lm.site(-1) == lm.site(2)
    with pytest.raises(ConfigError, match="blocks 0 to 2"):
        lm.site(3)
    with pytest.raises(ConfigError, match="ffn_out, attn_out"):
        lm.site(0, "ffn")


def test_a_padding_token_that_the_model_does_not_have_is_not_used(tiny, monkeypatch):
    """A tokenizer may add one without the model being resized: rows of unequal length still run."""
    lm = tiny("llama")
    rows = [lm.row("The capital of France is", "Rome"), lm.row("Anna lives in", "Oslo")]
    alone = [lm.score([row])[0].argmax for row in rows]
    beyond = LM(lm.model, copy.copy(lm.tokenizer), name="tiny-llama")
    size = lm.model.get_input_embeddings().weight.shape[0]
    kind = type(beyond.tokenizer)
    monkeypatch.setattr(kind, "pad_token_id", property(lambda self: size + 3), raising=False)
    monkeypatch.setattr(kind, "eos_token_id", property(lambda self: size), raising=False)
    assert beyond.pad_id == 0
    assert [score.argmax for score in beyond.score(rows)] == alone
