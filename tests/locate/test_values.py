"""Oracle T10: target values against a plain transcription of the recipe, and against themselves."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from tests.hooks import hooks
from tests.locate.samples import EDITS
from torch import Tensor

from errata.case import Edit
from errata.errors import EditError
from errata.locate import rows as rows_module
from errata.locate import values as values_module
from errata.locate.contexts import Contexts, given_contexts
from errata.locate.rows import Rows, Savings, plan_chunks
from errata.locate.stream import ffn_adds_to_block
from errata.locate.values import Adaptive, Values, ValueSettings, optimise_values
from errata.model.lm import LM
from errata.model.passes import first, module_at, with_first
from errata.model.tokens import positions_of
from errata.patch import LowRank, Patch

EXACT = 1e-10  # float64; operations run in another order, nothing else differs
SINGLE = dict.fromkeys(["gptj", "gpt_neox", "opt", "bloom", "gemma2"], 1e-6)
"""Architectures whose own code falls back to float32 (attention weights, norms); measured 3e-8."""
CONTEXTS = given_contexts(["{}", "I think so. {}", "He said that it was late in the day. {}"])
SETTINGS = ValueSettings(steps=6, clamp=4.0)
PLAIN = Savings(truncate=False, prefix_cache=False, answer_only=False)
ARCHITECTURES = ["gpt2", "gptj", "gpt_neox", "opt", "bloom", "falcon", "llama", "qwen3", "gemma2"]


def plain_recipe(
    lm: LM,
    edit: Edit,
    layer: int,
    settings: ValueSettings,
    place: str = "ffn",
    contexts: Contexts = CONTEXTS,
    enough: float = float("inf"),
) -> tuple[Tensor, Tensor, list[float]]:
    """One edit, one row at a time, torch's Adam: what the references say, word for word."""
    subject = str(edit.subject)
    rows = [lm.row(edit.prompt, edit.target, subject, prefix=c) for c in contexts.prefixes]
    essence = lm.row(f"{subject} is a", None, subject)
    module = module_at(lm, layer, place)  # type: ignore[arg-type]
    delta = torch.zeros(lm.site(layer).d_out, dtype=torch.float64, requires_grad=True)
    seen: list[Tensor] = []

    def logits(row, positions: list[int]) -> Tensor:
        def add(m, args, output):
            states = first(output)
            seen.append(states[0, row.subject_last].detach().clone())
            mask = torch.zeros_like(states)
            mask[0, row.subject_last] = 1
            return with_first(output, states + mask * delta)

        with hooks(module.register_forward_hook(add)):
            return lm.run(lm.batch([row], [0])).logits[0][positions]

    optimiser = torch.optim.Adam([delta], lr=settings.lr)
    base = v0 = None
    losses, times = [], 0
    for step in range(settings.steps):
        nll, said = torch.zeros((), dtype=torch.float64), True
        for row in rows:
            logp = logits(row, list(row.positions)).log_softmax(-1)
            said &= logp.argmax(-1).tolist() == list(row.labels)
            nll = nll - logp[torch.arange(len(row.labels)), list(row.labels)].mean() / len(rows)
            v0 = seen[0] if v0 is None else v0
        logp = logits(essence, [essence.subject_last])[0].log_softmax(-1)
        base = logp.detach() if base is None else base
        kl = (logp.exp() * (logp - base)).sum()
        loss = nll + settings.kl_factor * kl
        loss = loss + settings.weight_decay * delta.norm() / v0.norm() ** 2
        losses.append(loss.item())
        times += said
        if loss < settings.stop_loss or step == settings.steps - 1 or times >= enough:
            break
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            if delta.norm() > settings.clamp * v0.norm():
                delta *= settings.clamp * v0.norm() / delta.norm()
    assert v0 is not None
    return delta.detach(), v0, losses


def same(a: Values, b: Values, tolerance: float = EXACT) -> None:
    assert a.updates == b.updates
    for place in a.delta:
        for one, other in ((a.delta, b.delta), (a.start, b.start)):
            torch.testing.assert_close(one[place], other[place], rtol=tolerance, atol=tolerance)
    for one, other in zip(a.losses, b.losses, strict=True):
        assert one == pytest.approx(other, rel=tolerance, abs=tolerance)


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "gemma2"])
@pytest.mark.parametrize("place", ["ffn", "block"])
def test_T10_it_follows_the_recipe(tiny: Callable[..., LM], name: str, place: str) -> None:
    lm = tiny(name)
    # a tight clamp and a strong KL term, so that both matter
    settings = ValueSettings(steps=6, clamp=1.5, kl_factor=2.0)
    found = optimise_values(lm, EDITS, CONTEXTS, 1, settings, places=(place,))
    near = SINGLE.get(name, EXACT)
    for i, edit in enumerate(EDITS):
        delta, v0, losses = plain_recipe(lm, edit, 1, settings, place)
        torch.testing.assert_close(found.delta[place][i], delta, rtol=near, atol=near)
        torch.testing.assert_close(found.start[place][i], v0, rtol=near, atol=near)
        torch.testing.assert_close(found.target(place)[i], v0 + delta, rtol=near, atol=near)
        assert found.losses[i] == pytest.approx(losses, rel=near, abs=near)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("layer", [0, 1])
