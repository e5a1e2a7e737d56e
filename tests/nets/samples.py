"""Small networks of trained editors, and plain references to hold them against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tests.locate.samples import EDITS
from torch import Tensor

from errata.case import Edit
from errata.editors import editors, get_editor
from errata.editors.base_networks import NetworkEditor
from errata.model.lm import LM
from errata.model.spec import Site
from errata.model.tokens import Row, positions_of
from errata.nets.capture import Signals, capture, edit_rows
from errata.nets.update import FactorNetwork
from errata.patch.places import is_transposed
from errata.training.config import TrainConfig
from errata.training.groups import Group
from errata.training.prepared import Prepared

SMALL: dict[str, Any] = {
    "layers": (1,),
    "d_m": 16,
    "l_m": 3,
    "width": 8,
    "chunk": 16,
    "lstm": 8,
    "condition": 12,
    "norm": "unit",
    "router": "own:0",
    "small": "own:0,1",
    "train_router": True,
    "key_width": 8,
}
"""Given to every trained editor that has a setting of the name."""

LEARNING = [
    name
    for name, entry in editors.entries.items()
    if entry.is_own and "training" in entry.facts["needs"] and name != "ibke-retrieval"
]
"""Editors with networks of whatever kind; `ibke-retrieval` uses those of `ibke`."""

TRAINED = [name for name in LEARNING if editors.entry(name).facts["weights"]]
"""Those whose networks write an update of weights."""


def small(name: str, **settings: Any) -> Any:
    """Return an editor with small settings and no networks yet."""
    known = editors.load(name).Config.model_fields
    chosen = {key: value for key, value in SMALL.items() if key in known}
    editor = get_editor(name, {**chosen, **settings})
    assert isinstance(editor, NetworkEditor)
    return editor


def untrained(editor: NetworkEditor, lm: LM, seed: int = 0) -> Any:
    """Return networks with seeded weights, in the type of the model's factors."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = editor.build(editor.sites(lm), lm)
    return network.to(lm.device, torch.promote_types(lm.dtype, torch.float32))


def signals_of(
    lm: LM,
    sites: Sequence[tuple[int, Site]],
    edits: Sequence[Edit] = EDITS,
    owner: Sequence[int] | None = None,
) -> Signals:
    rows = edit_rows(lm, edits)
    groups = torch.tensor(range(len(edits)) if owner is None else list(owner))
    return Signals(capture(lm, sites, rows), groups, tuple(edits), tuple(rows))


def group_of(lm: LM, number: int, edits: Sequence[Edit], gens: Sequence[Row] = ()) -> Group:
    locs = (lm.row("The river flows through the", "town"), lm.row("It works for", "the city"))
    rows = tuple(edit_rows(lm, edits))
    return Group(str(number), tuple(edits), rows, tuple(gens), locs, len(edits))


def briefly_trained(editor: NetworkEditor, lm: LM, steps: int = 12, lr: float = 3e-3) -> Any:
    """Return networks trained for a few steps on the edits that the tests make."""
    network = untrained(editor, lm)
    edits = editor.completed(lm, EDITS)
    groups = [group_of(lm, i, [edit]) for i, edit in enumerate(edits)]
    prepared = Prepared(lm, editor.sites(lm), groups)
    objective = editor.objective(lm, prepared, TrainConfig())
    objective.start(network, groups, groups)
    rates = network.edit_rates()
    rest = [p for p in network.parameters() if id(p) not in {id(r) for r in rates}]
    optimizer = torch.optim.Adam([{"params": rest, "lr": lr}, {"params": rates, "lr": 10 * lr}])
    for _ in range(steps):
        optimizer.zero_grad()
        objective.run(network, groups, backward=lambda loss: loss.backward())
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    return network.requires_grad_(False).eval()


def loss_of(lm: LM, row: Row) -> Tensor:
    """Return the mean negative log-likelihood of a row's labels, by itself in a plain pass."""
    logits = lm.logits(lm.batch([row], [0]), positions_of([row], [0]))
    return torch.nn.functional.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)), torch.tensor(row.labels)
    )


def dense_gradients(
    lm: LM, sites: Sequence[tuple[int, Site]], rows: Sequence[Row]
) -> list[list[Tensor]]:
    """Return autograd's gradient of each row's loss for each weight, `d_out x d_in`."""
    weights = [lm.model.get_parameter(f"{site.path}.weight") for _, site in sites]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        found = [torch.autograd.grad(loss_of(lm, row), weights) for row in rows]
    finally:
        for weight in weights:
            weight.requires_grad_(False)
    turned = [is_transposed(lm.module(site.path)) for _, site in sites]
    return [[g.T if t else g for g, t in zip(gs, turned, strict=True)] for gs in found]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().norm() / expected.detach().norm())


def dense_loss(
    lm: LM, groups: Sequence[Group], deltas: Sequence[dict[str, Tensor]], penalty: Tensor | None
) -> Tensor:
    """Return the training loss with weights that were formed, row by row, for autograd alone.

    Args:
        lm: The model.
        groups: Training groups.
        deltas: For each group the change of each matrix by path, `d_out x d_in`.
        penalty: The networks' own loss of each edit.
    """

    def logprobs(row: Row, delta: dict[str, Tensor]) -> Tensor:
        changed = {}
        for path, d in delta.items():
            weight = lm.model.get_parameter(f"{path}.weight")
            changed[f"{path}.weight"] = weight + (d.T if is_transposed(lm.module(path)) else d)
        ids = torch.tensor([row.ids])
        out = torch.func.functional_call(lm.model, changed, (ids,), {"use_cache": False})
        return out.logits[0, list(row.positions)].log_softmax(-1)

    nll, kl, tokens, held = torch.zeros(()).double(), torch.zeros(()).double(), 0, 0
    for group, delta in zip(groups, deltas, strict=True):
        for row in (*group.edit_rows[: group.main], *group.gens):
            found = logprobs(row, delta)
            nll = nll - found[torch.arange(len(row.labels)), torch.tensor(row.labels)].sum()
            tokens += len(row.labels)
        for row in group.locs:
            edited, base = logprobs(row, delta), logprobs(row, {})
            kl = kl + (edited.exp() * (edited - base)).sum()
            held += len(row.labels)
    own = penalty.mean() if penalty is not None else 0.0
    return nll / tokens + kl / held + own


def gradients(network: FactorNetwork) -> dict[str, Tensor]:
    """Take the gradients away from the parameters."""
    found = {}
    for name, parameter in network.named_parameters():
        found[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        parameter.grad = None
    return found


def same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Compare every parameter's gradient; one that has to be zero is held against all others."""
    assert found.keys() == expected.keys()
    least = 1e-6 * max(float(want.norm()) for want in expected.values())
    for name, want in expected.items():
        error = float((found[name] - want).norm() / want.norm().clamp(min=least))
        assert error < tolerance, (name, error, float(want.norm()))
