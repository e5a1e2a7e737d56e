"""Oracle T11 and what is ROME's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.hooks import hooks
from tests.locate.samples import EDITS
from torch import Tensor

from errata.editors import get_editor
from errata.editors.base import Editor
from errata.editors.ft import FineTuning
from errata.editors.recall import recall_layer
from errata.editors.rome import Rome
from errata.errors import ConfigError, DataError
from errata.locate import solve
from errata.locate.contexts import given_contexts
from errata.locate.keys import edit_keys
from errata.locate.values import optimise_values
from errata.model.lm import LM
from errata.model.passes import first, module_at
from errata.patch import LowRank, Patch

WIRED = 1e-12
"""Float64: the outputs move by the residual itself, up to a few roundings (measured 9e-16)."""
WIRED_SINGLE = 1e-7
"""GPT-J always computes attention in float32: keys differ with the batch (measured 4e-10)."""
ONE_BY_ONE = 1e-8

Make = Callable[..., Editor]
Tiny = Callable[..., LM]


def outputs(lm: LM, edit, layer: int) -> tuple[Tensor, Tensor]:
    """Projection and block output at the subject's last token of the bare prompt."""
    seen: dict[str, Tensor] = {}
    row = lm.row(edit.prompt, None, edit.subject)

    def keep(place: str):
        return lambda m, args, out: seen.update({place: first(out)[0, row.subject_last].clone()})

    handles = [
        module_at(lm, layer, place).register_forward_hook(keep(place)) for place in ("ffn", "block")
    ]
    with hooks(*handles), torch.no_grad():
        lm.run(lm.batch([row], [0]))
    return seen["ffn"], seen["block"]


@pytest.mark.parametrize("kind", ["gpt2", "llama", "llama-bos", "qwen3", "gptj", "falcon"])
def test_T11_outputs_move_by_the_residual(kind: str, tiny: Tiny, make: Make) -> None:
    lm = tiny(kind.removesuffix("-bos"), "float64", kind.endswith("-bos"))
    editor = make("rome", contexts=("{}", "I think so. {}"))
    for edit, patch in zip(EDITS, editor.edit(lm, [[e] for e in EDITS]), strict=True):
        (change,) = patch.changes
        assert isinstance(change, LowRank)
        residual = change.B[:, 0]
        before = outputs(lm, edit, 1)
        with patch.applied(lm):
            after = outputs(lm, edit, 1)
        for old, new in zip(before, after, strict=True):
            near = WIRED_SINGLE if kind == "gptj" else WIRED
            torch.testing.assert_close(new - old, residual, rtol=near, atol=near)


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
def test_T11_the_stored_tensor_and_nothing_else(kind: str, tiny: Tiny, make: Make) -> None:
    lm = tiny(kind)
    patch = make("rome").edit_one(lm, EDITS[:1])
    (change,) = patch.changes
    assert isinstance(change, LowRank)
    delta = change.B @ change.A
    name = lm.site(1).weight
    before = {key: value.clone() for key, value in lm.model.state_dict().items()}
    with patch.applied(lm):
        for key, value in lm.model.state_dict().items():
            if key != name:
                assert torch.equal(value, before[key])
        moved = lm.model.state_dict()[name] - before[name]
        expected = delta.T if kind == "gpt2" else delta  # Conv1D stores the transpose
        torch.testing.assert_close(moved, expected, rtol=1e-9, atol=WIRED)
    for key, value in lm.model.state_dict().items():
        assert torch.equal(value, before[key])