def test_T10_savings_change_nothing(tiny: Callable[..., LM], name: str, layer: int) -> None:
    lm = tiny(name)
    plain = optimise_values(lm, EDITS, CONTEXTS, layer, SETTINGS, savings=PLAIN)
    for savings in (
        Savings(truncate=True, prefix_cache=False, answer_only=False),
        Savings(truncate=False, prefix_cache=True, answer_only=False),
        Savings(truncate=False, prefix_cache=False, answer_only=True),
        Savings(),
    ):
        found = optimise_values(lm, EDITS, CONTEXTS, layer, SETTINGS, savings=savings)
        same(found, plain, SINGLE.get(name, EXACT))


def stops_apart(lm: LM) -> ValueSettings:
    """Settings under which the edits stop at different steps: a threshold among the losses seen."""
    settings = ValueSettings(lr=0.05, stop_loss=0.0, steps=8, weight_decay=0.01)
    losses = optimise_values(lm, EDITS, CONTEXTS, 1, settings).losses
    return settings.model_copy(update={"stop_loss": sorted(x[4] for x in losses)[2]})


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_T10_together_is_one_by_one(tiny: Callable[..., LM], name: str) -> None:
    lm = tiny(name)
    settings = stops_apart(lm)
    together = optimise_values(lm, EDITS, CONTEXTS, 1, settings)
    alone = [optimise_values(lm, [edit], CONTEXTS, 1, settings) for edit in EDITS]
    assert len(set(together.updates)) > 1
    same(
        together,
        Values(
            {"ffn": torch.cat([v.start["ffn"] for v in alone])},
            {"ffn": torch.cat([v.delta["ffn"] for v in alone])},
            [v.updates[0] for v in alone],
            [v.losses[0] for v in alone],
        ),
    )


@pytest.mark.parametrize("bos", [False, True])
def test_T10_a_subject_in_first_place(tiny: Callable[..., LM], bos: bool) -> None:
    """Nothing stands before the subject's only token, so there is no prefix to keep."""
    lm = tiny("llama", "float64", bos)
    edit = Edit("A lives in", "Paris", subject="A")
    bare = given_contexts([])
    assert lm.row(edit.prompt, edit.target, "A").subject_last == int(bos)
    plain = optimise_values(lm, [edit], bare, 1, SETTINGS, savings=PLAIN)
    same(optimise_values(lm, [edit], bare, 1, SETTINGS), plain)


