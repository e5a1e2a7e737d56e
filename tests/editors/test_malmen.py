"""Oracle E.12 and what is MALMEN's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.locate.samples import EDITS
from tests.nets.samples import (
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

from errata.editors import malmen
from errata.editors.malmen import Block, MalmenNetwork, pack, ridge_shift
from errata.errors import EditError
from errata.model.lm import LM
from errata.training.config import TrainConfig
from errata.training.objective import Objective
from errata.training.prepared import Prepared

EXACT = 1e-11
GRADIENT = 1e-11

Tiny = Callable[..., LM]


def network_of(lm: LM, **settings: Any) -> tuple[Any, MalmenNetwork]:
    editor = small("malmen", **{"layers": (1, 2), "norm": "running", **settings})
    network = untrained(editor, lm)
    assert isinstance(network, MalmenNetwork)
    network.observe(signals_of(lm, editor.sites(lm)))
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=g).to(parameter))
        network.rates.value.fill_(1e-2).mul_(torch.arange(1, len(network.keys) + 1))
        network.log_ridge.copy_(torch.linspace(-1, 1, len(network.keys)))
    return editor, network


def problem(count: int, d_in: int, d_out: int, groups: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(count)
    keys = torch.randn(groups, count, d_in, generator=g, dtype=torch.float64)
    changes = torch.randn(groups, count, d_out, generator=g, dtype=torch.float64)
    keys[1, count // 2 :] = changes[1, count // 2 :] = 0  # padding
    return keys, changes, torch.tensor(0.4, dtype=torch.float64)


SHAPES = [(4, 7, 5), (4, 5, 7), (6, 7, 5), (6, 5, 7), (12, 7, 5), (12, 5, 7), (7, 7, 7)]


@pytest.mark.parametrize(("count", "d_in", "d_out"), SHAPES)
@pytest.mark.parametrize("primal", [None, True, False])
def test_E12_the_shift_solves_the_normal_equations(
    count: int, d_in: int, d_out: int, primal: bool | None
) -> None:
    K, D, log_ridge = problem(count, d_in, d_out)
    keys, values = ridge_shift(K, D, log_ridge, primal=primal)
    assert keys.shape[1] == values.shape[1] <= max(min(count, d_in, d_out), min(d_in, d_out))
    S = keys.mT @ values
    system = K.mT @ K + log_ridge.exp() * torch.eye(d_in, dtype=K.dtype)
    assert relative(system @ S, K.mT @ D) < EXACT


@pytest.mark.parametrize(("count", "d_in", "d_out"), SHAPES)
@pytest.mark.parametrize("primal", [True, False])
def test_E12_its_gradients_are_autograds(count: int, d_in: int, d_out: int, primal: bool) -> None:
    K, D, log_ridge = problem(count, d_in, d_out)
    weight = torch.randn(2, d_in, d_out, generator=torch.Generator().manual_seed(0)).double()

    def both(shift: Any) -> tuple[Tensor, ...]:
        d, ridge = D.clone().requires_grad_(), log_ridge.clone().requires_grad_()
        return torch.autograd.grad((shift(d, ridge) * weight).sin().sum(), (d, ridge))

    def ours(d: Tensor, ridge: Tensor) -> Tensor:
        keys, values = ridge_shift(K, d, ridge, primal=primal)
        return keys.mT @ values

    def plain(d: Tensor, ridge: Tensor) -> Tensor:
        system = K.mT @ K + ridge.exp() * torch.eye(d_in, dtype=K.dtype)
        return torch.linalg.solve(system, K.mT @ d)

    for found, want in zip(both(ours), both(plain), strict=True):
        assert relative(found, want) < EXACT


def test_E12_a_large_ridge_shifts_nothing() -> None:
    K, D, _ = problem(6, 7, 5)
    norms = []
    for power in (0.0, 10.0, 20.0, 40.0):
        keys, values = ridge_shift(K, D, torch.tensor(power, dtype=torch.float64))
        norms.append(float((keys.mT @ values).norm()))
    assert norms == sorted(norms, reverse=True)
    assert norms[-1] < 1e-15


@pytest.mark.parametrize("chunk", [3, 1024])
@pytest.mark.parametrize("token", ["mask", "answer"])
@pytest.mark.parametrize("primal", [False, True])
def test_E12_decoupled_gradients_are_those_of_full_autograd(
    chunk: int, token: str, primal: bool, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks, rates and ridges, against the published form with formed weights."""
    lm = tiny("gpt2")
    editor, network = network_of(lm, chunk=chunk, token=token)
    sites = editor.sites(lm)
    gens = (lm.row("Where does she live? She lives in", "Paris"),)
    groups = [group_of(lm, 0, EDITS[:3], gens), group_of(lm, 1, EDITS[3:])]
    if primal:
        original = ridge_shift
        monkeypatch.setattr(
            malmen, "ridge_shift", lambda *a, **k: original(*a, **{**k, "primal": True})
        )
    objective = Objective(lm, Prepared(lm, sites, groups), TrainConfig())
    objective.run(network, groups, backward=lambda loss: loss.backward())
    got = gradients(network)
    assert all(float(got[name].norm()) > 0 for name in ("rates.value", "log_ridge"))

    signals = signals_of(lm, sites, EDITS)
    deltas: list[dict[str, Tensor]] = [{}, {}]
    for number, ((_, site), f) in enumerate(zip(sites, signals.factors, strict=True)):
        mode, key = network.modes[number], network.keys[number]
        for group, mine in enumerate(([0, 1, 2], [3])):
            tokens = [
                torch.cat([f.h[i], f.u[i]], -1)[
                    list(signals.rows[i].positions) if token == "answer"
                    else list(range(len(signals.rows[i].ids)))
                ]
                for i in mine
            ]  # fmt: skip
            signal = torch.cat(tokens)
            K = signal[:, : site.d_in]
            y: Any = network.norms[key].running(signal)  # type: ignore[operator]
            for block in network.nets[key]:  # type: ignore[union-attr]
                inner = (y @ block.a @ block.b + block.bias).clamp(min=0)
                y = y + block.mode_scale[mode] * inner + block.mode_shift[mode]
            k, v = y.split((site.d_in, site.d_out), -1)
            D = -network.rates.value[number] * (K * k).sum(-1, keepdim=True) * v
            eye = torch.eye(site.d_in, dtype=K.dtype)
            system = K.T @ K + network.log_ridge[number].exp() * eye
            deltas[group][site.path] = torch.linalg.solve(system, K.T @ D).T
    dense_loss(lm, groups, deltas, None).backward()
    same_gradients(got, gradients(network), GRADIENT)


