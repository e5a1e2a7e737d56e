"""Oracle T7: BLUE; pairs of editor and strategy by name; blocks that `auto` means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.editors.joint_samples import SAME, SPREAD, Make, Tiny, built, deltas
from tests.locate.samples import EDITS

from errata.editors import base_joint, editors, get_editor, recall
from errata.errors import ConfigError
from errata.locate.contexts import Contexts
from errata.locate.keys import edit_keys
from errata.model.backbones import identify
from errata.patch import Patch
from errata.tracing.trace import Choice

ROUNDING = 64 * torch.finfo(torch.float64).eps


@pytest.mark.parametrize("host", SPREAD)
def test_T7_blue_touches_exactly_two_matrices(host: str, tiny: Tiny, make: Make) -> None:
    lm = tiny("llama")
    pair = built(make, f"{host}+blue", layers=(0, 1, 2) if lm.n_layers > 2 else (0, 1))
    patch = pair.edit_one(lm, EDITS[:2])
    edited = {lm.site(layer).weight for layer in (0, min(2, lm.n_layers - 1))}
    assert set(deltas(lm, patch)) == edited
    before = {k: v.clone() for k, v in lm.model.state_dict().items()}
    with patch.applied(lm):
        changed = {k for k, v in lm.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == edited


def test_T7_blue_finds_each_value_on_the_weights_as_they_are(
    tiny: Tiny, make: Make, seen: list[tuple[str, Any]]
) -> None:
    lm = tiny("gpt2")
    patch = built(make, "memit+blue").edit_one(lm, EDITS[:2])
    assert [kind for kind, _ in seen] == ["value", "write", "value", "write"]
    assert [event[0] for kind, event in seen if kind == "value"] == [0, 1]
    for position in (1, 3):  # undivided, towards the block's own value
        values, write = seen[position - 1][1][1], seen[position][1]
        with Patch(patch.changes[: position // 2]).applied(lm):
            hidden = edit_keys(lm, EDITS[:2], Contexts(("",)), [write.layer], hidden=True)
        now = hidden[write.layer].hidden
        assert now is not None
        torch.testing.assert_close(
            write.residual, values.target("block") - now, rtol=SAME, atol=SAME
        )
        torch.testing.assert_close(values.start["block"], now, rtol=SAME, atol=SAME)


def test_T7_what_the_first_block_has_settled_the_second_leaves_alone(
    tiny: Tiny, make: Make, seen: list[tuple[str, Any]]
) -> None:
    lm = tiny("gpt2")
    # any loss counts as done: the optimiser stops at step 0 with delta 0
    patch = built(make, "memit+blue", stop_loss=1e9).edit_one(lm, EDITS[:2])
    assert all(event[1].updates == [0, 0] for kind, event in seen if kind == "value")
    for delta in deltas(lm, patch).values():
        # exactly 0 where two passes of other shapes give equal bits, which the libraries of some
        # releases of torch do not: float64 rounding of values near 1 (measured: 2e-16)
        assert float(delta.abs().max()) < ROUNDING


def test_blue_layers_can_be_named(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    patch = built(make, "memit+blue", blue_layers=(1,)).edit_one(lm, EDITS[:1])
    assert set(deltas(lm, patch)) == {lm.site(1).weight}


# ---------------------------------------------------------------------- pairs


def test_pairs_are_editors_by_name() -> None:
    assert "memit+blue" in editors
    assert "none+blue" not in editors
    assert "memit+purple" not in editors
    assert editors.load("memit+blue") is editors.load("memit+blue")
    with pytest.raises(ConfigError, match="blue does not work on rome"):
        get_editor("rome+blue")
    with pytest.raises(ConfigError, match="unknown strategy"):
        get_editor("memit+bleu")
    with pytest.raises(ConfigError, match="unknown editor"):
        get_editor("memmit+blue")


def test_pairs_have_the_settings_published_for_them() -> None:
    alone = get_editor("alphaedit", as_published="gpt2-xl").config.model_dump()
    pair = get_editor("alphaedit+blue", as_published="gpt2-xl").config.model_dump()
    assert (alone["l2"], pair["l2"]) == (10.0, 80.0)
    assert pair["layers"] == (13, 14, 15, 16, 17)
    assert (
        get_editor("pmet+blue", as_published="gpt-j-6b").config.model_dump()["mom2_weight"] == 1000
    )


def test_auto_layers_are_the_traced_ones_of_a_model_without_published_ones(
    tiny: Tiny, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = tiny("gpt2")
    choice = Choice(1, (0, 1), facts=3, data="facts", effect=0.1, agreement=1.0, id="x")
    for module in (recall, base_joint):
        monkeypatch.setattr(module, "cached_choice", lambda lm: choice)
    assert built(make, "memit", layers="auto").edited_layers(lm) == (0, 1)
    assert built(make, "emmet", layers="auto").edited_layers(lm) == (1,)
    rome = make("rome", layer="auto")
    assert rome.made_of(lm) == {"layers": "1"}
    named = get_editor("memit").edited_layers(_Deep("gpt2-xl", 48))  # type: ignore[arg-type]
    assert named == (13, 14, 15, 16, 17)


class _Deep:
    """Stands for a model of which only the depth, the name and the FFN are asked."""

    def __init__(self, name: str, layers: int) -> None:
        self.name, self.n_layers, self.backbone = name, layers, identify(name)


@pytest.mark.parametrize(("name", "layers", "expected"), [
    ("gpt2-xl", 48, (13, 17)), ("EleutherAI/gpt-j-6b", 28, (3, 8)),
])  # fmt: skip
def test_auto_layers_are_the_published_ones(name: str, layers: int, expected: Any) -> None:
    found = get_editor("memit+blue").edited_layers(_Deep(name, layers))  # type: ignore[arg-type]
    assert found == expected


def test_residuals_are_what_each_block_misses(tiny: Tiny, make: Make) -> None:
    lm = tiny("gpt2")
    edits = EDITS[:2]
    found = built(make, "memit").residuals(lm, edits)
    assert list(found) == [0, 1]
    # the last is what the host aims at, the first what BLUE finds at its first block
    for layer, direct in found.items():
        alone = built(make, "memit", layers=(layer,))
        values = alone.residuals(lm, edits)[layer]
        torch.testing.assert_close(direct, values, rtol=SAME, atol=SAME)
    assert float((found[0] - found[1]).norm()) > 0.0
