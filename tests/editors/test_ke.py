"""Oracle E.13 and what is KnowledgeEditor's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tests.locate.samples import EDITS
from tests.nets.samples import dense_gradients, relative, signals_of, small, untrained

from errata.case import Edit
from errata.editors.ke import Conditioner, KeNetwork, condition_text
from errata.model.lm import LM
from errata.patch import LowRank, Patch

EXACT = 1e-11

Tiny = Callable[..., LM]


def network_of(lm: LM, **settings: Any) -> tuple[Any, KeNetwork]:
    editor = small("ke", **{"layers": (1, 2), **settings})
    network = untrained(editor, lm)
    assert isinstance(network, KeNetwork)
    return editor, network


def test_E13_bounds_and_ranks() -> None:
    torch.manual_seed(0)
    net = Conditioner(12, 8, 7, 5).double()
    encoded = 50 * torch.randn(30, 12, dtype=torch.float64)
    (row_a, col_a), (row_b, col_b), gate = net(encoded)
    assert bool(((gate > 0) & (gate < 1)).all())
    for row, col in ((row_a, col_a), (row_b, col_b)):
        torch.testing.assert_close(row.sum(-1), torch.ones(30).double(), rtol=EXACT, atol=0)
        assert bool((row >= 0).all())
        matrices = row[:, :, None] * col[:, None]
        assert matrices.shape == (30, 5, 7)
        assert bool((torch.linalg.matrix_rank(matrices) == 1).all())


@pytest.mark.parametrize("kind", ["gpt2", "falcon", "qwen3"])
def test_E13_the_update_is_the_masked_gradient_and_a_shift(kind: str, tiny: Tiny) -> None:
    lm = tiny(kind)
    editor, network = network_of(lm, max_scale=0.5)
    sites = editor.sites(lm)
    signals = signals_of(lm, sites, editor.completed(lm, EDITS))
    with torch.no_grad():
        factors = network(signals).factors([site for _, site in sites])
        encoded = network.encode(signals.edits)
        parts = [net(encoded) for net in network.matrices]
    wanted = dense_gradients(lm, sites, signals.rows)
    for at, (_, site) in enumerate(sites):
        A, B = factors[site.path]
        (row_a, col_a), (row_b, col_b), gate = parts[at]
        assert A.shape[1] == signals.factors[at].h.shape[1] + 1
        for i in range(len(EDITS)):
            a, b = torch.outer(row_a[i], col_a[i]), torch.outer(row_b[i], col_b[i])
            assert relative(B[i] @ A[i], -0.5 * gate[i] * (wanted[i][at] * a + b)) < EXACT


def test_texts_do_not_depend_on_their_neighbours(tiny: Tiny) -> None:
    lm = tiny("gpt2")
    _, network = network_of(lm)
    with torch.no_grad():
        together = network.encode(EDITS)
        for i, edit in enumerate(EDITS):
            assert relative(together[i], network.encode([edit])[0]) < EXACT
        other = network.encode([replace(EDITS[0], target_true="Lima")])[0]
    assert relative(other, together[0]) > 1e-6


def test_the_text() -> None:
    edit = Edit("The capital of France is", " Rome", target_true="Paris ")
    assert condition_text(edit) == "Paris >> Rome || The capital of France is"


def test_what_the_model_says_is_asked_only_where_nothing_is_given(tiny: Tiny) -> None:
    lm = tiny("gpt2")
    editor, _ = network_of(lm)
    given = replace(EDITS[0], target_true="Lyon")
    filled = editor.completed(lm, [given, EDITS[1], EDITS[1]])
    assert filled[0] is given
    assert filled[1] == filled[2]
    tokens = len(lm.row(EDITS[1].prompt, EDITS[1].target).labels)
    assert filled[1].target_true == lm.generate([EDITS[1].prompt], tokens)[0]
    assert replace(filled[1], target_true=None) == EDITS[1]


def test_later_edits_read_what_the_edited_model_says(tiny: Tiny) -> None:
    """Stacked, each group's model is asked, as it would be alone with its patch in place."""
    from errata.patch.stack import Stack

    lm = tiny("gpt2")
    editor, network = network_of(lm)
    site = lm.site(2)
    g = torch.Generator().manual_seed(0)
    A = torch.randn(1, site.d_in, generator=g, dtype=torch.float64)
    B = 50 * torch.randn(site.d_out, 1, generator=g, dtype=torch.float64)
    patch = Patch.for_model(lm, [LowRank(site.path, B, A)], editor="hand")
    with Stack(lm, [None, patch]):
        plain, edited = (editor.completed(lm, EDITS, [n] * len(EDITS)) for n in (0, 1))
    assert plain == editor.completed(lm, EDITS)
    with patch.applied(lm):
        assert edited == editor.completed(lm, EDITS)
    assert plain != edited
    editor.adopt(lm, network.requires_grad_(False).eval())
    (made,) = editor.edit(lm, [EDITS[:1]], after=patch)
    assert made.edits == tuple(EDITS[:1])  # the record holds the request as it was


def test_the_embedding_is_not_stored(tiny: Tiny) -> None:
    lm = tiny("gpt2")
    _, network = network_of(lm)
    assert all(lm.embedding.shape != tensor.shape for tensor in network.state_dict().values())


def test_calibration_multiplies_what_is_stored(tiny: Tiny) -> None:
    _, network = network_of(tiny("gpt2"))
    before = network.kappa.clone()
    network.calibrate([2.0] * len(before))
    assert torch.equal(network.state_dict()["kappa"], 2 * before)
    assert network.edit_rates() == []
