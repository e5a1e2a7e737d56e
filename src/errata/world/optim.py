"""Muon for matrices and AdamW for the rest, as one optimiser with a flat, portable state.

Muon: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks",
https://kellerjordan.github.io/posts/muon/

Why not `torch.optim.Muon` (torch 2.9 and newer): it updates parameters in their own type, and these
are bfloat16, so the float32 masters would have to be kept around it all the same; its state is not
the flat dictionary of tensors that a checkpoint is; and its bfloat16 products round in another
order, so that a build would not give the weights that it gave, bit for bit. A test holds both to
the same steps, up to that rounding.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_NS = (3.4445, -4.7750, 2.0315)  # quintic Newton-Schulz coefficients of the reference
_NS_STEPS = 5


def orthogonalise(stack: Tensor) -> Tensor:
    """Replaces each matrix by an approximation of U Vᵀ of its singular value decomposition.

    Args:
        stack: Shape (n, rows, columns), rows <= columns.

    Returns:
        Same shape; singular values lie roughly between 0.7 and 1.2.
    """
    a, b, c = _NS
    x = stack.bfloat16()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_NS_STEPS):
        gram = x @ x.mT
        x = a * x + torch.baddbmm(gram, gram, gram, beta=b, alpha=c) @ x
    return x


def _grad(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


class Muon:
    """Optimiser for a decoder: Muon on 2-d weights of the blocks, AdamW on everything else.

    The model may be bfloat16: the optimiser keeps float32 masters of its parameters and rounds them
    into the model after each step. Matrices of one shape are orthogonalised together, which on a
    CPU is what makes Muon cheap.

    Args:
        named: Named parameters of the model.
        lr: Muon's learning rate.
        weight_decay: Muon's decoupled weight decay.
        momentum: Muon's Nesterov momentum.
        adam_lr: AdamW's learning rate; its betas are (0.9, 0.95) and it has no weight decay.
    """

    def __init__(
        self,
        named: Iterable[tuple[str, Tensor]],
        lr: float = 0.008,
        weight_decay: float = 0.1,
        momentum: float = 0.95,
        adam_lr: float = 3e-3,
    ) -> None:
        self.lr, self.weight_decay, self.momentum, self.adam_lr = (
            lr,
            weight_decay,
            momentum,
            adam_lr,
        )
        self.state: dict[str, Tensor] = {}
        self.adam: dict[str, Tensor] = {}
        groups: dict[str, list[Tensor]] = {}
        for name, parameter in named:
            if parameter.ndim == 2 and "embed" not in name and "lm_head" not in name:
                key = "x".join(map(str, parameter.shape))
                groups.setdefault(f"muon.{key}", []).append(parameter)
            else:
                self.adam[name] = parameter
        self.groups = groups
        for key, group in groups.items():
            self.state[f"{key}.master"] = torch.stack([p.detach().float() for p in group])
            self.state[f"{key}.momentum"] = torch.zeros_like(self.state[f"{key}.master"])
        for name, parameter in self.adam.items():
            self.state[f"{name}.master"] = parameter.detach().float().clone()
            self.state[f"{name}.mean"] = torch.zeros_like(self.state[f"{name}.master"])
            self.state[f"{name}.square"] = torch.zeros_like(self.state[f"{name}.master"])

    @torch.no_grad()
    def step(self, number: int, scale: float) -> None:
        """Updates the parameters from their gradients, and clears these.

        Args:
            number: Step number from 0 (for AdamW's bias correction).
            scale: Factor of both learning rates at this step.
        """
        for key, group in self.groups.items():
            grad = torch.stack([_grad(p) for p in group]).float()
            buffer = self.state[f"{key}.momentum"].lerp_(grad, 1 - self.momentum)
            update = grad.lerp_(buffer, self.momentum)
            rows, columns = update.shape[1:]
            update = orthogonalise(update.mT if rows > columns else update)
            update = update.mT if rows > columns else update
            size = self.lr * scale * max(1.0, rows / columns) ** 0.5
            master = self.state[f"{key}.master"]
            master.mul_(1 - self.lr * scale * self.weight_decay).add_(update, alpha=-size)
        for name, parameter in self.adam.items():
            grad = _grad(parameter).float()
            mean = self.state[f"{name}.mean"].lerp_(grad, 0.1)
            square = self.state[f"{name}.square"].lerp_(grad.square(), 0.05)
            root = (square / (1 - 0.95 ** (number + 1))).sqrt_().add_(1e-8)
            size = self.adam_lr * scale / (1 - 0.9 ** (number + 1))
            self.state[f"{name}.master"].addcdiv_(mean, root, value=-size)
        self.round()

    @torch.no_grad()
    def round(self) -> None:
        """Copies the masters into the model's parameters and clears the gradients."""
        for key, group in self.groups.items():
            for parameter, master in zip(group, self.state[f"{key}.master"], strict=True):
                parameter.copy_(master)
                parameter.grad = None
        for name, parameter in self.adam.items():
            parameter.copy_(self.state[f"{name}.master"])
            parameter.grad = None


def schedule(step: int, steps: int, warmup: int = 100, decay: float = 0.625) -> float:
    """Returns the learning-rate factor: linear warm-up, constant, then linear decay to zero."""
    start = steps * (1 - decay)
    return min(1.0, (step + 1) / warmup, (steps - step) / max(1.0, steps - start))


def second_cycle(step: int, steps: int, warmup: int = 50, peak: float = 0.5) -> float:
    """Returns the factor of a short second cycle: warm-up to `peak`, then linear decay to zero."""
    return peak * min(1.0, (step + 1) / warmup) * (1 - step / steps)
