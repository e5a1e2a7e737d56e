"""The order in which LEMoE takes edits: as given, or those that are alike together."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

ROUNDS = 50
"""Most rounds of k-means; on edits it settles within ten."""


def clusters_of(points: Float[Tensor, "n d"], count: int, seed: int = 0) -> Int[Tensor, " n"]:
    """Return the cluster of each point by spherical k-means, in float64.

    Points are centred first: what all prompts share would outweigh what tells them apart. The first
    centre is drawn with the seed, each further one is the point farthest from all before it, and
    ties go to the first: the same points give the same clusters.

    Args:
        points: What is clustered.
        count: Number of clusters at most.
        seed: Of the first centre.
    """
    points = points.detach().double().cpu()
    points = normalize(points - points.mean(0), dim=1)
    generator = torch.Generator().manual_seed(seed)
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    nearest = points @ points[chosen[0]]
    while len(chosen) < min(count, len(points)):
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, points @ points[chosen[-1]])
    centres = points[chosen]
    cluster = (points @ centres.T).argmax(1)
    for _ in range(ROUNDS):
        sums = torch.zeros_like(centres).index_add(0, cluster, points)
        filled = torch.bincount(cluster, minlength=len(centres)) > 0
        centres = torch.where(filled[:, None], normalize(sums, dim=1), centres)
        new = (points @ centres.T).argmax(1)
        if torch.equal(new, cluster):
            break
        cluster = new
    return cluster


def alike_together(points: Float[Tensor, "n d"], size: int, seed: int = 0) -> list[int]:
    """Return an order in which points of one cluster follow one another.

    There are as many clusters as experts are needed. They stand in the order of their first points,
    and points inside a cluster in the order given.

    Args:
        points: What is ordered.
        size: How many make up one expert.
        seed: See `clusters_of`.
    """
    cluster = clusters_of(points, -(-len(points) // size), seed).tolist()
    first: dict[int, int] = {}
    for number, own in enumerate(cluster):
        first.setdefault(own, number)
    return sorted(range(len(cluster)), key=lambda i: (first[cluster[i]], i))
