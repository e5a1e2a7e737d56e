"""LEMoE's parts by themselves: experts and router against plain loops, and the order of edits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from errata.editors.lemoe.experts import ExpertMemory, Experts, Mixture, mean_of, shapes_of
from errata.editors.lemoe.order import alike_together, clusters_of
from errata.editors.lemoe.training import by_group, train_router
from errata.model.passes import Pass

SAME = 1e-10
"""Float64: the same number by another way."""


def some_experts(count: int, d: int = 8, f: int = 12, seed: int = 0) -> Experts:
    g = torch.Generator().manual_seed(seed)
    shapes = shapes_of(d, f, d, 3)
    return Experts(
        **{n: torch.randn(count, *s, generator=g, dtype=torch.float64) for n, s in shapes.items()}
    )


def some_pass(lengths: Sequence[int], prompts: Sequence[int]) -> Pass:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return Pass(mask.long(), mask, torch.tensor(prompts))


def plain_logits(t: Mapping[str, Tensor], mean: Tensor) -> Tensor:
    """The router's logits of one input, expert by expert."""
    values = [
        torch.nn.functional.silu(mean @ t["down"][j]) @ t["up"][j] for j in range(len(t["keys"]))
    ]
    return torch.stack([t["keys"][j] @ value for j, value in enumerate(values)])


def plain_answer(t: Mapping[str, Tensor], weights: Tensor, x: Tensor) -> Tensor:
    """What all experts add at one token, with their matrices multiplied out."""
    total = torch.zeros(t["r2"].shape[1], dtype=x.dtype)
    for j, weight in enumerate(weights):
        hidden = torch.relu((t["c1"][j] @ t["r1"][j].T).T @ x)
        total = total + weight * (t["r2"][j] @ t["c2"][j].T @ hidden)
    return total


# ---------------------------------------------------------------------- experts and router


@pytest.mark.parametrize("top_k", ["all", 1])
@pytest.mark.parametrize("route_on", ["prompt", "all"])
def test_the_forward_pass_is_the_plain_one(route_on: Any, top_k: Any) -> None:
    experts, lengths, prompts = some_experts(4), [5, 3, 2], [3, 3, 1]
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(2, 3, 5, 8, generator=g, dtype=torch.float64)
    network = experts.module("out", "in", route_on, top_k).build()
    assert isinstance(network, Mixture)
    assert network.sees_pass
    found = network(x, y, some_pass(lengths, prompts))
    for row, (length, prompt) in enumerate(zip(lengths, prompts, strict=True)):
        counted = prompt if route_on == "prompt" else length
        mean = torch.stack([x[row, i] for i in range(counted)]).sum(0) / counted
        weights = torch.softmax(plain_logits(experts.tensors(), mean), 0)
        if top_k == 1:
            best = int(weights.argmax())
            weights = torch.tensor([float(j == best) for j in range(4)], dtype=torch.float64)
        for token in range(length):
            expected = y[row, token] + plain_answer(experts.tensors(), weights, x[row, token])
            torch.testing.assert_close(found[row, token], expected, rtol=SAME, atol=SAME)


@pytest.mark.parametrize("top_k", ["all", 1])
def test_the_weights_of_an_input_sum_to_one(top_k: Any) -> None:
    g = torch.Generator().manual_seed(2)
    means = 10 * torch.randn(7, 8, generator=g, dtype=torch.float64)
    weights = some_experts(5).weights(means, top_k)
    torch.testing.assert_close(weights.sum(1), torch.ones(7, dtype=torch.float64))
    assert bool((weights >= 0).all())
    assert torch.equal(some_experts(1).weights(means, top_k), torch.ones(7, 1).double())


def test_one_expert_answers_everywhere_and_asks_for_nothing() -> None:
    experts = some_experts(1)
    network = experts.module("out", "in", "prompt", "all").build()
    assert isinstance(network, Mixture)
    assert not network.sees_pass
    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(2, 2, 4, 8, generator=g, dtype=torch.float64)
    for given, output in ((x, y), (x.flatten(0, 1), y.flatten(0, 1))):
        found = network(given, output).view(2, 4, 8)
        for row in range(2):
            for token in range(4):
                answer = plain_answer(experts.tensors(), torch.ones(1), x[row, token])
                torch.testing.assert_close(found[row, token], y[row, token] + answer)