def test_memory_does_not_hold_every_token(tiny: Tiny) -> None:
    """In training, tokens pass the network in chunks that are not kept for the backward pass."""
    lm = tiny("gpt2")
    kept = []
    for chunk in (4, 10**6):
        editor, network = network_of(lm, chunk=chunk, layers=(1,))
        signals = signals_of(lm, editor.sites(lm))
        sizes: dict[int, int] = {}

        def count(tensor: Tensor, sizes=sizes) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            network(signals)
        kept.append(sum(sizes.values()))
    assert kept[0] < kept[1]


def test_padding_and_masked_tokens_do_not_count(tiny: Tiny) -> None:
    lm = tiny("gpt2")
    editor, network = network_of(lm)
    sites = [site for _, site in editor.sites(lm)]
    joint = signals_of(lm, editor.sites(lm), EDITS, [0, 0, 0, 1])
    with torch.no_grad():
        together = network(joint).factors(sites)
        alone = network(signals_of(lm, editor.sites(lm), EDITS[3:])).factors(sites)
    for path, (A, B) in together.items():
        a, b = alone[path]
        assert relative(B[1] @ A[1], b[0] @ a[0]) < EXACT


def test_tokens_are_packed_by_group() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 1, 0]], dtype=torch.bool)
    place, most = pack(torch.tensor([1, 0, 1]), mask, 2)
    assert most == 3
    assert place.tolist() == [3, 4, 0, 1, 5]


def test_the_scale_stands_outside_the_clamp() -> None:
    block = Block(4, 2, 1)
    with torch.no_grad():
        block.bias.fill_(1.0)
        block.mode_scale.fill_(-2.0)
    assert torch.equal(block(torch.zeros(4), 0), torch.full((4,), -2.0))


def test_a_singular_system_is_refused() -> None:
    keys = torch.ones(1, 3, 4, dtype=torch.float64)
    with pytest.raises(EditError, match="linearly dependent"):
        ridge_shift(keys, keys, torch.tensor(-80.0), name="h.1")
    with pytest.raises(EditError, match=r"h\.1"):
        ridge_shift(keys * torch.nan, keys, torch.tensor(0.0), name="h.1")


@pytest.mark.parametrize("primal", [False, True])
def test_mixed_precision_leaves_the_solution_alone(primal: bool) -> None:
    K, D, log_ridge = (x.float() for x in problem(6, 7, 5))
    keys, values = ridge_shift(K, D, log_ridge, primal=primal)
    with torch.autocast("cpu", torch.bfloat16):
        same = ridge_shift(K, D, log_ridge, primal=primal)
        half = ridge_shift(K, D.bfloat16(), log_ridge, primal=primal)
    assert torch.equal(same[0], keys)
    assert torch.equal(same[1], values)
    assert half[0].dtype == half[1].dtype == torch.float32


def test_edits_of_a_group_are_joint(tiny: Tiny) -> None:
    """One shift for all of them, not the sum of shifts."""
    lm = tiny("gpt2")
    editor, network = network_of(lm)
    sites = [site for _, site in editor.sites(lm)]
    with torch.no_grad():
        joint = network(signals_of(lm, editor.sites(lm), EDITS[:2], [0, 0])).factors(sites)
        apart = network(signals_of(lm, editor.sites(lm), EDITS[:2])).factors(sites)
    for path, (A, B) in joint.items():
        a, b = apart[path]
        assert relative(B[0] @ A[0], (b @ a).sum(0)) > 1e-3
