"""Keys and values of contexts, kept from edit to edit: when they are used; nothing moves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.locate.samples import EDITS

from errata.locate import beginnings as module
from errata.locate import rows as rows_module
from errata.locate.beginnings import beginnings
from errata.locate.contexts import given_contexts
from errata.locate.values import ValueSettings, optimise_values
from errata.model.lm import LM
from errata.model.prefixes import make_prefix
from errata.patch import Patch
from errata.patch.changes import LowRank

Tiny = Callable[..., LM]

CONTEXTS = given_contexts(
    ["{}", "I think so. {}", "The weather was fine in the capital that year. {}"]
)
SETTINGS = ValueSettings(steps=5, clamp=4.0)
FAMILIES = ["gpt2", "gptj", "bloom", "llama", "qwen3", "gemma2", "phi"]


def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count texts that are computed to be kept."""
    made: list[int] = []
    own = make_prefix

    def counted(lm: LM, rows: list, *given: object) -> object:
        made.append(len(rows))
        return own(lm, rows, *given)

    monkeypatch.setattr(module, "make_prefix", counted)
    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_values_are_those_without(tiny: Tiny, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny(name, "float64")
    made = passes(monkeypatch)
    first = optimise_values(lm, EDITS[:1], CONTEXTS, 1, SETTINGS)
    again = optimise_values(lm, EDITS[:1], CONTEXTS, 1, SETTINGS)
    several = optimise_values(lm, EDITS, CONTEXTS, 1, SETTINGS)
    assert made == [2]  # two texts, once, for all three
    monkeypatch.setattr(rows_module, "beginnings", lambda lm, contexts: None)
    plain = optimise_values(lm, EDITS, CONTEXTS, 1, SETTINGS).delta["ffn"]
    torch.testing.assert_close(first.delta["ffn"], plain[:1], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(again.delta["ffn"], first.delta["ffn"], rtol=0, atol=0)
    torch.testing.assert_close(several.delta["ffn"], plain, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prefix_behind_known_beginnings_is_the_whole_one(tiny: Tiny, name: str) -> None:
    lm = tiny(name, "float64")
    prompts = (edit.prompt for edit in EDITS)
    rows = [lm.row(p, prefix=text) for p in prompts for text in CONTEXTS.prefixes]
    starts = [max(1, len(row.ids) - 2) for row in rows]
    kept = beginnings(lm, CONTEXTS)
    assert kept is not None
    known = kept.of(rows, starts)
    assert known is not None
    assert {n == 0 for n in known.starts} == {True, False}
    whole, behind = make_prefix(lm, rows, starts), make_prefix(lm, rows, starts, known)
    assert torch.equal(whole.mask, behind.mask)
    assert whole.starts == behind.starts
    real = whole.mask.bool()[:, None, :, None]
    for (k, v), (own_k, own_v) in zip(whole.layers, behind.layers, strict=True):
        torch.testing.assert_close(k * real, own_k * real, rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(v * real, own_v * real, rtol=1e-9, atol=1e-10)


def test_under_a_patch_nothing_kept_is_used(tiny: Tiny) -> None:
    lm = tiny("llama", "float64")
    site = lm.site(0, "ffn_out")
    patch = Patch((
        LowRank(
            site.path,
            torch.ones(site.d_out, 1, dtype=torch.float64),
            torch.ones(1, site.d_in, dtype=torch.float64),
        ),
    ))  # fmt: skip
    assert beginnings(lm, CONTEXTS) is not None
    with patch.applied(lm):
        assert beginnings(lm, CONTEXTS) is None
    assert beginnings(lm, given_contexts(["{}"])) is None


def test_a_text_counts_only_up_to_where_the_prefix_ends(tiny: Tiny) -> None:
    lm = tiny("gpt2", "float64")
    kept = beginnings(lm, CONTEXTS)
    assert kept is not None
    (row,) = [lm.row("France is", prefix=CONTEXTS.prefixes[1])]
    text = max((ids for ids in kept.places if row.ids[: len(ids)] == ids), key=len)
    assert kept.of([row], [len(text) - 1]) is None
    known = kept.of([row], [len(text)])
    assert known is not None
    assert known.starts == (len(text),)