def test_it_is_put_together_from_the_shared_parts(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    editor = make("rome", mom2_adjustment=False)
    patches = editor.edit(lm, [[edit] for edit in EDITS])
    contexts = given_contexts(editor.config.contexts)  # type: ignore[attr-defined]
    keys = edit_keys(lm, EDITS, contexts, [1])[1]
    values = optimise_values(lm, EDITS, contexts, 1, editor.config)  # type: ignore[arg-type]
    B, A = solve.rome(values.target("ffn"), keys.value, keys.mean_key, keys.key, None)
    for i, patch in enumerate(patches):
        (change,) = patch.changes
        assert isinstance(change, LowRank)
        torch.testing.assert_close(change.B[:, 0], B[i], rtol=ONE_BY_ONE, atol=WIRED)
        torch.testing.assert_close(change.A[0], A[i], rtol=ONE_BY_ONE, atol=WIRED)


@pytest.mark.parametrize("kind", ["gpt2", "qwen3"])
def test_a_group_is_its_edits_one_after_the_other(kind: str, tiny: Tiny, make: Make) -> None:
    lm = tiny(kind)
    groups = [EDITS[:3], EDITS[3:]]
    together = make("rome").edit(lm, groups)
    for group, patch in zip(groups, together, strict=True):
        grown: Patch | None = None
        for edit in group:
            grown = make("rome").edit_one(lm, [edit], after=grown)
        assert grown is not None
        (one,), (other,) = patch.changes, grown.compact().changes
        assert isinstance(one, LowRank)
        assert isinstance(other, LowRank)
        for a, b in ((one.B, other.B), (one.A, other.A)):
            assert float((a - b).norm()) <= ONE_BY_ONE * float(b.norm())


@pytest.mark.parametrize(
    "off", [("truncate",), ("prefix_cache",), ("answer_only",), ("truncate", "prefix_cache")]
)
def test_savings_can_be_switched_off(off: tuple[str, ...], tiny: Tiny, make: Make) -> None:
    lm = tiny("qwen3")
    (one,) = make("rome").edit_one(lm, EDITS[:1]).changes
    (other,) = make("rome", **dict.fromkeys(off, False)).edit_one(lm, EDITS[:1]).changes
    assert isinstance(one, LowRank)
    assert isinstance(other, LowRank)
    torch.testing.assert_close(one.B, other.B, rtol=1e-10, atol=1e-10)


def test_moments_are_needed_unless_switched_off(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    missing = "no/such-file.txt.gz"
    make("rome", mom2_adjustment=False, moments_text=missing).edit_one(lm, EDITS[:1])
    with pytest.raises(DataError, match="no such file"):
        make("rome", moments_text="/no/such/file.txt").edit_one(lm, EDITS[:1])


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_that_does_not_exist_is_refused(layer: int, tiny: Tiny, make: Make) -> None:
    with pytest.raises(ConfigError, match="blocks 0 to 2"):
        make("rome", layer=layer).edit_one(tiny("gpt2"), EDITS[:1])


def test_negative_layers_count_from_the_end(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    one, other = (make("rome", layer=n).edit_one(lm, EDITS[:1]) for n in (-2, 1))
    assert one.changes[0].path == other.changes[0].path


class Deep:
    """As much of a model as the rule for layers looks at."""

    def __init__(self, lm: LM, layers: int) -> None:
        self.n_layers = layers
        self.site = lambda layer: lm.site(0)
        self.spec = type("Spec", (), {"ffn_in": [lm.spec.ffn_in[0]] * layers})


@pytest.mark.parametrize(
    ("kind", "layers", "published"),
    [
        ("gpt2", 24, 8),
        ("gpt2", 36, 12),
        ("gpt2", 48, 17),
        ("gpt_neox", 44, 15),
        ("llama", 32, 5),
        ("qwen3", 28, 5),
        ("phi3", 32, 5),
    ],
)
def test_the_automatic_layer_is_the_published_one(
    kind: str, layers: int, published: int, tiny: Tiny
) -> None:
    assert recall_layer(Deep(tiny(kind), layers)) == published  # type: ignore[arg-type]


def test_automatic_is_as_published_for_a_model_of_that_name(
    tiny: Tiny, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = LM(tiny("gpt2").model, tiny("gpt2").tokenizer, name="someone/GPT2-Test")
    monkeypatch.setattr(Rome, "published", {"gpt2-test": {"layer": 2}})
    monkeypatch.setattr(FineTuning, "published", {"gpt2-test": {"layers": (0,)}})
    found = [
        make("rome", layer="auto").edit_one(lm, EDITS[:1]),
        make("ft", layers="auto").edit_one(lm, EDITS[:1]),
    ]
    assert [patch.changes[0].path for patch in found] == [lm.site(2).path, lm.site(0).weight]


def test_published_settings_are_a_starting_point() -> None:
    editor = get_editor("rome", {"steps": 3}, ["lr=0.1"], as_published="openai-community/GPT2-XL")
    assert editor.config.model_dump(include={"layer", "steps", "lr", "clamp"}) == {
        "layer": 17,
        "steps": 3,
        "lr": 0.1,
        "clamp": 4.0,
    }
    with pytest.raises(ConfigError, match="no published settings"):
        get_editor("rome", as_published="gpt-9")
    with pytest.raises(ConfigError, match="unknown editor"):
        get_editor("rom")
