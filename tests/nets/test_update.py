"""Oracles E.6 and E.7 for every trained editor: rows under their own update, and its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.locate.samples import EDITS
from tests.nets.samples import (
    TRAINED,
    dense_loss,
    gradients,
    group_of,
    relative,
    same_gradients,
    signals_of,
    small,
    untrained,
)
from torch import Tensor

from errata.case import Edit
from errata.model.lm import LM
from errata.model.tokens import patched, positions_of
from errata.nets.update import Term, Update
from errata.patch import Patch
from errata.patch.stack import Stack
from errata.training.config import TrainConfig
from errata.training.groups import Group
from errata.training.objective import Objective
from errata.training.prepared import Prepared

EXACT = 1e-11
GRADIENT = 1e-10
"""Relative to each gradient; a key bias has none but rounding (measured 9e-12, else 2e-14)."""
OWNER = [0, 1, 0, 1]

Tiny = Callable[..., LM]

everyone = pytest.mark.parametrize("name", TRAINED)
kinds = pytest.mark.parametrize("kind", ["gpt2", "falcon", "qwen3"])


def awake(network: Any, seed: int = 1) -> Any:
    """Move every parameter off its start, where many gradients would be zero."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=g).to(parameter))
        for rate in network.edit_rates():
            rate.fill_(-2.0 if getattr(network.rates, "space", "") == "log" else 0.1)
    return network


def made(name: str, lm: LM, **settings: Any) -> tuple[Any, Any, Any]:
    editor = small(name, layers=(1, 2), matrices="all", **settings)
    network = awake(untrained(editor, lm))
    edits = editor.completed(lm, EDITS)
    return editor, network, signals_of(lm, editor.sites(lm), edits, OWNER)


def logits(lm: LM, rows) -> Tensor:
    with torch.no_grad():
        return lm.logits(lm.batch(rows, range(len(rows))), positions_of(rows, range(len(rows))))


@everyone
@kinds
def test_E6_rows_under_their_own_update(name: str, kind: str, tiny: Tiny) -> None:
    lm = tiny(kind)
    editor, network, signals = made(name, lm)
    sites = [site for _, site in editor.sites(lm)]
    with torch.no_grad():
        update = network(signals)
    routes = [1, 0, -1, 0]
    rows = list(signals.rows)
    with Stack.of_factors(lm, update.factors(sites)):
        mixed = logits(lm, patched(rows, routes)).split([len(r.positions) for r in rows])
    base = logits(lm, rows).split([len(r.positions) for r in rows])
    assert torch.equal(mixed[2], base[2])  # E.7: a row without an update keeps its bits
    for group in (0, 1):
        with Patch(tuple(update.changes(sites, group))).applied(lm):
            alone = logits(lm, rows).split([len(r.positions) for r in rows])
        for i, route in enumerate(routes):
            if route == group:
                assert relative(mixed[i], alone[i]) < EXACT
                assert relative(mixed[i], base[i]) > 1e-6
    again = logits(lm, rows).split([len(r.positions) for r in rows])
    assert all(torch.equal(a, b) for a, b in zip(again, base, strict=True))


@everyone
@kinds
def test_E6_gradients_through_factors_are_those_through_weights(
    name: str, kind: str, tiny: Tiny
) -> None:
    lm = tiny(kind)
    editor, network, signals = made(name, lm)
    sites = editor.sites(lm)
    gens = (lm.row("Where does she live? She lives in", "Paris"),)
    members = [[0, 2], [1, 3]]
    groups: list[Group] = [
        group_of(lm, n, [signals.edits[i] for i in mine], gens) for n, mine in enumerate(members)
    ]
    objective = Objective(lm, Prepared(lm, sites, groups), TrainConfig())
    found = objective.run(network, groups, backward=lambda loss: loss.backward())
    got = gradients(network)

    ordered = signals_of(lm, sites, [e for g in groups for e in g.edits], [0, 0, 1, 1])
    update = network(ordered)
    factors = update.factors([site for _, site in sites])
    deltas = [{path: B[n] @ A[n] for path, (A, B) in factors.items()} for n in range(2)]
    loss = dense_loss(lm, groups, deltas, update.penalty)
    loss.backward()
    assert found["total"] == pytest.approx(float(loss.detach()), rel=1e-9)
    same_gradients(got, gradients(network), GRADIENT)


@pytest.mark.parametrize("name", [name for name in TRAINED if name != "malmen"])
def test_E6_a_group_is_the_sum_of_its_edits(name: str, tiny: Tiny) -> None:
    lm = tiny("gpt2")
    editor, network, joint = made(name, lm)
    sites = [site for _, site in editor.sites(lm)]
    alone = signals_of(lm, editor.sites(lm), joint.edits)
    with torch.no_grad():
        together, single = network(joint).factors(sites), network(alone).factors(sites)
    for path, (A, B) in together.items():
        a, b = single[path]
        each = b @ a
        for group in (0, 1):
            wanted = each[[i for i, o in enumerate(OWNER) if o == group]].sum(0)
            assert relative(B[group] @ A[group], wanted) < EXACT


def test_factors_side_by_side() -> None:
    g = torch.Generator().manual_seed(0)
    keys, values = (torch.randn(5, 3, d, generator=g, dtype=torch.float64) for d in (4, 6))
    mask = torch.rand(5, 3, generator=g) > 0.3
    mask[:, 0] = True
    keys = keys * mask[..., None]
    for owner in ([0, 1, 2, 3, 4], [1, 0, 1, 1, 0], [2, 2, 0, 1, 0], [4, 3, 2, 1, 0]):
        term = Term(keys, values, mask, torch.tensor(owner))
        groups = max(owner) + 1
        A, B = term.by_group(groups)
        site = type("Site", (), {"path": "p"})()
        update = Update((term,), groups)
        for group in range(groups):
            mine = [i for i, o in enumerate(owner) if o == group]
            wanted = -sum(values[i].T @ keys[i] for i in mine)
            assert relative(B[group] @ A[group], wanted) < EXACT
            (change,) = update.changes([site], group, scale=0.5)
            assert relative(change.B @ change.A, 0.5 * wanted) < EXACT
            assert change.rank == int(mask[mine].sum())


def test_scale_and_signal_source(tiny: Tiny) -> None:
    """Half the strength is half the update; `original` does not look at what is there."""
    lm = tiny("gpt2")
    whole, half = small("mend", joint="sum"), small("mend", joint="sum", scale=0.5)
    network = untrained(whole, lm).requires_grad_(False)
    for editor in (whole, half):
        editor.adopt(lm, network)
    patch, weaker = (e.edit_one(lm, EDITS[:2]) for e in (whole, half))
    for a, b in zip(patch.changes, weaker.changes, strict=True):
        assert relative(2 * b.B @ b.A, a.B @ a.A) < EXACT
    later: list[Edit] = EDITS[2:3]
    for source, same in (("original", True), ("current", False)):
        editor = small("mend", joint="sum", signal_source=source)
        editor.adopt(lm, network)
        fresh = editor.edit_one(lm, later)
        added = editor.edit_one(lm, later, after=patch)
        new = added.changes[len(patch.changes) :]
        pairs = [(a.B, b.B) for a, b in zip(new, fresh.changes, strict=True)]
        assert all(torch.equal(a, b) for a, b in pairs) == same
