"""Writing into MEMOIR's memories: one edit of each of many independent groups at once."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from errata.editors.wise.training import LEARNED, STILL, SidePass
from errata.progress import tracked


def write(
    work: SidePass,
    start: Float[Tensor, "G d f"],
    *,
    lr: float,
    steps: int,
    clip: float,
    decay: float,
) -> tuple[Float[Tensor, "G d f"], list[Float[Tensor, " G"]]]:
    """Descend on each group's loss until its edit is learned.

    Args:
        work: The rows, with the columns that they read.
        start: The memories.
        lr: Step of plain gradient descent.
        steps: Steps at most.
        clip: Largest norm of a gradient.
        decay: Share of the whole memory that goes with every step.

    Returns:
        The memories, and the loss before each step.
    """
    matrix, losses = start.clone(), []
    running = torch.ones(len(matrix), dtype=torch.bool, device=matrix.device)
    last = torch.full((len(matrix),), float("inf"), dtype=matrix.dtype, device=matrix.device)
    for step in tracked(range(steps), "writing to memories, step"):
        leaf = matrix.detach().requires_grad_()
        with torch.enable_grad():  # callers may have switched gradients off
            loss, _ = work.losses(leaf)
            losses.append(loss.detach())
            if step:  # comparisons with NaN are false: the edit goes on and is refused
                still = (loss.detach() - last).abs() <= STILL
                running = running & ~(still & (loss.detach() <= LEARNED))
            if not bool(running.any()):
                break
            (grad,) = torch.autograd.grad(loss.sum(), [leaf])
        last = loss.detach().to(last)
        size = grad.flatten(1).norm(dim=1)
        grad = grad * (clip / size.clamp(min=clip))[:, None, None]
        new = matrix - lr * (grad + decay * matrix)
        matrix = torch.where(running[:, None, None], new, matrix)
    return matrix, losses
