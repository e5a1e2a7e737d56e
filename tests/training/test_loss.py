"""The losses and their gradients, against plain autograd through edited weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.nets.samples import small, untrained
from tests.training.samples import CASES, groups, model, without
from torch import Tensor, nn
from torch.func import functional_call

from errata.model.lm import LM
from errata.nets.update import FactorNetwork
from errata.patch.places import is_transposed
from errata.training import TrainConfig
from errata.training.groups import Group, merged
from errata.training.objective import Objective
from errata.training.prepared import Prepared
from errata.training.sampler import noise_for

EXACT = 1e-9
"""Relative to the largest gradient, in float64: the two ways sum in another order, no more."""
NEAR = 1e-4
"""The same in float32, whose rounding is 6e-8 a step."""


def objective(lm: LM, of: Sequence[Group], memory_gb: float = 1.0, **settings: Any) -> Objective:
    sites = small("ibke").sites(lm)
    return Objective(lm, Prepared(lm, sites, of, memory_gb), TrainConfig(**settings))


def gradients(
    made: Objective, network: FactorNetwork, of: Sequence[Group], noise: Any = None
) -> tuple[dict[str, float], dict[str, Tensor]]:
    network.zero_grad()
    found = made.run(network, of, noise=noise, backward=lambda total: total.backward())
    return found, {k: p.grad.clone() for k, p in network.named_parameters() if p.grad is not None}


def dense(
    lm: LM, made: Objective, network: FactorNetwork, of: Sequence[Group], noise: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Return generality, locality and penalty with every group's weights formed in full."""
    update = network(made.prepared.signals_of(of), noise)
    factors = update.factors([site for _, site in made.prepared.sites])
    sg, il, config = [], [], made.config
    for at, group in enumerate(of):
        weights = {}
        for path, (a, b) in factors.items():
            change = b[at] @ a[at]
            module = lm.module(path)
            weights[f"{path}.weight"] = module.weight + (
                change.T if is_transposed(module) else change
            )

        def answers(row: Any, edited: dict[str, Tensor]) -> Tensor:
            ids = torch.tensor([row.ids])
            logits = functional_call(lm.model, edited, (), {"input_ids": ids}).logits[0]
            return logits[list(row.positions)].log_softmax(-1)

        own = group.edit_rows[: group.main] if config.include_edit else ()
        for row in (*own, *group.gens):
            sg.append(-answers(row, weights)[range(len(row.labels)), row.labels])
        for row in group.locs:
            edited, plain = answers(row, weights), answers(row, {}).detach()
            p, q = (edited, plain) if config.kl == "edited_first" else (plain, edited)
            il.append((p.exp() * (p - q)).sum(-1))
    by_token = config.reduction == "token_mean"
    gen = torch.cat(sg).mean() if by_token else torch.cat(sg).sum() / len(sg)
    penalty = torch.zeros(()) if update.penalty is None else update.penalty.mean()
    return gen, torch.cat(il).mean(), penalty


@pytest.mark.parametrize("name", ["ibke", "mend", "malmen"])
@pytest.mark.parametrize(
    "settings", [{}, {"kl": "original_first", "reduction": "seq_sum", "include_edit": False}]
)
def test_gradient_is_that_through_formed_weights(name: str, settings: dict[str, Any]) -> None:
    lm = model("float64")
    of = [merged(groups(lm)[:2]), *groups(lm)[2:4]]
    editor = small(name, matrices="out")
    made = Objective(lm, Prepared(lm, editor.sites(lm), of), TrainConfig(**settings))
    network = untrained(editor, lm)
    network.calibrate([1e3] * len(network.edit_rates()[0]))
    with torch.no_grad():  # some start at the identity, where half the gradients are zero
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    network.observe(made.prepared.signals_of(of))
    noise = noise_for(0, 0, of, range(len(of)))
    found, mine = gradients(made, network, of, noise)
    network.zero_grad()
    gen, loc, penalty = dense(lm, made, network, of, noise)
    (gen + loc + penalty).backward()
    gen, loc, penalty = gen.detach(), loc.detach(), penalty.detach()
    assert found["sg"] == pytest.approx(float(gen), rel=EXACT)
    assert found["il"] == pytest.approx(float(loc), rel=EXACT)
    assert found["penalty"] == pytest.approx(float(penalty), rel=EXACT)
    assert float(loc) > 0
    wanted = {k: p.grad for k, p in network.named_parameters() if p.grad is not None}
    largest = max(float(g.abs().max()) for g in wanted.values())
    assert largest > 0
    for key, gradient in wanted.items():
        assert float((mine[key] - gradient).abs().max()) < EXACT * largest, key


def strong(lm: LM) -> FactorNetwork:
    """Return networks whose updates move the model's answers well above rounding."""
    network = untrained(small("ibke"), lm)
    network.calibrate([3e3])
    return network


def close(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float) -> None:
    largest = max(float(g.abs().max()) for g in left.values())
    for key, gradient in left.items():
        assert float((gradient - right[key]).abs().max()) <= tolerance * largest, key


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_small_passes_give_the_same_gradient(dtype: str) -> None:
    lm = model(dtype)
    of, network = groups(lm)[:4], strong(lm)
    whole = gradients(objective(lm, of), network, of)
    budget = lm.max_tokens
    try:
        lm.max_tokens = 40
        parts = gradients(objective(lm, of), network, of)
    finally:
        lm.max_tokens = budget
    tolerance = EXACT if dtype == "float64" else NEAR
    assert parts[0] == pytest.approx(whole[0], rel=tolerance)
    close(whole[1], parts[1], tolerance)