def test_padding_and_what_follows_the_prompt_route_nothing() -> None:
    experts = some_experts(3)
    g = torch.Generator().manual_seed(4)
    x = torch.randn(1, 4, 8, generator=g, dtype=torch.float64)
    y = torch.zeros_like(x)
    network = experts.module("out", "in", "prompt", "all").build()
    found = network(x, y, some_pass([4], [2]))
    padded = torch.cat([x, torch.full((1, 3, 8), 1e3, dtype=torch.float64)], 1)
    mask = some_pass([4, 7], [2, 2]).rows(torch.tensor([0]))
    longer = network(padded, torch.zeros_like(padded), mask)
    torch.testing.assert_close(longer[:, :4], found, rtol=SAME, atol=SAME)
    other = x.clone()
    other[:, 2:] *= -3  # another answer
    torch.testing.assert_close(
        network(other, y, some_pass([4], [2]))[:, :2], found[:, :2], rtol=SAME, atol=SAME
    )
    leaking = experts.module("out", "in", "all", "all").build()
    a, b = (leaking(given, y, some_pass([4], [2]))[:, :2] for given in (x, other))
    assert float((a - b).abs().max()) > 1e-3


def test_rows_of_one_group_share_a_product() -> None:
    g = torch.Generator().manual_seed(5)
    x = torch.randn(6, 2, 4, generator=g, dtype=torch.float64)
    matrices = torch.randn(4, 4, 3, generator=g, dtype=torch.float64)
    for owner in ([0, 0, 1, 1, 3, 3], [0, 2, 2, 2, 3, 3], [0, 1, 2, 3, 3, 3]):
        found = by_group(x, matrices, owner)
        for row, group in enumerate(owner):
            torch.testing.assert_close(found[row], x[row] @ matrices[group], rtol=SAME, atol=SAME)
    each = by_group(x[:4], matrices, [0, 1, 2, 3])
    torch.testing.assert_close(each, torch.bmm(x[:4], matrices), rtol=SAME, atol=SAME)


def test_no_expert_is_no_change() -> None:
    experts = Experts.empty(shapes_of(8, 12, 8, 3), torch.float64, torch.device("cpu"))
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    assert torch.equal(experts.mixed(x, x.new_zeros(2, 0)), torch.zeros_like(x))
    assert torch.equal(mean_of(x, torch.ones(2, 3, dtype=torch.bool)), x.mean(1))


def test_a_router_of_one_is_taught_to_classify() -> None:
    g = torch.Generator().manual_seed(6)
    groups, lr, steps = [], 0.02, 5
    for count, edits in ((3, 5), (1, 2), (2, 4)):
        means = torch.randn(edits, 8, generator=g, dtype=torch.float64)
        owner = (torch.arange(edits) % count).sort().values
        groups.append(ExpertMemory(some_experts(count, seed=count), means, owner))
    taught = train_router(groups, lr=lr, steps=steps, stop_loss=0.0)
    for memory, found in zip(groups, taught, strict=True):
        t = {name: tensor.clone() for name, tensor in memory.experts.tensors().items()}
        if len(memory.experts) > 1:
            down, up = (t[name][-1].clone().requires_grad_() for name in ("down", "up"))
            optimizer = torch.optim.Adam([down, up], lr)
            for _ in range(steps):
                now = dict(t)
                now["down"] = torch.cat([t["down"][:-1], down[None]])
                now["up"] = torch.cat([t["up"][:-1], up[None]])
                scores = torch.stack([plain_logits(now, mean) for mean in memory.means])
                loss = torch.nn.functional.cross_entropy(scores, memory.owner)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            t["down"][-1], t["up"][-1] = down.detach(), up.detach()
        for name, tensor in found.experts.tensors().items():
            torch.testing.assert_close(tensor, t[name], rtol=SAME, atol=SAME)


# ---------------------------------------------------------------------- the order of edits


def test_clusters_are_those_of_the_points() -> None:
    g = torch.Generator().manual_seed(7)
    centres = torch.randn(4, 16, generator=g) * 10
    truth = torch.tensor([2, 0, 1, 0, 3, 3, 2, 1, 0, 2, 1, 3])
    points = centres[truth] + torch.randn(12, 16, generator=g) + 100  # what all of them share
    for seed in range(5):
        found = clusters_of(points, 4, seed)
        assert torch.equal(found[:, None] == found, truth[:, None] == truth)
        assert alike_together(points, 3, seed) == [0, 6, 9, 1, 3, 8, 2, 7, 10, 4, 5, 11]
    assert sorted(alike_together(points[:5], 2)) == [0, 1, 2, 3, 4]
    assert clusters_of(points[:1], 3).tolist() == [0]
    assert len(set(clusters_of(torch.ones(4, 3), 2).tolist())) == 1  # nothing tells them apart
