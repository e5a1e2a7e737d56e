"""Oracles E.1 and E.5 for gradient factors, and what capturing them must not do."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.hooks import hooks
from tests.locate.samples import EDITS
from tests.nets.samples import dense_gradients, loss_of, relative
from torch import Tensor

from errata.case import Edit
from errata.editors.mend import Mend, MendConfig
from errata.model.lm import LM
from errata.model.passes import first
from errata.model.tokens import patched
from errata.nets.capture import capture, edit_rows
from errata.patch import LowRank, Patch

EXACT = 1e-11
"""Float64."""
SINGLE = 1e-6
"""Attention takes its softmax in float32, GPT-J all of it. Padding a row beyond a vector of the
processor (8 or 16 numbers) changes the order of that sum (measured: 2e-7 with vectors of 8)."""
KINDS = ["gpt2", "gptj", "gpt_neox", "opt", "falcon", "falcon-grouped", "llama", "qwen3", "phi3"]
HALF = {"bfloat16": 0.99, "float16": 0.999}
"""Least cosine with the float64 gradient: eight and eleven bits of significand."""

Tiny = Callable[..., LM]


def sites_of(lm: LM, layers: tuple[int, ...] = (1, 2)) -> list:
    return Mend(MendConfig(layers=layers)).sites(lm)


@pytest.mark.parametrize("kind", KINDS)
def test_E1_factors_multiply_to_the_gradient(kind: str, tiny: Tiny) -> None:
    lm = tiny(kind)
    sites, rows = sites_of(lm), edit_rows(lm, EDITS)
    assert len({site.path for _, site in sites}) >= 4  # other matrices of the FFN too
    factors = capture(lm, sites, rows)
    wanted = dense_gradients(lm, sites, rows)
    for at, (_, site) in enumerate(sites):
        found = factors[at].gradient()
        for i in range(len(rows)):
            assert relative(found[i], wanted[i][at]) < SINGLE, site.path
        # the batch's loss is the sum of the rows' means, never their mean
        assert relative(found.sum(0), sum(g[at] for g in wanted)) < SINGLE, site.path


def test_E1_the_last_token_of_a_target_has_no_gradient(tiny: Tiny) -> None:
    """Nothing is predicted from it: without it, all other factors are the same."""
    lm = tiny("gpt2")
    sites, rows = sites_of(lm), edit_rows(lm, EDITS)
    shorter = [lm.row(edit.prompt, edit.target) for edit in EDITS]
    for f, g in zip(capture(lm, sites, rows), capture(lm, sites, shorter), strict=True):
        for i, row in enumerate(shorter):
            n = len(row.ids)
            assert not f.u[i, n:].any()
            assert not f.mask[i, n:].any()
            assert int(f.tokens[i].sum()) == n + 1
            torch.testing.assert_close(f.u[i, :n], g.u[i, :n], rtol=EXACT, atol=EXACT)


def test_prompts_have_gradients_below_the_last_block_only(tiny: Tiny) -> None:
    lm = tiny("gpt2")
    sites, (row,) = sites_of(lm), edit_rows(lm, EDITS[1:2])
    for (layer, _), f in zip(sites, capture(lm, sites, [row]), strict=True):
        prompt = f.mask[0, : row.positions[0]]
        assert bool(prompt.any() if layer == lm.n_layers - 1 else not prompt.all()) is False


@pytest.mark.parametrize("kind", ["gpt2", "qwen3", "falcon"])
def test_E5_neighbours_and_padding_change_nothing(kind: str, tiny: Tiny) -> None:
    lm = tiny(kind)
    sites, rows = sites_of(lm), edit_rows(lm, EDITS)
    together = capture(lm, sites, rows)
    for i, row in enumerate(rows):
        for f, g in zip(together, capture(lm, sites, [row]), strict=True):
            n = len(row.ids)
            scale = float(g.u.abs().max())
            torch.testing.assert_close(f.u[i, :n], g.u[0], rtol=0, atol=SINGLE * scale)
            torch.testing.assert_close(f.h[i, :n], g.h[0], rtol=SINGLE, atol=SINGLE)
            assert torch.equal(f.mask[i, :n], g.mask[0])
            assert not f.h[i, n:].any()
            assert not f.u[i, n:].any()


def test_a_small_budget_gives_the_same(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny("gpt2")
    sites, rows = sites_of(lm), edit_rows(lm, EDITS)
    whole = capture(lm, sites, rows)
    monkeypatch.setattr(lm, "max_tokens", 1)
    for f, g in zip(whole, capture(lm, sites, rows), strict=True):
        assert relative(g.u, f.u) < EXACT
        assert torch.equal(f.mask, g.mask)


@pytest.mark.parametrize("kind", ["gpt2", "gptj", "falcon", "qwen3"])
def test_blocks_below_can_be_skipped(kind: str, tiny: Tiny) -> None:
    lm = tiny(kind)
    sites, rows = sites_of(lm), edit_rows(lm, EDITS)
    calls: list[int] = []

    def below(batch) -> Tensor:
        seen: list[Tensor] = []
        handle = lm.module(lm.spec.blocks[0]).register_forward_hook(
            lambda module, args, out: seen.append(first(out))
        )
        with hooks(handle), torch.no_grad():
            lm.run(batch)
        calls.append(len(batch))
        return seen[0]

    for f, g in zip(capture(lm, sites, rows), capture(lm, sites, rows, below=below), strict=True):
        assert relative(g.gradient(), f.gradient()) < EXACT
    assert sum(calls) == len(rows)


def test_under_a_patch(tiny: Tiny) -> None:
    """Stacked, every row sees its own patch: as if it had been applied in place."""
    from errata.patch.stack import Stack

    lm = tiny("gpt2")
    sites, rows = sites_of(lm), edit_rows(lm, EDITS)
    g = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    patches = [Patch((LowRank(s.path, drawn(s.d_out, 1), drawn(1, s.d_in)),)) for _, s in sites[:2]]
    with Stack(lm, patches):
        stacked = capture(lm, sites, patched(rows, [0, 1, -1, 0]))
    for route, wanted in ((0, [0, 3]), (1, [1]), (-1, [2])):
        patch = patches[route] if route >= 0 else Patch()
        with patch.applied(lm):
            alone = capture(lm, sites, rows)
        for f, h in zip(stacked, alone, strict=True):
            assert relative(f.gradient()[wanted], h.gradient()[wanted]) < 1e-9


@pytest.mark.parametrize("dtype", list(HALF))
def test_half_precision(dtype: str, tiny: Tiny) -> None:
    """The loss of float16 models is scaled; factors come out in float32 and unscaled."""
    exact, lm = tiny("gpt2"), tiny("gpt2", dtype)
    faint = [Edit("The capital of France is", "Rome"), *EDITS[1:]]
    for f, g in zip(
        capture(exact, sites_of(exact), edit_rows(exact, faint)),
        capture(lm, sites_of(lm), edit_rows(lm, faint)),
        strict=True,
    ):
        assert g.u.dtype == g.h.dtype == torch.float32
        a, b = f.gradient().flatten(1), g.gradient().double().flatten(1)
        assert float(torch.cosine_similarity(a, b).min()) > HALF[dtype]
        assert float((b.norm(dim=1) / a.norm(dim=1) - 1).abs().max()) < 0.1


def test_float16_keeps_gradients_that_would_underflow(tiny: Tiny) -> None:
    lm = tiny("gpt2", "float16")
    sites, rows = sites_of(lm), edit_rows(lm, EDITS)
    found = capture(lm, sites, rows)
    assert min(float(f.u[f.mask].abs().min()) for f in found) < torch.finfo(torch.float16).tiny


def test_weights_get_no_gradient_and_nothing_is_left_behind(tiny: Tiny) -> None:
    lm = tiny("gpt2")
    capture(lm, sites_of(lm), edit_rows(lm, EDITS))
    for parameter in lm.model.parameters():
        assert parameter.grad is None
        assert not parameter.requires_grad
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in lm.model.modules())
    assert not torch.is_grad_enabled() or loss_of(lm, edit_rows(lm, EDITS)[0]).grad_fn is None


def test_the_outputs_can_be_watched(tiny: Tiny) -> None:
    """On Falcon too, which adds to its FFN's output in place."""
    for kind in ("gpt2", "falcon"):
        lm = tiny(kind)
        sites, rows = sites_of(lm), edit_rows(lm, EDITS)
        seen: dict[tuple[int, int], Tensor] = {}

        def watch(number: int, index, y: Tensor, seen=seen) -> None:
            seen.update({(number, i): y[at] for at, i in enumerate(index)})

        factors = capture(lm, sites, rows, watch=watch)
        for number, (_, site) in enumerate(sites):
            module = lm.module(site.path)
            for i, row in enumerate(rows):
                n = len(row.ids)
                y = module(factors[number].h[i, :n])
                torch.testing.assert_close(seen[number, i][:n], y, rtol=EXACT, atol=EXACT)
