"""Parameters of networks: the published table, and modules that are really built."""

from __future__ import annotations

from typing import Any

import pytest

from errata.editors import editors
from errata.sweeping.backbones import KNOWN
from errata.sweeping.counts import needs_of

# l_m = 10, no biases, three matrices: GPT2-XL, GPT-J, Qwen3-1.7B, Qwen3-8B
TABLE = {
    "gpt2-xl": (37_658_883, 76_890_627, 160_072_707, 345_311_235),
    "gpt-j-6b": (95_166_723, 191_906_307, 390_104_067, 805_373_955),
    "qwen3-1.7b": (38_543_619, 78_660_099, 163_611_651, 352_389_123),
    "qwen3-8b": (76_292_355, 154_157_571, 314_606_595, 654_379_011),
}
WIDTHS = (256, 512, 1024, 2048)


@pytest.mark.parametrize("name", TABLE)
def test_ibke_matches_the_published_formula(name: str) -> None:
    """The table has no biases; those of our maps are counted by hand beside it."""
    model = KNOWN[name]
    for d_m, expected in zip(WIDTHS, TABLE[name], strict=True):
        found = needs_of("ibke", {"d_m": d_m, "l_m": 10, "layers": (1, 2, 3)}, model)
        assert found.matrices == 3
        assert found.network == expected + 3 * (9 * d_m + model.signal + 1)


def test_published_sizes() -> None:
    assert needs_of("ibke", {}, KNOWN["gpt2-xl"]).network == 160_124_358
    # EasyEdit's MEND for GPT2-XL: 123.1 M
    assert needs_of("mend", {}, KNOWN["gpt2-xl"]).network == pytest.approx(123.1e6, rel=1e-3)
    # OPT-125M and MPNet, as in the paper's baseline
    serac = needs_of("serac", {"small": "facebook/opt-125m"}, KNOWN["gpt2-xl"])
    assert serac.network == pytest.approx(234e6, rel=0.01)


@pytest.mark.parametrize("name", sorted(editors.entries))
@pytest.mark.parametrize("model", ["gpt2-xl", "qwen3-8b"])
def test_every_editor_can_be_asked(name: str, model: str) -> None:
    found = needs_of(name, {}, KNOWN[model])
    trained = "training" in editors.entry(name).facts.get("needs", ())
    assert (found.network > 0) == trained
    assert found.cost.passes >= 0
    assert found.cost.questions >= 1
    assert found.cost.held >= 0


def test_what_is_chosen_for_a_model_is_what_is_counted() -> None:
    """The published blocks of GPT2-XL, and a rule for others: never typed a second time."""
    assert needs_of("ibke", {}, KNOWN["gpt2-xl"]).lowest == 15
    assert needs_of("malmen", {}, KNOWN["gpt-j-6b"]).lowest == 22
    # all matrices of three blocks: one in, one out; two in where there is a gate
    assert needs_of("mend", {}, KNOWN["gpt2-xl"]).matrices == 6
    assert needs_of("mend", {}, KNOWN["qwen3-8b"]).matrices == 9


def test_costs_follow_the_settings() -> None:
    model = KNOWN["gpt2-xl"]
    rome = needs_of("rome", {"steps": 20, "contexts": "rome"}, model).cost
    assert rome.passes == 20 * 2 * (21 + 1)
    assert rome.held == 2 * 8.0 * 6400**2  # a moment and a factor
    assert needs_of("rome", {"steps": 10, "contexts": "bare"}, model).cost.passes == 10 * 2 * 2
    memit = needs_of("memit", {"steps": 25, "contexts": "memit"}, model).cost
    assert memit.passes == 25 * 2 * (6 + 1)
    assert memit.held == 6 * 8.0 * 6400**2
    assert needs_of("alphaedit", {}, model).cost.held == 10 * 8.0 * 6400**2
    assert needs_of("none", {}, model).cost.passes == 0


@pytest.mark.parametrize("settings", [{}, {"shared": False}, {"n_layers": 1}, {"matrices": "out"}])
def test_built_for_a_model_that_is_there(settings: dict[str, Any]) -> None:
    """What is counted on bare widths is what is built for the model itself."""
    import errata
    from errata.editors import get_editor

    lm = errata.load("pocket")
    editor: Any = get_editor("mend", {**settings, "width": 9, "layers": (1, 2)}, model="pocket")
    network = editor.build(editor.sites(lm), lm)
    found = needs_of("mend", editor.config.model_dump(), KNOWN["pocket"])
    assert found.network == sum(parameter.numel() for parameter in network.parameters())
