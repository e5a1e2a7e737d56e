"""Latents and gates of IBKE's networks, held against arithmetic of their own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.locate.samples import EDITS
from tests.nets.samples import signals_of, small, untrained
from torch import Tensor

from errata.editors.base_inside import InsideEditor
from errata.errors import ConfigError
from errata.model.lm import LM
from errata.nets.inside import smallest

EXACT = 1e-10

Tiny = Callable[..., LM]


def adopted(lm: LM, **settings: Any) -> tuple[InsideEditor, Any]:
    editor = small("ibke", **{"layers": (0, 1), **settings})
    network = untrained(editor, lm).requires_grad_(False).eval()
    for parameter in network.parameters():  # gates that differ
        parameter.copy_(
            parameter + 0.3 * torch.sin(torch.arange(parameter.numel()).view_as(parameter))
        )
    editor.adopt(lm, network)
    return editor, network


def dense(patch: Any, path: str, like: Tensor) -> Tensor:
    """Return what a patch adds to one matrix, `d_out x d_in`."""
    parts = [c.B @ c.A for c in patch.changes if c.path == path]
    return sum(parts, torch.zeros_like(like))


def test_latents_are_the_means_of_equation_26(tiny: Tiny) -> None:
    lm = tiny("gpt2")
    editor, network = adopted(lm, norm="none")
    found = editor.latents(lm, EDITS)
    sites = editor.sites(lm)
    assert list(found) == [site.path for _, site in sites]
    signals = signals_of(lm, sites)
    for (path, latents), net, factors in zip(
        found.items(), network.matrices, signals.factors, strict=True
    ):
        assert latents.shape == (len(EDITS), 3, 16), path
        for edit in range(len(EDITS)):
            own = factors.mask[edit]
            s = torch.cat([factors.h[edit, own], factors.u[edit, own]], -1)
            attention = net.to_mean
            logits = attention.q(net.latents) @ attention.k(s).T / math.sqrt(16)
            assert torch.allclose(latents[edit], logits.softmax(-1) @ attention.v(s), atol=EXACT)


def test_an_edit_s_latents_do_not_depend_on_those_beside_it(tiny: Tiny) -> None:
    lm = tiny("qwen3")
    editor, _ = adopted(lm)
    whole = editor.latents(lm, EDITS)
    for number, edit in enumerate(EDITS):
        alone = editor.latents(lm, [edit])
        for path, latents in whole.items():
            assert torch.allclose(latents[number], alone[path][0], atol=1e-8)


def test_requests_that_the_editor_adds_are_not_counted(tiny: Tiny) -> None:
    lm = tiny("gpt2")
    editor, _ = adopted(lm, mirror=True)
    assert all(len(latents) == len(EDITS) for latents in editor.latents(lm, EDITS).values())


def test_gates_stand_at_the_tokens_that_are_written(tiny: Tiny) -> None:
    lm = tiny("gpt2")
    editor, network = adopted(lm)
    for net in network.matrices:
        net.gate.weight.zero_()
        net.gate.bias.fill_(math.log(3))
    for edit, found in zip(EDITS, editor.gates(lm, EDITS), strict=True):
        row = lm.row_of(edit)
        assert found.ids == (*row.ids, row.labels[-1])
        assert found.prompt_length == row.prompt_length
        for gates in found.by_matrix.values():
            assert torch.allclose(gates[:-1], torch.full_like(gates[:-1], 0.75))
            assert gates[-1].isnan()  # nothing is predicted from the last token


def test_a_pruned_patch_is_one_with_gates_of_zero(tiny: Tiny) -> None:
    lm = tiny("gpt2")
    editor, network = adopted(lm)
    group = list(EDITS[:2])
    patches = editor.pruned(lm, [group], (0.0, 0.4, 1.0))[0]
    sites = [site for _, site in editor.sites(lm)]
    signals = signals_of(lm, editor.sites(lm), group, [0, 0])
    insides = network.inside(signals)
    masks = [inside.mask for inside in insides]
    kept = smallest([i.gates for i in insides], masks, torch.ones(2, dtype=torch.bool), 0.4)
    values = torch.cat([i.gates[m] for i, m in zip(insides, masks, strict=True)])
    limit = values.sort().values[round(0.4 * len(values))]

    # the reference: the gates themselves are shut, by a logit of minus infinity
    def shut(own: Tensor) -> Any:
        return lambda module, args, output: torch.where(own[..., None], output, -torch.inf)

    for inside, own, mask in zip(insides, kept, masks, strict=True):
        assert torch.equal(own, (inside.gates >= limit) & mask)
    handles = [
        net.gate.register_forward_hook(shut(own))
        for net, own in zip(network.matrices, kept, strict=True)
    ]
    wanted = network(signals)
    for handle in handles:
        handle.remove()
    whole, moved = editor.edit(lm, [group])[0], []
    for site, term in zip(sites, wanted.terms, strict=True):
        expected = -torch.einsum("eto,eti->oi", term.values, term.keys)
        assert torch.allclose(dense(patches[1], site.path, expected), expected, atol=EXACT)
        full = dense(whole, site.path, expected)
        assert torch.allclose(dense(patches[0], site.path, expected), full, atol=EXACT)
        moved.append(not torch.allclose(full, expected, atol=1e-6))
    assert any(moved)
    assert patches[2].is_empty


def test_the_smallest_go_over_all_matrices_together() -> None:
    gates = [torch.tensor([[0.9, 0.1, 0.5]]), torch.tensor([[0.2, 0.8, 0.0]])]
    masks = [torch.ones(1, 3, dtype=torch.bool), torch.tensor([[True, True, False]])]
    kept = smallest(gates, masks, torch.tensor([True]), 0.4)
    assert [own.tolist() for own in kept] == [[[True, False, True]], [[False, True, False]]]


def test_networks_without_gates_are_refused(tiny: Tiny) -> None:
    lm = tiny("gpt2")
    editor, _ = adopted(lm, scaling=False)
    assert editor.latents(lm, EDITS)
    for ask in (lambda: editor.gates(lm, EDITS), lambda: editor.pruned(lm, [EDITS], (0.5,))):
        with pytest.raises(ConfigError, match="without gates") as failed:
            ask()
        assert "errata train ibke" in str(failed.value.hint)
    pooled, _ = adopted(lm, rank=2)
    with pytest.raises(ConfigError, match="fixed rank"):
        pooled.pruned(lm, [EDITS], (0.5,))
