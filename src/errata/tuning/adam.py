"""Adam for many independent problems at once: each row counts its own steps and can be frozen.

Adam works elementwise, so rows optimised together follow the trajectories they would follow alone.
What is needed beyond `torch.optim` is freezing: a row that has stopped must keep its value *and*
its moments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class RowAdam:
    """Adam or AdamW over tensors whose first dimension numbers independent problems.

    The arithmetic follows `torch.optim.Adam` (betas 0.9 and 0.999, eps 1e-8), operation by
    operation.

    Args:
        shapes: The tensors to be optimised, `[n, ...]` each; only shape, dtype and device are used.
        lr: Learning rate.
        weight_decay: L2 term added to the gradient, or, if `decoupled`, AdamW's decay.
        decoupled: AdamW instead of Adam.
    """

    def __init__(
        self,
        shapes: Sequence[Tensor],
        lr: float,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.lr, self.weight_decay, self.decoupled = lr, weight_decay, decoupled
        self.betas, self.eps = betas, eps
        self.first = [torch.zeros_like(tensor, requires_grad=False) for tensor in shapes]
        self.second = [torch.zeros_like(tensor, requires_grad=False) for tensor in shapes]
        rows = shapes[0].shape[0]
        self.count: Int[Tensor, " n"] = torch.zeros(rows, dtype=torch.long, device=shapes[0].device)

    def keep(self, rows: Int[Tensor, " m"]) -> None:
        """Forget all rows but these."""
        self.first = [moment[rows] for moment in self.first]
        self.second = [moment[rows] for moment in self.second]
        self.count = self.count[rows]

    def told(self, row: int) -> dict[tuple[str, str], Tensor]:
        """Return the state of one problem: by number of the tensor and name of the moment."""
        found = {("all", "count"): self.count[row].clone()}
        for number, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            found[str(number), "first"] = first[row].clone()
            found[str(number), "second"] = second[row].clone()
        return found

    def recall(self, row: int, told: Mapping[tuple[str, str], Tensor]) -> None:
        """Go on with a state that `told` returned; an empty one is that of the start."""
        if not told:
            return
        self.count[row] = int(told["all", "count"])
        for number, (first, second) in enumerate(zip(self.first, self.second, strict=True)):
            first[row] = told[str(number), "first"].to(first)
            second[row] = told[str(number), "second"].to(second)

    @torch.no_grad()
    def step(
        self,
        values: Sequence[Float[Tensor, "n ..."]],
        grads: Sequence[Float[Tensor, "n ..."]],
        active: Bool[Tensor, " n"],
        decayed: Sequence[Float[Tensor, "n ..."]] | None = None,
    ) -> None:
        """Update `values` in place where `active`; other rows keep value, moments and count.

        Args:
            values: The tensors, in the order given at construction.
            grads: Their gradients; rows that are not active may hold anything.
            active: Which rows take a step.
            decayed: What weight decay pulls towards zero, if it is not the values themselves (for
                a weight that is held as a difference: the complete weight).
        """
        self.count += active
        if bool(active.all()):
            self._update(values, grads, decayed, self.first, self.second, self.count)
            return
        rows = active.nonzero()[:, 0]
        if not len(rows):
            return
        parts = [[tensor[rows] for tensor in group] for group in (values, self.first, self.second)]
        self._update(
            parts[0],
            [grad[rows] for grad in grads],
            None if decayed is None else [full[rows] for full in decayed],
            parts[1],
            parts[2],
            self.count[rows],
        )
        for group, part in zip((values, self.first, self.second), parts, strict=True):
            for tensor, new in zip(group, part, strict=True):
                tensor[rows] = new

    def _update(
        self,
        values: Sequence[Tensor],
        grads: Sequence[Tensor],
        decayed: Sequence[Tensor] | None,
        firsts: Sequence[Tensor],
        seconds: Sequence[Tensor],
        count: Int[Tensor, " n"],
    ) -> None:
        """One step of all given rows, in place."""
        beta1, beta2 = self.betas
        steps = count.to(torch.float64)
        step_size = self.lr / (1 - beta1**steps)
        correction = (1 - beta2**steps).sqrt()
        for i, (value, grad) in enumerate(zip(values, grads, strict=True)):
            first, second = firsts[i], seconds[i]
            if self.weight_decay:
                full = value if decayed is None else decayed[i]
                if self.decoupled:
                    value.sub_(full, alpha=self.lr * self.weight_decay)
                else:
                    grad = grad + self.weight_decay * full
            first.lerp_(grad, 1 - beta1)
            second.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
            bottom = (second.sqrt() / _rows(correction, value)).add_(self.eps)
            value.sub_(first / bottom * _rows(step_size, value))


def _rows(per_row: Tensor, like: Tensor) -> Tensor:
    """Shape `[n]` into `[n, 1, ...]`, in the dtype of `like`."""
    return per_row.view(-1, *([1] * (like.dim() - 1))).to(like.dtype)
