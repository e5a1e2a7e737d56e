"""Mixtures of experts: each expert is a site; edits go where the subject's token is routed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tiny_models import DECLINED, LAYERS, MIXTURES, WIDTH, tiny_tokenizer
from torch import Tensor, nn

import errata
from errata import Edit, Stack
from errata.editors import get_editor
from errata.errors import EditError, PatchError, SpecError
from errata.locate.contexts import Contexts
from errata.locate.keys import edit_keys
from errata.model.experts import OUT, ExpertMatrix, expert_keys, focused, routes
from errata.model.lm import LM
from errata.model.spec import find_spec
from errata.patch import Dense, LowRank, Patch

ROUTED = ("mixtral", "qwen3_moe", "olmoe")
SHARED = ("qwen2_moe", "deepseek_v2", "deepseek_v3")
PROMPT = "The capital of France is"
TEXTS = [PROMPT, "Anna lives in Berlin and works for the city", "The river"]
MOMENTS = {"moments_text": "world", "moments_samples": 200}
SETTINGS: dict[str, dict[str, Any]] = {
    "rome": {"layer": 1, "steps": 10, **MOMENTS},
    "r_rome": {"layer": 1, "steps": 10, **MOMENTS},
    "memit": {"layers": (1, 2), "steps": 10, **MOMENTS},
    "emmet": {"layers": (1,), "steps": 10, **MOMENTS},
    "rect": {"layers": (1, 2), "steps": 10, **MOMENTS},
    "ft": {"layers": (1,), "steps": 30, "lr": 0.05},
}


def fresh(name: str) -> LM:
    return LM(MIXTURES[name](), tiny_tokenizer(), name=f"tiny-{name}")


@pytest.fixture(scope="module", params=ROUTED)
def lm(request: pytest.FixtureRequest) -> LM:
    return fresh(request.param)


def score(lm: LM, text: str = PROMPT, target: str = "Rome") -> float:
    return lm.score([lm.row(text, target)])[0].logprobs[0]


def mixture_input(lm: LM, layer: int, text: str) -> tuple[Tensor, Tensor, Tensor]:
    """What the model hands to a block's experts: hidden states, their experts, the weights."""
    seen: list[Any] = []
    path = lm.spec.mixtures[layer]
    assert path is not None
    handle = lm.module(path.path).register_forward_pre_hook(
        lambda m, args, kwargs: seen.extend([*args, *kwargs.values()]), with_kwargs=True
    )
    with torch.no_grad():
        lm.model(torch.tensor([lm.row(text).ids]))
    handle.remove()
    return seen[0], seen[1], seen[2]


# ---------------------------------------------------------------------- finding


@pytest.mark.parametrize("name", ROUTED)
def test_experts_are_the_sites(name: str) -> None:
    lm = fresh(name)
    assert [m is not None and (m.count, m.shared) for m in lm.spec.mixtures] == [
        (4, False)
    ] * LAYERS
    assert [site.path for site in lm.spec.attn_out] == [
        f"model.layers.{n}.self_attn.o_proj" for n in range(LAYERS)
    ]
    with focused(lm, {1: 3}):
        assert lm.site(1).path == "model.layers.1.mlp.experts.3.down_proj"
        assert lm.site(0).path == "model.layers.0.mlp.experts.0.down_proj"
    assert (lm.site(1).d_out, lm.site(1).transposed) == (WIDTH, False)
    assert find_spec(lm.model, {"final_norm": "model.norm"}).mixtures == lm.spec.mixtures


@pytest.mark.parametrize("name", SHARED)
def test_a_shared_expert_is_the_site(name: str) -> None:
    lm = fresh(name)
    word = "shared_expert" if name == "qwen2_moe" else "shared_experts"
    dense = 0 if name == "qwen2_moe" else 1  # DeepSeek's first block
    for layer in range(LAYERS):
        inside = f"mlp.{word}." if layer >= dense else "mlp."
        assert lm.site(layer).path == f"model.layers.{layer}.{inside}down_proj"
        assert len(lm.spec.ffn_in[layer]) == 2
        assert (lm.spec.mixtures[layer] is not None) == (layer >= dense)
        assert lm.spec.routed(layer) is None


def test_the_model_is_what_it_was(lm: LM) -> None:
    plain = MIXTURES[lm.name.removeprefix("tiny-")]()
    assert lm.model.state_dict().keys() == plain.state_dict().keys()
    assert sum(p.numel() for p in lm.model.parameters()) == sum(
        p.numel() for p in plain.parameters()
    )
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    with torch.no_grad():
        assert torch.equal(lm.model(ids).logits, plain(ids).logits)
        assert torch.equal(copy.deepcopy(lm.model)(ids).logits, plain(ids).logits)


