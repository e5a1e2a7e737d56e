"""Causal tracing: against the plain form, one row and one hook at a time, and by hand."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from tests.hooks import hooks
from tests.tiny_models import TINY, tiny_tokenizer
from torch import Tensor

from errata.case import Edit
from errata.errors import ConfigError, DataError, EditError, ModelError
from errata.model.lm import LM
from errata.model.passes import first, module_at, with_first
from errata.model.tokens import Row
from errata.tracing import trace as tracing
from errata.tracing.effects import (
    ROLES,
    SUBJECT_LAST,
    Trace,
    TraceSettings,
    choose,
    roles_of,
    window_of,
    window_size,
)
from errata.tracing.restore import Item, Runs, embedding_std, noise_of, together
from errata.tracing.trace import cached_choice, known_facts, trace

EXACT = 1e-12  # probabilities in float64: the same operations, other batches
SINGLE = dict.fromkeys(["gptj", "gpt_neox", "opt", "bloom", "gemma2", "gemma3"], 1e-6)
"""Architectures whose own code falls back to float32 (attention weights, norms)."""
PLANTED = 1e-9
"""The planted model is a GPT-J, which computes attention weights in float32; measured 9e-12."""
ARCHITECTURES = [
    "gpt2", "gptj", "gpt_neox", "opt", "bloom", "falcon", "llama", "qwen3", "gemma2", "gemma3",
]  # fmt: skip
PROMPTS = [
    ("The capital of France is", "France"),
    ("Danielle lives in", "Danielle"),
    ("Who is the mayor of Berlin? It is", "Berlin"),
]
SAMPLES = 2


def row_of(lm: LM, prompt: str, subject: str, answer: int = 7) -> Row:
    row = lm.row(prompt, None, subject)
    return Row(row.ids, row.positions, (answer,), row.prompt_length, row.subject)


def noise_for(lm: LM, rows: list[Row]) -> list[Tensor]:
    width = lm.embedding.shape[1]
    return [2 * embedding_std(lm, rows) * noise_of(row, SAMPLES, width, 0) for row in rows]


def plain(
    lm: LM, row: Row, noise: Tensor | None, place: str = "block", layers=(), tokens=()
) -> float:
    """Probability of the answer from whole forward passes over one row, restored by a hook."""
    ids = torch.tensor([row.ids])
    assert row.subject is not None
    start, end = row.subject[0], row.subject[1] + 1
    clean: dict[int, Tensor] = {}

    def corrupt(module, args, output):
        moved = first(output).clone()
        moved[0, start:end] += noise
        return with_first(output, moved)

    def note(layer: int) -> Callable:
        def hook(module, args, output):
            clean[layer] = first(output).clone().view(1, len(row.ids), -1)

        return hook

    def restore(layer: int) -> Callable:
        def hook(module, args, output):
            shape = first(output).shape
            moved = first(output).clone().view(1, len(row.ids), -1)
            for token in tokens:
                moved[0, token] = clean[layer][0, token]
            return with_first(output, moved.view(shape))

        return hook

    modules = {layer: module_at(lm, layer, place) for layer in layers}  # type: ignore[arg-type]
    with torch.no_grad():
        with hooks(*(m.register_forward_hook(note(n)) for n, m in modules.items())):
            logits = lm.model(ids).logits
        if noise is not None:
            handles = [m.register_forward_hook(restore(n)) for n, m in modules.items()]
            embedding = lm.module(lm.spec.embedding)
            with hooks(*handles, embedding.register_forward_hook(corrupt)):
                logits = lm.model(ids).logits
    return float(logits[0, -1].double().softmax(-1)[row.labels[0]])


@pytest.mark.parametrize(
    ("name", "cache"),
    [*((name, True) for name in ARCHITECTURES), ("qwen3", False), ("falcon", False)],
)
def test_stacked_restorations_are_those_of_the_plain_form(
    tiny: Callable[..., LM], name: str, cache: bool
) -> None:
    lm = tiny(name)
    tolerance = SINGLE.get(name, EXACT)
    rows = [row_of(lm, *pair) for pair in PROMPTS[:2]]
    noise = noise_for(lm, rows)
    runs = Runs(lm, rows, noise, cache=cache)
    for row, p in zip(rows, runs.answers().tolist(), strict=True):
        assert p == pytest.approx(plain(lm, row, None), abs=tolerance)
    items = [
        Item(number, (token,))
        for number, row in enumerate(rows)
        for token in (row.subject_last, len(row.ids) - 1)
    ]
    moved = 0.0
    for place, layers in (
        ("block", range(0, 1)),
        ("ffn", range(0, 2)),
        ("ffn", range(2, 3)),
        ("attn", range(1, 3)),
    ):
        found = runs.restored(items, place, layers)  # type: ignore[arg-type]
        for item, line in zip(items, found.tolist(), strict=True):
            for p, drawn in zip(line, noise[item.fact], strict=True):
                row = rows[item.fact]
                expected = plain(lm, row, drawn, place, layers, item.tokens)
                assert p == pytest.approx(expected, abs=tolerance)
                moved = max(moved, abs(p - plain(lm, row, drawn)))
    assert moved > 1e-4  # restoring does something


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "falcon"])
def test_everything_restored_is_the_clean_run_and_nothing_the_corrupted_one(
    tiny: Callable[..., LM], name: str
) -> None:
    lm = tiny(name)
    rows = [row_of(lm, *pair) for pair in PROMPTS]
    noise = noise_for(lm, rows)
    runs = Runs(lm, rows, noise)
    every = [
        Item(n, tuple(range(row.subject[0], len(row.ids))))  # type: ignore[index]
        for n, row in enumerate(rows)
    ]
    clean = runs.answers().double()[:, None].expand(-1, SAMPLES)
    for layer in range(lm.n_layers):
        found = runs.restored(every, "block", range(layer, layer + 1))
        torch.testing.assert_close(found, clean, rtol=0, atol=EXACT)
    none = [Item(n, ()) for n in range(len(rows))]
    for place, layers in (("block", range(1, 2)), ("ffn", range(0, 3)), ("attn", range(2, 3))):
        found = runs.restored(none, place, layers)  # type: ignore[arg-type]
        for row, line, drawn in zip(rows, found.tolist(), noise, strict=True):
            expected = [plain(lm, row, one) for one in drawn]
            assert line == pytest.approx(expected, abs=EXACT)
    assert (clean - found).abs().max() > 1e-4


def test_only_the_block_that_carries_the_subject_has_an_effect() -> None:
    """FFNs of all blocks but one are planted to answer nothing: nothing to restore there."""
    lm = planted(seed_answer=None)
    with torch.no_grad():
        for layer in (0, 2):
            site = lm.module(lm.site(layer).path)
            site.weight.zero_()
            site.bias.zero_()
    row = row_of(lm, *PROMPTS[0])
    runs = Runs(lm, [row], noise_for(lm, [row]))
    corrupted = runs.restored([Item(0, ())], "block", range(2, 3))
    effects = [
        float((runs.restored([Item(0, (row.subject_last,))], "ffn", range(n, n + 1)) - corrupted)
              .abs().max())
        for n in range(3)
    ]  # fmt: skip
    assert effects[0] < PLANTED
    assert effects[2] < PLANTED
    assert effects[1] > 100 * PLANTED


def planted(seed_answer: str | None = " Paris", max_tokens: int | None = None) -> LM:
    """A GPT-J whose head has a bias towards one token: it knows every fact with that answer."""
    model = TINY["gptj"]().to(torch.float64)
    tokenizer = tiny_tokenizer()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)
        if seed_answer is not None:
            token = tokenizer(seed_answer)["input_ids"][0]
            model.get_output_embeddings().bias[token] += 12
    return LM(model, tokenizer, name="planted", max_tokens=max_tokens)


def facts() -> list[Edit]:
    tokenizer = tiny_tokenizer()
    answer = tokenizer.decode(tokenizer(" Paris")["input_ids"][:1]).strip()
    return [Edit(prompt, answer, subject) for prompt, subject in PROMPTS]


SETTINGS = TraceSettings(samples=SAMPLES)


def test_only_known_facts_are_traced() -> None:
    lm = planted()
    wrong = Edit("The capital of Italy is", "Q", subject="Italy")
    known, rows, asked = known_facts(lm, [wrong, *facts()], limit=2)
    assert [edit.prompt for edit in known] == [prompt for prompt, _ in PROMPTS[:2]]
    assert asked == 3
    assert all(len(row.labels) == 1 and len(row.ids) == row.prompt_length for row in rows)
    found = trace(lm, [wrong, *facts()], SETTINGS, limit=2)
    assert len(found) == 2
    assert found.asked == 3


def test_the_table_is_the_mean_of_single_restorations() -> None:
    lm = planted()
    found = trace(lm, facts(), SETTINGS, data="three facts")
    _, rows, _ = known_facts(lm, facts())
    std = SETTINGS.noise * embedding_std(lm, rows)
    assert found.std == std
    for number, row in enumerate(rows):
        noise = std * noise_of(row, SAMPLES, lm.embedding.shape[1], SETTINGS.seed)
        below = sum(plain(lm, row, one) for one in noise) / SAMPLES
        assert float(found.clean[number]) == pytest.approx(plain(lm, row, None), abs=PLANTED)
        assert float(found.corrupted[number]) == pytest.approx(below, abs=PLANTED)
        for kind, place in (("hidden", "block"), ("ffn", "ffn")):
            for role, tokens in roles_of(row).items():
                expected = [
                    plain(lm, row, one, place, range(1, 2), (token,)) - below
                    for token in tokens
                    for one in noise
                ]
                value = float(found.effects[kind][number, role, 1])
                assert value == pytest.approx(sum(expected) / len(expected), abs=PLANTED)
    table = found.as_dict()
    assert table["facts_by_role"][SUBJECT_LAST] == 3
    assert table["effects"]["ffn"][SUBJECT_LAST] == pytest.approx(
        found.effects["ffn"][:, SUBJECT_LAST].mean(0).tolist()
    )
    spread = found.effects["ffn"][:, SUBJECT_LAST].std(0) / 3**0.5
    assert table["standard_errors"]["ffn"][SUBJECT_LAST] == pytest.approx(spread.tolist())


def test_noise_depends_on_seed_and_fact_alone() -> None:
    lm = planted()
    one, other = (row_of(lm, *pair) for pair in PROMPTS[:2])
    assert torch.equal(noise_of(one, 3, 8, 0), noise_of(one, 3, 8, 0))
    assert not torch.equal(noise_of(one, 3, 8, 0), noise_of(one, 3, 8, 1))
    large = noise_of(one, 400, 32, 0)
    assert float(large.std()) == pytest.approx(1, abs=0.02)
    assert noise_of(other, 3, 8, 0).shape[0] == 3
    before = torch.get_rng_state()
    first_time = trace(lm, facts(), SETTINGS, limit=1)
    assert torch.equal(torch.get_rng_state(), before)
    alone = trace(lm, facts()[:1], SETTINGS)
    torch.testing.assert_close(first_time.effects["ffn"], alone.effects["ffn"], equal_nan=True)
    again = trace(lm, facts()[:1], SETTINGS.model_copy(update={"seed": 5}))
    assert not torch.equal(again.corrupted, alone.corrupted)


def test_standard_deviation_of_the_subjects_embeddings() -> None:
    lm = planted()
    rows = [row_of(lm, *pair) for pair in PROMPTS]
    ids = [i for row in rows for i in row.ids[row.subject[0] : row.subject[1] + 1]]  # type: ignore[index]
    assert embedding_std(lm, rows) == pytest.approx(float(lm.embedding[ids].std()), rel=1e-12)


def test_the_model_is_left_as_it_was() -> None:
    lm = planted()
    before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
    trace(lm, facts(), SETTINGS)
    assert all(torch.equal(before[name], now) for name, now in lm.model.state_dict().items())
    for module in lm.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert "forward" not in vars(module)


def test_an_interrupted_trace_goes_on_and_ends_the_same(cache_folder: Path) -> None:
    whole = trace(planted(max_tokens=40), facts(), SETTINGS)
    for path in (cache_folder / "traces").rglob("*.*"):
        path.unlink()
    lm = planted(max_tokens=40)
    _, rows, _ = known_facts(lm, facts())
    assert len(list(together(lm, rows, SAMPLES))) > 1

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trace(lm, facts(), SETTINGS, progress=stop)
    assert cached_choice(lm) is None
    seen: list[int] = []
    resumed = trace(lm, facts(), SETTINGS, progress=lambda done, total: seen.append(done))
    assert seen
    assert seen[0] > 1  # the first group was there
    for kind, effects in whole.effects.items():
        assert torch.equal(effects.nan_to_num(9), resumed.effects[kind].nan_to_num(9))
    assert resumed.choice() == whole.choice()


def test_a_finished_trace_is_read_and_its_choice_kept(
    cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = planted()
    assert cached_choice(lm) is None
    small = trace(lm, facts(), SETTINGS, limit=2, kinds=("hidden",))
    assert small.choice() is None
    assert cached_choice(lm) is None
    large = trace(lm, facts(), SETTINGS, data="cities")
    assert cached_choice(lm) == large.choice()
    trace(lm, facts(), SETTINGS, limit=1)  # newer, but over fewer facts
    assert cached_choice(lm) == large.choice()
    assert "cities" in str(cached_choice(lm))

    def never(*args: object) -> None:
        raise AssertionError("traced again")

    monkeypatch.setattr(tracing, "_effects", never)
    assert trace(lm, facts(), SETTINGS, data="cities", kinds=("ffn",)).choice() == large.choice()
    other = planted()
    with torch.no_grad():
        other.embedding.mul_(1.5)
    assert cached_choice(other) is None
    for path in (cache_folder / "traces").rglob("*.json"):
        path.write_text(path.read_text().replace("cities", "citie"))
    assert cached_choice(lm) is None or cached_choice(lm).facts == 1  # type: ignore[union-attr]


def test_choice_by_hand() -> None:
    effects = torch.zeros(4, len(ROLES), 12, dtype=torch.float64)
    effects[:, SUBJECT_LAST, 7] = 0.5
    effects[0, SUBJECT_LAST, 2] = 1.0  # one fact of four disagrees
    effects[:, 5, 11] = 0.9  # the last token does not count
    ones = torch.ones(4, dtype=torch.float64)
    found = Trace("m", "f", "d", 4, 0.1, 1, SETTINGS, ones, ones, {"ffn": effects}, "x")
    chosen = choose(found)
    assert chosen.layer == 7
    assert chosen.layers == (4, 5, 6, 7)
    assert chosen.effect == pytest.approx(0.5)
    # another block wins only if the disagreeing fact is drawn three or four times out of four
    exactly = 1 - (4 * 0.25**3 * 0.75 + 0.25**4)
    # at two draws the effects tie (0.5 and 0.5): the earlier block is taken
    tie = 6 * 0.25**2 * 0.75**2
    assert chosen.agreement == pytest.approx(exactly - tie, abs=0.05)
    shallow = Trace("m", "f", "d", 4, 0.1, 1, SETTINGS, ones, ones, {"ffn": effects[:, :, :3]}, "x")
    assert choose(shallow).layers == (2,)


def test_roles_by_hand() -> None:
    def roles(subject: tuple[int, int], length: int) -> dict[str, list[int]]:
        row = Row(tuple(range(length)), (length - 1,), (0,), length, subject)
        return {ROLES[role]: tokens for role, tokens in roles_of(row).items()}

    assert roles((2, 5), 10) == {
        "first subject token": [2],
        "middle subject tokens": [3, 4],
        "last subject token": [5],
        "first token after": [6],
        "middle tokens after": [7, 8],
        "last token": [9],
    }
    assert roles((1, 1), 3) == {"last subject token": [1], "last token": [2]}
    assert roles((0, 1), 2) == {"first subject token": [0], "last subject token": [1]}


def test_windows() -> None:
    auto = TraceSettings()
    sizes = {n: window_size(auto, n) for n in (1, 3, 7, 12, 24, 28, 30, 48)}
    assert sizes == {1: 1, 3: 1, 7: 1, 12: 3, 24: 7, 28: 9, 30: 10, 48: 10}
    assert window_size(TraceSettings(window=10), 7) == 7
    assert list(window_of(17, 10, 48)) == list(range(12, 22))  # as published: l - 5 to l + 4
    assert list(window_of(0, 3, 12)) == [0, 1]
    assert list(window_of(11, 3, 12)) == [10, 11]


def test_mistakes_are_named() -> None:
    lm = planted()
    with pytest.raises(ConfigError, match="hiden"):
        trace(lm, facts(), SETTINGS, kinds=("hiden",))
    with pytest.raises(ConfigError, match="no kind"):
        trace(lm, facts(), SETTINGS, kinds=())
    with pytest.raises(DataError, match="none of 1 facts"):
        trace(lm, [Edit("The capital of Italy is", "Q", subject="Italy")], SETTINGS)
    with pytest.raises(EditError, match="no subject"):
        trace(lm, [Edit("The capital of Italy is", "Rome")], SETTINGS)
    with pytest.raises(EditError, match="does not occur"):
        trace(lm, [Edit("The capital of Italy is", "Rome", subject="Spain")], SETTINGS)
    with torch.no_grad():
        lm.embedding[0, 0] = float("nan")
    with pytest.raises(ModelError, match="NaN"):
        trace(lm, facts(), SETTINGS)


def test_nothing_is_left_behind_by_an_error() -> None:
    """Nothing of a trace outlives an exception in the middle of a forward pass."""
    lm = planted()
    row = row_of(lm, *PROMPTS[0])
    runs = Runs(lm, [row], noise_for(lm, [row]))

    def fail(*args: object) -> None:
        raise RuntimeError("stop")

    with ExitStack() as context:
        context.enter_context(
            hooks(lm.module(lm.spec.head).register_forward_pre_hook(fail))  # type: ignore[arg-type]
        )
        with pytest.raises(RuntimeError, match="stop"):
            runs.restored([Item(0, (row.subject_last,))], "ffn", range(1, 2))
    assert all("forward" not in vars(module) for module in lm.model.modules())
    assert not any(module._forward_hooks for module in lm.model.modules())