def test_keeping_nothing_gives_the_same_losses() -> None:
    lm = model("float32")
    of, network = groups(lm)[:4], strong(lm)
    kept, fresh = objective(lm, of), objective(lm, of, memory_gb=0)
    assert kept.prepared.base
    assert not fresh.prepared.base
    assert not fresh.prepared.signals
    assert kept.run(network, of)["il"] > 0.01
    left, right = gradients(kept, network, of), gradients(fresh, network, of)
    assert right[0] == pytest.approx(left[0], rel=NEAR)
    close(left[1], right[1], NEAR)


def test_groups_that_were_not_prepared_are_computed() -> None:
    lm = model("float64")
    of, network = groups(lm), untrained(small("ibke"), lm)
    some = objective(lm, of[:2]).run(network, of[2:4])
    everything = objective(lm, of).run(network, of[2:4])
    assert some == pytest.approx(everything, rel=EXACT)


def test_groups_do_not_see_each_other() -> None:
    lm = model("float64")
    of, network = groups(lm)[:4], strong(lm)
    made = objective(lm, of)
    counts = made.counts(of)
    alone = [made.run(network, [group], counts=counts) for group in of]
    together = made.run(network, of)
    for key in ("total", "sg", "il"):
        assert sum(found[key] for found in alone) == pytest.approx(together[key], rel=EXACT)


@pytest.mark.parametrize(("missing", "zero"), [("locality", "il"), ("generality", "sg")])
def test_terms_without_data_are_zero(missing: str, zero: str) -> None:
    lm = model()
    of = groups(lm, without(missing))[:4]
    made = objective(lm, of, include_edit=False)
    found, grads = gradients(made, untrained(small("ibke"), lm), of)
    assert found[zero] == 0
    assert found["total"] > 0
    assert all(bool(g.isfinite().all()) for g in grads.values())


@pytest.mark.parametrize("weight", ["sg_weight", "il_weight"])
def test_a_weight_of_zero_leaves_a_term_out(weight: str) -> None:
    lm = model()
    of = groups(lm)[:2]
    found = objective(lm, of, **{weight: 0.0}).run(untrained(small("ibke"), lm), of)
    assert found[weight.removesuffix("_weight")] == 0


class Nothing(FactorNetwork):
    """A network whose update is exactly zero."""

    def __init__(self, inner: FactorNetwork) -> None:
        super().__init__()
        self.inner = inner
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, signals: Any, noise: Any = None) -> Any:
        update = self.inner(signals, noise)
        terms = tuple(type(t)(t.keys * self.scale, t.values, t.mask, t.owner) for t in update.terms)
        return type(update)(terms, update.groups, None, None)


def test_no_update_is_no_loss_of_locality() -> None:
    lm = model("float64")
    of = groups(lm)[:4]
    made = objective(lm, of)
    found = made.run(Nothing(untrained(small("ibke"), lm)), of)
    assert abs(found["il"]) < 1e-12
    rows = [row for g in of for row in made.gens(g)]
    labels = sum(len(row.labels) for row in rows)
    plain = -sum(sum(score.logprobs) for score in lm.score(rows)) / labels
    assert found["sg"] == pytest.approx(plain, rel=1e-9)


def test_hops_settings() -> None:
    lm = model()
    by = {kind: groups(lm, hops=kind) for kind in ("none", "all", "unknown", "mixed")}
    sizes = {kind: [len(g.edits) for g in made] for kind, made in by.items()}
    assert set(sizes["none"]) == {1}
    assert set(sizes["all"]) == {2}
    lowest, highest = sizes["unknown"], sizes["all"]
    mixed = sizes["mixed"]
    assert all(a <= b <= c for a, b, c in zip(lowest, mixed, highest, strict=True))
    assert all(g.main == 1 for made in by.values() for g in made)
    again = groups(lm, list(reversed(CASES)), hops="mixed")
    assert {g.id: len(g.edits) for g in again} == dict(
        zip([g.id for g in by["mixed"]], mixed, strict=True)
    )
    plain = groups(lm, generality="rephrase")
    assert {len(g.gens) for g in plain} == {1}
    assert {len(g.edits) for g in plain} == {1}


def test_what_is_kept_in_files_is_what_is_kept_in_memory(tmp_path: Path) -> None:
    lm = model("float32")
    of, network = groups(lm)[:4], strong(lm)
    kept = objective(lm, of)
    sites = kept.prepared.sites
    filed = Prepared(lm, sites, of, 0.0, None, 1.0, tmp_path / "files")
    assert len(list((tmp_path / "files").iterdir())) >= 2
    stored = Objective(lm, filed, TrainConfig())
    left, right = gradients(kept, network, of), gradients(stored, network, of)
    assert left[0] == right[0]
    assert all(torch.equal(value, right[1][name]) for name, value in left[1].items())
    assert not Prepared(lm, sites, of, 0.0, None, 1e-9, tmp_path / "none").base


def test_answers_said_again_are_those_of_the_model() -> None:
    """From the states behind the last block, against a plain pass over the whole row."""
    lm = model("float64")
    of = groups(lm)[:4]
    rows = [row for group in of for row in group.locs]
    found = objective(lm, of).prepared.answers_of(rows)
    for row, said in zip(rows, found, strict=True):
        with torch.no_grad():
            logits = lm.model(input_ids=torch.tensor([row.ids])).logits[0, list(row.positions)]
        torch.testing.assert_close(said, logits.log_softmax(-1), rtol=0, atol=EXACT)