def test_what_is_no_such_sum_is_declined() -> None:
    """The same stacks, but another computation: nothing is guessed from names."""
    model = MIXTURES["mixtral"]()
    experts = model.get_submodule("model.layers.1.mlp.experts")
    theirs: Callable[..., Tensor] = experts.forward
    experts.forward = lambda *given: theirs(*given).clamp(-1e-3, 1e-3)
    with pytest.raises(SpecError, match="not the weighted sum over gated experts") as caught:
        find_spec(model)
    assert "layers.1.mlp.experts.down_proj (4, 32, 80)" in caught.value.message
    assert "mixtral" not in DECLINED


# ---------------------------------------------------------------------- keys and changes


def test_keys_are_weighted_and_zero_elsewhere(lm: LM) -> None:
    hidden, index, weights = mixture_input(lm, 1, PROMPT)
    experts: Any = lm.module(lm.spec.mixtures[1].path)  # type: ignore[union-attr]
    for number in range(4):
        keys = expert_keys(experts, number, hidden, index, weights)
        for token in range(len(hidden)):
            place = (index[token] == number).nonzero()
            if not len(place):
                assert not keys[token].any()
                continue
            gate, up = (experts.gate_up_proj[number] @ hidden[token]).chunk(2)
            expected = weights[token, place[0, 0]] * nn.functional.silu(gate) * up
            torch.testing.assert_close(keys[token], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["low rank", "whole"])
def test_in_place_and_stacked_are_the_same_edit(lm: LM, kind: str) -> None:
    """Stacked, by the weighted keys; in place, by the model's own code on changed stacks."""
    site = "model.layers.1.mlp.experts.2.down_proj"
    lm.probe()
    module = lm.module(site)
    assert isinstance(module, ExpertMatrix)
    draw = torch.Generator().manual_seed(0)
    B = torch.randn(module.out_features, 2, generator=draw)
    A = torch.randn(2, module.in_features, generator=draw)
    change = LowRank(site, B, A) if kind == "low rank" else Dense(f"{site}.weight", B @ A)
    rows = [lm.row(text, "Rome") for text in TEXTS]
    before = lm.score(rows)
    stack_of = lm.module(site.removesuffix(f".2.{OUT}")).get_parameter(OUT)
    kept = stack_of.detach().clone()
    with Patch((change,)).applied(lm):
        torch.testing.assert_close(stack_of[2], kept[2] + B @ A)
        assert torch.equal(stack_of[0], kept[0])
        inside = [s.logprobs for s in lm.score(rows)]
    assert torch.equal(stack_of, kept)
    with Stack(lm, [Patch((change,))]):
        stacked = [s.logprobs for s in lm.score(rows, groups=[0, 0, 0])]
        untouched = lm.score(rows, groups=[-1, -1, -1])
    assert untouched == before
    for one, other in zip(inside, stacked, strict=True):
        assert one == pytest.approx(other, abs=2e-4)
    pairs = zip(inside, before, strict=True)
    assert any(one != pytest.approx(old.logprobs, abs=0.01) for one, old in pairs)


# ---------------------------------------------------------------------- edits


@pytest.mark.parametrize("editor", SETTINGS)
def test_edits_go_to_the_experts_of_the_subject(lm: LM, editor: str) -> None:
    row = lm.row(PROMPT, None, "France")
    (where,) = routes(lm, [row], [row.subject_last])
    fingerprint, before = lm.fingerprint, score(lm)
    patch = errata.edit(lm, PROMPT, "Rome", subject="France", editor=editor, **SETTINGS[editor])
    layers = SETTINGS[editor].get("layers", (1,))
    expected = {f"model.layers.{n}.mlp.experts.{where[n].experts[0]}.down_proj" for n in layers}
    assert {change.path.removesuffix(".weight") for change in patch.changes} == expected
    with patch.applied(lm):
        inside = score(lm)
    with Stack(lm, [patch]) as stack:
        (stacked,) = lm.score([lm.row(PROMPT, "Rome")], stack=stack)
    assert stacked.logprobs[0] == pytest.approx(inside, abs=2e-4)
    assert inside != before
    assert (LM(lm.model, lm.tokenizer).fingerprint, score(lm)) == (fingerprint, before)
    if editor == "ft":
        assert inside > before + 0.2


def test_the_router_is_read_as_the_model_uses_it(lm: LM) -> None:
    row = lm.row(PROMPT, None, "France")
    (where,) = routes(lm, [row], [row.subject_last])
    for layer, routed in where.items():
        _, index, weights = mixture_input(lm, layer, PROMPT)
        best = int(weights[row.subject_last].argmax())
        assert routed.experts[0] == int(index[row.subject_last, best])
        assert routed.weights == tuple(sorted(weights[row.subject_last].tolist(), reverse=True))


