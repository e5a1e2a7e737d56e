"""T-Patcher against plain loops: what a unit adds, how it is trained, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.hooks import hooks
from tests.locate.samples import EDITS, build
from tests.tiny_models import TINY, tiny_tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy, silu

import errata
from errata.case import Edit
from errata.editors import get_editor
from errata.editors.base import Editor
from errata.editors.t_patcher.held import STATE
from errata.editors.t_patcher.losses import StatesPenalty
from errata.editors.t_patcher.memory import inputs_of
from errata.editors.t_patcher.units import Units
from errata.errors import DataError, EditError, PatchError, SpecError
from errata.locate.paragraphs import Paragraphs
from errata.model.lm import LM
from errata.model.passes import capture, first, with_first
from errata.model.tokens import positions_of
from errata.nets.ffn import ffn_form
from errata.patch import Dense, LowRank, Patch
from errata.patch.changes import Module
from errata.patch.stack import Stack

EXACT = 1e-10
"""Float64: the same numbers, summed in another order."""
TRAINED = 1e-7
"""After some steps of Adam, whose first ones amplify rounding."""

Make = Callable[..., Editor]
Tiny = Callable[..., LM]
on_both = pytest.mark.parametrize("kind", ["gpt2", "qwen3"])


def module_in(patch: Patch) -> Module:
    (change,) = [c for c in patch.changes if isinstance(c, Module)]
    return change


def units_in(patch: Patch) -> Units:
    change = module_in(patch)
    return Units.restored(change.config, change.weights)


def logits(lm: LM, edits: Sequence[Edit] = EDITS) -> Tensor:
    rows = [lm.row(edit.prompt, edit.target) for edit in edits]
    batch, at = lm.batch(rows, range(len(rows))), positions_of(rows, range(len(rows)))
    with torch.no_grad():
        return lm.logits(batch, at)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g, dtype=torch.float64)


# ---------------------------------------------------------------------- the form of an FFN


def test_gate_and_up_are_told_apart_by_what_they_do() -> None:
    lm = build("qwen3")
    form = ffn_form(lm, 1)
    assert [path.rpartition(".")[2] for path in form.inputs] == ["gate_proj", "up_proj"]
    assert (form.gated, form.fused, form.activation, form.bias) == (True, False, "silu", False)
    fused = ffn_form(LM(TINY["phi3"](), tiny_tokenizer(), name="phi3"), 1)
    assert (fused.gated, fused.fused) == (True, True)
    plain = ffn_form(build("gpt2"), 1)
    assert (plain.gated, plain.activation, plain.bias) == (False, "gelu_new", True)


def test_an_unknown_activation_is_refused() -> None:
    lm = LM(TINY["gpt2"](), tiny_tokenizer(), name="bent")
    lm.model.transformer.h[1].mlp.act = torch.nn.Softplus()
    with pytest.raises(SpecError, match="neither act"):
        ffn_form(lm, 1)
    assert ffn_form(lm, 2).activation == "gelu_new"


# ---------------------------------------------------------------------- units at work (E.16)


@on_both
def test_a_unit_adds_what_an_inner_unit_would(kind: str) -> None:
    lm = build(kind)
    form, site = ffn_form(lm, 2), lm.site(2)
    keys, values = drawn(form.parts, 3, 32), drawn(3, site.d_out, seed=1)
    biases = drawn(form.parts, 3, seed=2)
    network = Units(keys, values, biases).module(site.path, form).build()
    x, y = drawn(2, 5, 32, seed=3), drawn(2, 5, site.d_out, seed=4)
    wanted = y.clone()
    for n in range(3):
        a = x @ keys[0, n] + biases[0, n]
        if kind == "qwen3":
            inner = silu(a) * (x @ keys[1, n] + biases[1, n])
        else:
            inner = torch.nn.functional.gelu(a, approximate="tanh")
        wanted = wanted + inner[..., None] * values[n]
    torch.testing.assert_close(network(x, y), wanted, rtol=EXACT, atol=EXACT)


@on_both
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_unit_without_a_value_changes_no_bit(kind: str, dtype: str) -> None:
    lm = build(kind, dtype)
    form, site = ffn_form(lm, 2), lm.site(2)
    zero = Units(drawn(form.parts, 2, 32).float(), torch.zeros(2, site.d_out))
    patch = Patch.for_model(lm, [zero.module(site.path, form)], editor="t_patcher")
    before = logits(lm)
    with patch.applied(lm):
        assert torch.equal(logits(lm), before)


@on_both
def test_each_edit_has_its_unit_and_removing_them_restores(
    kind: str, tiny: Tiny, make: Make
) -> None:
    lm = tiny(kind)
    before = logits(lm)
    patch = make("t_patcher").edit_one(lm, EDITS)
    units = units_in(patch)
    assert len(units) == len(EDITS)
    assert units.biases is None if kind == "qwen3" else units.biases is not None
    with patch.applied(lm):
        edited = logits(lm)
    assert not torch.allclose(edited, before)
    assert torch.equal(logits(lm), before)
    one = replace(
        module_in(patch),
        weights={
            n: t[:1] if n == "values" else t[:, :1] for n, t in module_in(patch).weights.items()
        },
    )
    first_only = make("t_patcher").edit_one(lm, EDITS[:1])
    with replace(patch, changes=(one,)).applied(lm):
        dropped = logits(lm)
    with first_only.applied(lm):
        torch.testing.assert_close(dropped, logits(lm), rtol=EXACT, atol=EXACT)


# ---------------------------------------------------------------------- training


def by_autograd(
    lm: LM, edit: Edit, texts: Sequence[Tensor], steps: int, lr: float, weights: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor | None, list[list[float]]]:
    """Train one unit by torch.optim on a hook, as the release does; also the norms as they grow."""
    layer = lm.n_layers - 1
    form, site = ffn_form(lm, layer), lm.site(layer)
    source = lm.module(lm.spec.ffn_in[layer][0].path)
    row = lm.row(edit.prompt, edit.target)
    batch = lm.batch([row], [0])
    keys = [torch.zeros(32, dtype=torch.float64, requires_grad=True) for _ in range(form.parts)]
    biases = [torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in keys]
    value = torch.zeros(site.d_out, dtype=torch.float64, requires_grad=True)
    trained = [*keys, value, *(biases if form.bias else [])]
    adam = torch.optim.Adam(trained, lr=lr)
    seen: list[Tensor] = []
    norms = []

    def keep(module: Any, args: Any) -> None:
        seen[:] = [args[0]]

    def add(module: Any, args: Any, output: Any) -> Any:
        a = [seen[0] @ k + b for k, b in zip(keys, biases, strict=True)]
        inner = (
            silu(a[0]) * a[1] if form.gated else torch.nn.functional.gelu(a[0], approximate="tanh")
        )
        return with_first(output, first(output) + inner[..., None] * value)

    for step in range(steps):
        with hooks(
            source.register_forward_pre_hook(keep),
            lm.module(site.path).register_forward_hook(add),
        ):
            found = lm.logits(batch, positions_of([row], [0]))
        loss = cross_entropy(found, torch.tensor(row.labels))
        x = seen[0].detach()[0]
        for k, b in zip(keys, biases, strict=True):
            loss = loss + weights[0] * torch.exp(-(x @ k + b)).mean()
            quiet = (texts[step % len(texts)] @ k + b).clamp(min=0)
            loss = loss + weights[1] * torch.exp(quiet).mean()
        adam.zero_grad()
        loss.backward()
        norms.append([float(t.grad.norm()) for t in trained])
        adam.step()
    bias = torch.stack([b.detach() for b in biases]) if form.bias else None
    return torch.stack([k.detach() for k in keys]), value.detach(), bias, norms


@on_both
def test_training_is_that_of_the_release(
    kind: str, tiny: Tiny, make: Make, texts_file: str
) -> None:
    lm = tiny(kind)
    editor = make("t_patcher", steps=7, lr=0.02, layer="auto")
    text = Paragraphs(texts_file, 7, 0, 256, 0)
    texts = inputs_of(lm, lm.n_layers - 1, text.rows(lm))
    keys, value, bias, norms = by_autograd(lm, EDITS[1], texts, 7, 0.02, (0.1, 0.1))
    units = units_in(editor.edit_one(lm, EDITS[1:2]))
    torch.testing.assert_close(units.keys[:, 0], keys, rtol=TRAINED, atol=TRAINED)
    torch.testing.assert_close(units.values[0], value, rtol=TRAINED, atol=TRAINED)
    if bias is not None:
        assert units.biases is not None
        torch.testing.assert_close(units.biases[:, 0], bias, rtol=TRAINED, atol=TRAINED)
    # all zero at first: act(0) is 0, so only the activation loss moves anything, and only keys
    parts = len(keys)
    assert all(norm > 0 for norm in norms[0][:parts])
    assert norms[0][parts] == 0
    assert norms[1][parts] > 0


def test_the_second_edit_is_trained_with_the_first_at_work(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    together = make("t_patcher").edit_one(lm, EDITS[:2])
    one = make("t_patcher").edit_one(lm, EDITS[:1])
    two = make("t_patcher").edit_one(lm, EDITS[1:2], after=one)
    for a, b in zip(units_in(together).keys, units_in(two).keys, strict=True):
        torch.testing.assert_close(a, b, rtol=TRAINED, atol=TRAINED)
    assert len(two.changes) == 1
    assert torch.equal(units_in(two).keys[:, :1], units_in(one).keys)
    alone = make("t_patcher").edit_one(lm, EDITS[1:2])
    assert not torch.allclose(units_in(two).values[1:], units_in(alone).values)


def test_paragraphs_are_those_of_the_earlier_patch(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    site = lm.site(0)
    below = Patch.for_model(
        lm, [LowRank(site.path, drawn(site.d_out, 1), drawn(1, site.d_in))], editor="hand"
    )
    settings = {"layer": 2, "activation_weight": 0.1, "memory_weight": 5.0}
    stacked = make("t_patcher", **settings).edit(lm, [EDITS[:1], EDITS[:1]], after=[below, None])
    lm.model.get_parameter(site.weight)  # the same, with the patch in the weights
    with below.applied(lm):
        merged = make("t_patcher", **settings).edit_one(lm, EDITS[:1])
    torch.testing.assert_close(
        units_in(stacked[0]).keys, units_in(merged).keys, rtol=TRAINED, atol=TRAINED
    )
    plain = make("t_patcher", **settings).edit_one(lm, EDITS[:1])
    torch.testing.assert_close(
        units_in(stacked[1]).keys, units_in(plain).keys, rtol=TRAINED, atol=TRAINED
    )
    assert not torch.allclose(units_in(stacked[0]).keys, units_in(plain).keys)


def test_what_may_reach_the_input_of_an_ffn() -> None:
    lm = build("gpt2")
    h = "transformer.h"

    def low(path: str) -> LowRank:
        return LowRank(path, torch.zeros(1, 1), torch.zeros(1, 1))

    units = Units(drawn(1, 1, 32), drawn(1, 32)).module(lm.site(1).path, ffn_form(lm, 1))
    inner = [site.path for site in lm.spec.ffn_in[1]]
    for moved in (low(f"{h}.0.mlp.c_proj"), low(f"{h}.1.attn.c_proj"),
                  Dense("transformer.wte.weight", torch.zeros(1)),
                  replace(units, path=f"{h}.1.mlp.c_fc", where="input", source=None)):  # fmt: skip
        assert moved.moves_input(lm, 1, inner)
    for still in (low(f"{h}.1.mlp.c_proj"), low(f"{h}.1.mlp.c_fc"), low(f"{h}.2.attn.c_attn"),
                  Dense("transformer.ln_f.weight", torch.zeros(1)), units):  # fmt: skip
        assert not still.moves_input(lm, 1, inner)


# ---------------------------------------------------------------------- one unit per wrong token


@on_both
def test_wrong_tokens_get_units_where_they_are(kind: str, tiny: Tiny, make: Make) -> None:
    lm = tiny(kind)
    settings = {"form": "unit_per_token", "memory_size": 30}
    edit = EDITS[2]
    row = lm.row(edit.prompt, edit.target)
    best = logits(lm, [edit]).argmax(-1).tolist()
    wrong = [p for p, label, token in zip(row.positions, row.labels, best, strict=True)
             if label != token]  # fmt: skip
    assert len(wrong) > 1
    patch = make("t_patcher", **settings, steps=1, lr=1e-9).edit_one(lm, [edit])
    units = units_in(patch)
    assert len(units) == len(wrong)
    source = lm.module(lm.spec.ffn_in[1][0].path)
    (x,), _ = capture(lm, lm.batch([row], [0]), inputs=[source])
    for n, position in enumerate(wrong):  # an activation of 1 there, for gate and up
        here = x.reshape(-1, 32)[position] @ units.keys[:, n].T
        torch.testing.assert_close(here, torch.ones_like(here), rtol=1e-6, atol=1e-6)
    assert len(units_in(make("t_patcher", **settings, max_wrong=1).edit_one(lm, [edit]))) == 1


def test_an_answer_that_is_there_gets_no_unit(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    known = make("t_patcher", steps=60, lr=0.05).edit_one(lm, EDITS[:1])
    again = make("t_patcher", form="unit_per_token", memory_size=30)
    assert torch.equal(
        units_in(again.edit_one(lm, EDITS[:1], after=known)).keys, units_in(known).keys
    )
    more = make("t_patcher", steps=1).edit_one(lm, EDITS[:1], after=known)
    assert len(units_in(more)) == 2
    both = again.edit(lm, [EDITS[:1], EDITS[:1]], after=[known, None])
    assert [len(units_in(patch)) for patch in both] == [1, 1]


def test_the_memory_of_edits_grows_and_is_bounded(tiny: Tiny, make: Make, tmp_path: Path) -> None:
    lm = tiny("gpt2")
    settings = {"form": "unit_per_token", "memory_size": 5, "steps": 2, "layer": 2}
    rows = [lm.row(edit.prompt, edit.target) for edit in EDITS]
    inputs = inputs_of(lm, 2, rows)
    wanted = torch.cat([x[list(r.positions)] for x, r in zip(inputs, rows, strict=True)])
    patch = None
    for edit in EDITS:
        patch = make("t_patcher", **settings).edit_one(lm, [edit], after=patch)
        patch = Patch.load(patch.save(tmp_path / "patch", force=True))
    assert patch is not None
    assert len(wanted) > 5
    torch.testing.assert_close(patch.state[STATE], wanted[-5:], rtol=EXACT, atol=EXACT)
    together = make("t_patcher", **settings).edit_one(lm, EDITS)
    torch.testing.assert_close(
        units_in(patch).keys, units_in(together).keys, rtol=TRAINED, atol=TRAINED
    )


def test_the_original_losses_are_those_of_plain_loops() -> None:
    own, edits = [drawn(2, 6), drawn(3, 6, seed=1)], [drawn(0, 6), drawn(2, 6, seed=2)]
    memory = drawn(9, 6, seed=3)
    keys, biases = drawn(2, 2, 3, 6, seed=4), drawn(2, 2, 3, seed=5)
    penalty = StatesPenalty.of(own, edits, [memory], None, (2.0, 0.3))
    found = penalty(0, keys, biases)
    for g in range(2):
        total = 0.0
        for p in range(2):
            fire, below, silent = [], [], []
            for u in range(len(own[g])):
                a = float(own[g][u] @ keys[g, p, u] + biases[g, p, u])
                fire.append(torch.tensor(-a).exp().item())
                for state in [*memory, *edits[g]]:
                    m = float(state @ keys[g, p, u] + biases[g, p, u])
                    below.append(torch.tensor(m - a + 3).exp().item())
                    silent.append(torch.tensor(m + 3).exp().item())
            worst = sorted(fire)[-5:]
            total += 2.0 * sum(worst) / len(worst)
            total += 0.3 * (sum(below) / len(below) + sum(silent) / len(silent))
        assert float(found[g]) == pytest.approx(total, rel=1e-5)


@on_both
def test_both_forms_learn_what_they_are_asked(kind: str, tiny: Tiny, make: Make) -> None:
    lm = tiny(kind)
    for settings in (
        {"steps": 60, "lr": 0.05},
        {"form": "unit_per_token", "steps": 200, "lr": 0.05, "memory_size": 50, "amplify": 1.0,
         "memory_weight": 1.0, "stop_loss": 0.01, "stop_after": 5},
    ):  # fmt: skip
        patch = make("t_patcher", layer="auto", **settings).edit_one(lm, EDITS[:1])
        with patch.applied(lm):
            (score,) = lm.score([lm.row(EDITS[0].prompt, EDITS[0].target)])
        assert all(rank == 0 for rank in score.ranks), settings


# ---------------------------------------------------------------------- patches


@on_both
def test_rows_under_their_own_units(kind: str, tiny: Tiny, make: Make) -> None:
    lm = tiny(kind)
    patches = make("t_patcher").edit(lm, [EDITS[:1], EDITS[1:]])
    rows = [lm.row(edit.prompt, edit.target) for edit in EDITS[:3]]
    base = lm.score(rows)
    alone = []
    for patch in patches:
        with patch.applied(lm):
            alone.append(lm.score(rows))
    with Stack(lm, patches) as stack:
        found = lm.score(rows, stack=stack, groups=[0, 1, -1])
        texts = lm.generate(["Anna lives in"] * 2, 4, stack=stack, groups=[0, 1])
    for mine, wanted in zip(found, (alone[0][0], alone[1][1], base[2]), strict=True):
        torch.testing.assert_close(
            torch.tensor(mine.logprobs), torch.tensor(wanted.logprobs), rtol=1e-6, atol=1e-6
        )
    for patch, text in zip(patches, texts, strict=True):
        with patch.applied(lm):
            assert lm.generate(["Anna lives in"], 4) == [text]
            ids = torch.tensor([lm.row("Anna lives in").ids])
            full = lm.model.generate(ids, max_new_tokens=4, do_sample=False)[0]
            assert lm.text(full[ids.shape[1] :].tolist()) == text


def test_weight_patches_and_units_go_together(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    site = lm.site(1)
    low = LowRank(site.path, 0.1 * drawn(site.d_out, 1), 0.1 * drawn(1, site.d_in))
    weight = Patch.for_model(lm, [low], editor="hand")
    units = make("t_patcher", layer=1).edit_one(lm, EDITS[:1])
    with (weight + units).applied(lm):
        one = logits(lm)
    with (units + weight).applied(lm):
        torch.testing.assert_close(logits(lm), one, rtol=EXACT, atol=EXACT)
    longer = make("t_patcher", layer=1).edit_one(lm, EDITS[1:2], after=units + weight)
    assert [change.kind for change in longer.changes] == ["low_rank", "module"]
    assert len(units_in(longer)) == 2


# ---------------------------------------------------------------------- refusals


def test_two_targets_of_one_prompt_are_refused(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    twice = [EDITS[0], replace(EDITS[0], target="Berlin")]
    with pytest.raises(EditError, match=r"two edits conflict: .*'Rome'") as caught:
        make("t_patcher").edit_one(lm, twice)
    assert caught.value.edits == (twice[1],)
    patch = make("t_patcher", conflicts="replace").edit_one(lm, twice)
    assert len(units_in(patch)) == 2
    assert len(units_in(make("t_patcher").edit_one(lm, [EDITS[0]] * 2))) == 2


def test_too_many_units_are_refused(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    with pytest.raises(EditError, match="3 units; the limit is 2") as caught:
        make("t_patcher", max_units=2).edit_one(lm, EDITS[:3])
    assert caught.value.edits == (EDITS[2],)


def test_little_memory_takes_longer_and_changes_nothing(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    groups = [[edit] for edit in EDITS]
    for form in ("unit_per_edit", "unit_per_token"):
        settings: dict[str, Any] = {"form": form, "memory_size": 30}
        wide = make("t_patcher", **settings).edit(lm, groups)
        narrow = make("t_patcher", memory_gb=1e-9, **settings).edit(lm, groups)
        for a, b in zip(wide, narrow, strict=True):
            torch.testing.assert_close(
                units_in(a).keys, units_in(b).keys, rtol=TRAINED, atol=TRAINED
            )


def test_units_elsewhere_or_of_another_version_are_refused(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    patch = make("t_patcher", layer=1).edit_one(lm, EDITS[:1])
    with pytest.raises(PatchError, match=r"at .*h\.1\.mlp\.c_proj, not at .*h\.2\.mlp"):
        make("t_patcher", layer=2).edit_one(lm, EDITS[1:2], after=patch)
    other = make("t_patcher", layer=1).edit_one(lm, EDITS[1:2])
    with pytest.raises(PatchError, match="in 2 changes"):
        make("t_patcher", layer=1).edit_one(lm, EDITS[2:3], after=patch + other)
    change = module_in(patch)
    old = replace(patch, changes=(replace(change, config={**change.config, "version": 0}),))
    with pytest.raises(PatchError, match="format 0; this errata reads 1"):
        make("t_patcher", layer=1).edit_one(lm, EDITS[1:2], after=old)
    with pytest.raises(PatchError, match="format 0"), old.applied(lm):
        pass
    bare = replace(change, weights={"keys": change.weights["keys"]})
    with pytest.raises(PatchError, match="lack their values"):
        bare.build()
    short = replace(change, weights={**change.weights, "values": drawn(2, 32)})
    with pytest.raises(PatchError, match="expected 1 x 2 keys"):
        short.build()
    swish = replace(change, config={**change.config, "activation": "silu"})
    with pytest.raises(PatchError, match="another kind of FFN"):
        make("t_patcher", layer=1).edit_one(lm, EDITS[1:2], after=replace(patch, changes=(swish,)))


def test_text_without_paragraphs_is_refused(tiny: Tiny, make: Make) -> None:
    with pytest.raises(DataError, match="no paragraph of more than 50 words") as caught:
        make("t_patcher", memory_words=50).edit_one(tiny("gpt2"), EDITS[:1])
    assert "memory_words=0" in str(caught.value.hint)


def test_settings_for_pocket_edit_and_spare_the_rest() -> None:
    lm = errata.load("pocket")
    cases = errata.load_cases("world", split="val", limit=16, seed=1)
    result = errata.evaluate(lm, get_editor("t_patcher", model="pocket"), cases)
    asked = [question for record in result.records for question in record["questions"]]
    for kind, least in (("reliability", 0.95), ("locality", 0.85)):
        hits = [question["top1"] for question in asked if question["kind"] == kind]
        assert sum(hits) >= least * len(hits), kind