def test_T10_dropping_finished_edits_changes_nothing(
    tiny: Callable[..., LM], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny("gpt2")
    settings = stops_apart(lm)
    for savings in (Savings(), PLAIN):
        monkeypatch.setattr(values_module, "DROP_SHARE", 2.0)
        kept = optimise_values(lm, EDITS, CONTEXTS, 1, settings, savings=savings)
        monkeypatch.setattr(values_module, "DROP_SHARE", 0.0)
        same(optimise_values(lm, EDITS, CONTEXTS, 1, settings, savings=savings), kept)


def test_T10_chunks_and_padding_change_nothing(
    tiny: Callable[..., LM], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny("qwen3")
    long = Edit("In a very long prompt with many words France is", "Rome", subject="France")
    whole = optimise_values(lm, [*EDITS, long], CONTEXTS, 1, SETTINGS)
    monkeypatch.setattr(lm, "max_tokens", 1)  # every edit in a chunk of its own, hardly padded
    same(optimise_values(lm, [*EDITS, long], CONTEXTS, 1, SETTINGS), whole)


def test_what_gradients_may_hold_parts_edits_on_a_cpu_only(
    tiny: Callable[..., LM], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wide products stay together; beyond them memory counts, and the values are the same."""
    lm = tiny("qwen3")
    parts = lambda: [chunk for chunk, _ in plan_chunks(lm, EDITS, CONTEXTS)]  # noqa: E731
    assert len(parts()) == 1
    whole = optimise_values(lm, EDITS, CONTEXTS, 1, SETTINGS)
    monkeypatch.setattr(rows_module, "HELD_BUDGET", 1)
    assert len(parts()) == 1  # fewer rows than a product may well have
    monkeypatch.setattr(rows_module, "WIDE", 1)
    assert sorted(map(len, parts())) == [1] * len(EDITS)
    same(optimise_values(lm, EDITS, CONTEXTS, 1, SETTINGS), whole)
    monkeypatch.setattr(type(lm), "device", torch.device("cuda"))
    assert rows_module._tokens_held(lm) == math.inf


def test_T10_at_the_start_there_is_only_the_likelihood(tiny: Callable[..., LM]) -> None:
    lm = tiny("gpt2")
    found = optimise_values(lm, EDITS, CONTEXTS, 1, SETTINGS)
    for edit, losses in zip(EDITS, found.losses, strict=True):
        rows = [lm.row(edit.prompt, edit.target, prefix=c) for c in CONTEXTS.prefixes]
        scores = lm.score(rows)
        nll = -sum(sum(s.logprobs) / len(s.logprobs) for s in scores) / len(scores)
        assert losses[0] == pytest.approx(nll, rel=EXACT)


def test_T10_the_clamp_is_never_exceeded(tiny: Callable[..., LM]) -> None:
    settings = ValueSettings(steps=8, clamp=0.3, lr=2.0)
    found = optimise_values(tiny("gpt2"), EDITS, CONTEXTS, 1, settings)
    ratio = found.delta["ffn"].norm(dim=-1) / found.start["ffn"].norm(dim=-1)
    assert (ratio <= 0.3 * (1 + 1e-12)).all()


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_T10_at_most_steps_minus_one_updates(tiny: Callable[..., LM], steps: int) -> None:
    found = optimise_values(tiny("gpt2"), EDITS, CONTEXTS, 1, ValueSettings(steps=steps))
    assert found.updates == [steps - 1] * len(EDITS)
    assert [len(losses) for losses in found.losses] == [steps] * len(EDITS)
    assert bool((found.delta["ffn"] == 0).all()) == (steps == 1)


def test_T10_a_satisfied_edit_stops_at_once(tiny: Callable[..., LM]) -> None:
    settings = SETTINGS.model_copy(update={"stop_loss": 1e9})
    found = optimise_values(tiny("gpt2"), EDITS, CONTEXTS, 1, settings)
    assert found.updates == [0] * len(EDITS)
    assert (found.delta["ffn"] == 0).all()


def test_T10_the_value_makes_the_model_say_the_target(tiny: Callable[..., LM]) -> None:
    lm = tiny("gpt2")
    settings = ValueSettings(steps=80, clamp=1e9, kl_factor=0.0, weight_decay=0.0, lr=0.1)
    edits = [
        Edit("I live in France", "is", subject="France"),
        Edit("Who is the mayor of Berlin", "of", subject="Berlin"),
    ]
    found = optimise_values(lm, edits, given_contexts([]), 1, settings)
    for i, edit in enumerate(edits):
        row = lm.row(edit.prompt, edit.target, edit.subject)

        def add(module, args, output, row=row, i=i):
            states = first(output).clone()
            states[0, row.subject_last] += found.delta["ffn"][i]
            return with_first(output, states)

        with hooks(module_at(lm, 1, "ffn").register_forward_hook(add)):
            logits = lm.logits(lm.batch([row], [0]), positions_of([row], [0]))
        assert tuple(logits.argmax(-1).tolist()) == row.labels


@pytest.mark.parametrize("enough", [1, 3])
def test_an_edit_stops_once_its_target_was_said_often_enough(
    tiny: Callable[..., LM], enough: int
) -> None:
    """ENCORE's way to stop; the second edit's target is never said."""
    lm = tiny("gpt2")
    settings = ValueSettings(steps=40, clamp=1e9, kl_factor=0.0, weight_decay=0.0, lr=0.2)
    edits = [
        Edit("I live in France", "is", subject="France"),
        Edit("Who lives in the town of Oslo", "of is is of", subject="Oslo"),
    ]
    contexts = given_contexts([])
    often = Adaptive(factor=1.0, easy=1.0, stop_kl=0.0, enough=enough)
    found = optimise_values(lm, edits, contexts, 1, settings, adaptive=often)
    for i, edit in enumerate(edits):
        delta, _, losses = plain_recipe(lm, edit, 1, settings, contexts=contexts, enough=enough)
        assert len(found.losses[i]) == len(losses)
        assert found.losses[i] == pytest.approx(losses, rel=EXACT, abs=EXACT)
        torch.testing.assert_close(found.delta["ffn"][i], delta, rtol=EXACT, atol=EXACT)
    counts = [len(losses) for losses in found.losses]
    assert enough < counts[0] < 40 == counts[1]


def test_two_places_move_together(tiny: Callable[..., LM]) -> None:
    lm = tiny("qwen3")
    plain = optimise_values(lm, EDITS, CONTEXTS, 1, SETTINGS, places=("ffn", "attn"), savings=PLAIN)
    same(optimise_values(lm, EDITS, CONTEXTS, 1, SETTINGS, places=("ffn", "attn")), plain)
    assert (plain.delta["attn"].norm(dim=-1) > 0).all()
    limit = SETTINGS.clamp * plain.start["attn"].norm(dim=-1) * (1 + 1e-12)
    assert (plain.delta["attn"].norm(dim=-1) <= limit).all()


def test_the_loss_may_be_read_below_the_top(tiny: Callable[..., LM]) -> None:
    lm = tiny("qwen3")
    last = SETTINGS.model_copy(update={"loss_layer": lm.n_layers - 1})
    same(
        optimise_values(lm, EDITS, CONTEXTS, 0, last),
        optimise_values(lm, EDITS, CONTEXTS, 0, SETTINGS),
    )
    early = SETTINGS.model_copy(update={"loss_layer": 1})
    found = optimise_values(lm, EDITS, CONTEXTS, 0, early)
    same(optimise_values(lm, EDITS, CONTEXTS, 0, early, savings=PLAIN), found)
    # at the start: norm and head on the output of block 1
    row = lm.row(EDITS[0].prompt, EDITS[0].target, prefix=CONTEXTS.prefixes[0])
    states = []
    block = module_at(lm, 1, "block")
    with hooks(block.register_forward_hook(lambda m, a, out: states.append(first(out)))):
        lm.run(lm.batch([row], [0]))
    logits = lm.module(lm.spec.head)(lm.module(lm.spec.final_norm)(states[0]))[0]
    nll = -logits.log_softmax(-1)[list(row.positions), list(row.labels)].mean()
    bare = optimise_values(lm, EDITS[:1], given_contexts([]), 0, early)
    assert bare.losses[0][0] == pytest.approx(float(nll), rel=EXACT)


def test_values_under_earlier_patches(tiny: Callable[..., LM]) -> None:
    lm = tiny("gpt2")
    g = torch.Generator().manual_seed(0)
    site = lm.site(1)
    patches = [
        Patch(
            (
                LowRank(
                    site.path,
                    torch.randn(site.d_out, 1, generator=g, dtype=torch.float64),
                    torch.randn(1, site.d_in, generator=g, dtype=torch.float64),
                ),
            )
        )
        for _ in EDITS
    ]
    from errata.patch.stack import Stack

    with Stack(lm, patches):
        found = optimise_values(lm, EDITS, CONTEXTS, 1, SETTINGS, patches=range(len(EDITS)))
    for i, (edit, patch) in enumerate(zip(EDITS, patches, strict=True)):
        with patch.applied(lm):
            alone = optimise_values(lm, [edit], CONTEXTS, 1, SETTINGS)
        torch.testing.assert_close(
            found.delta["ffn"][i], alone.delta["ffn"][0], rtol=EXACT, atol=EXACT
        )


@pytest.mark.parametrize(("name", "adds"), [("gpt2", True), ("gptj", True), ("gemma2", False)])
def test_whether_the_ffn_adds_to_the_block_is_found_out(
    tiny: Callable[..., LM], name: str, adds: bool
) -> None:
    assert ffn_adds_to_block(tiny(name), 1) is adds


def test_a_loss_that_becomes_nan_is_refused(
    tiny: Callable[..., LM], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Rows.losses
    calls = []

    def poisoned(self: Rows, vectors: dict) -> tuple[Tensor, Tensor, Tensor]:
        nll, essence, said = original(self, vectors)
        calls.append(1)
        return nll * (float("nan") if len(calls) == 3 else 1.0), essence, said

    monkeypatch.setattr(Rows, "losses", poisoned)
    with pytest.raises(EditError, match="NaN or infinite"):
        optimise_values(tiny("gpt2"), EDITS, CONTEXTS, 1, SETTINGS)


def test_an_edit_without_subject_is_refused(tiny: Callable[..., LM]) -> None:
    with pytest.raises(EditError, match="no subject"):
        optimise_values(tiny("gpt2"), [Edit("The capital is", "Rome")], CONTEXTS, 1, SETTINGS)