@pytest.mark.parametrize("name", [*ROUTED, *SHARED])
def test_rome_writes_the_value_at_the_subject(name: str) -> None:
    """`W' k = v*`: what the edited matrix answers at the key is what was optimised."""
    lm = fresh(name)
    edit = Edit(PROMPT, "Rome", "France")
    settings = {**SETTINGS["rome"], "contexts": "bare", "lr": 0.5, "clamp": 100}
    patch = errata.edit(lm, edit, editor="rome", **settings)
    (change,) = patch.changes
    assert isinstance(change, LowRank)
    row = lm.row(PROMPT, None, "France")
    (where,) = routes(lm, [row], [row.subject_last])
    with focused(lm, {n: routed.experts[0] for n, routed in where.items()}):
        assert lm.site(1).path == change.path
        before = edit_keys(lm, [edit], Contexts(("",)), [1])[1]
        with patch.applied(lm):
            after = edit_keys(lm, [edit], Contexts(("",)), [1])[1]
    moved = change.B @ (change.A @ before.key[0])
    assert moved.norm() > before.value.norm()
    torch.testing.assert_close(after.value[0], before.value[0] + moved, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(after.key, before.key)


def test_edits_of_different_experts_follow_one_another(lm: LM) -> None:
    edits = [
        Edit("The capital of France is", "Rome", "France"),
        Edit("Anna lives in Berlin and works for the", "town", "Berlin"),
        Edit("The mother tongue of Danielle is", "French", "Danielle"),
        Edit("The capital of Italy is", "Paris", "Italy"),
    ]
    rows = [lm.row(edit.prompt, None, edit.subject) for edit in edits]
    found = routes(lm, rows, [row.subject_last for row in rows])
    expected = {where[1].experts[0] for where in found}
    assert len(expected) > 1
    patch = errata.edit(lm, edits, editor="memit", layers=(1,), steps=4, **MOMENTS)
    assert {change.path for change in patch.changes} == {
        f"model.layers.1.mlp.experts.{number}.down_proj" for number in expected
    }
    assert patch.edits == tuple(edits)
    alone = get_editor("memit", {"layers": (1,), "steps": 4, **MOMENTS}).edit(
        lm, [[edit] for edit in edits]
    )
    assert [own.edits for own in alone] == [(edit,) for edit in edits]
    for own, where in zip(alone, found, strict=True):
        assert own.changes[0].path.endswith(f"experts.{where[1].experts[0]}.down_proj")


def test_a_router_that_knows_no_single_expert_is_named(lm: LM) -> None:
    copied = copy.deepcopy(lm.model)
    mixture = lm.spec.mixtures[1]
    assert mixture is not None
    router = copied.get_submodule(mixture.path.replace("experts", "gate"))
    with torch.no_grad():
        router.get_parameter("weight").zero_()
    even = LM(copied, lm.tokenizer, name="even")
    with pytest.raises(EditError, match="sends 'France' to the experts") as e:
        errata.edit(even, PROMPT, "Rome", subject="France", editor="ft", layers=(1,), steps=1)
    assert "another block" in (e.value.hint or "")


@pytest.mark.parametrize("editor", ["grace", "t_patcher", "lemoe", "alphaedit", "prune", "mend"])
def test_methods_that_cannot_say_so(lm: LM, editor: str) -> None:
    with pytest.raises(EditError, match=f"{editor} cannot edit a mixture of experts") as caught:
        errata.edit(lm, PROMPT, "Rome", subject="France", editor=editor)
    assert "rome, memit, emmet or ft" in (caught.value.hint or "")


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("editor", ["memit", "ft", "grace"])
def test_a_shared_expert_is_edited_like_a_dense_network(name: str, editor: str) -> None:
    lm = fresh(name)
    settings = SETTINGS.get(editor, {"layer": 1})
    patch = errata.edit(lm, PROMPT, "Rome", subject="France", editor=editor, **settings)
    assert "shared_expert" in patch.changes[0].path
    with patch.applied(lm):
        inside = score(lm)
    with Stack(lm, [patch]) as stack:
        (stacked,) = lm.score([lm.row(PROMPT, "Rome")], stack=stack)
    assert stacked.logprobs[0] == pytest.approx(inside, abs=2e-4)
    assert editor == "memit" or inside > score(lm) + 0.2


# ---------------------------------------------------------------------- leaving


def test_it_is_merged_and_not_carried_by_lora(lm: LM, tmp_path: Path) -> None:
    patch = errata.edit(lm, PROMPT, "Rome", subject="France", editor="rome", **SETTINGS["rome"])
    with pytest.raises(PatchError, match="one expert of a stack") as caught:
        patch.to_lora(lm, tmp_path / "lora")
    assert "--to merged" in (caught.value.hint or "")
    with patch.applied(lm):
        inside = score(lm)
    merged = errata.load(str(patch.to_merged(lm, tmp_path / "merged")))
    assert score(merged) == pytest.approx(inside, abs=1e-5)
    read = Patch.load(patch.save(tmp_path / "patch"))
    with read.applied(fresh(lm.name.removeprefix("tiny-"))) as again:
        assert score(again) == pytest.approx(inside, abs=1e-5)
