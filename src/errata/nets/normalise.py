"""Normalisers of gradient factors: `u` is a hundred to a hundred thousand times smaller than `h`.

What the attention sees and what the residual path carries may differ, so every normaliser gives
two views of a signal `[h | u]`.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

Norm = Literal["none", "ln", "unit", "running", "running_res", "running_ln"]


class Running(nn.Module):
    """Running mean and standard deviation of every coordinate over all training tokens.

    Exact (merged as by Chan et al.), in float64, frozen outside training. Until two tokens have
    been seen nothing is changed.

    Args:
        width: Number of coordinates.
        eps: Added to the standard deviation.
    """

    n: Tensor
    mean: Tensor
    m2: Tensor

    def __init__(self, width: int, eps: float = 1e-7) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("n", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(width, dtype=torch.float64))
        self.register_buffer("m2", torch.zeros(width, dtype=torch.float64))

    @torch.no_grad()
    def observe(self, values: Float[Tensor, "N width"]) -> None:
        """Merge new tokens; with several processes, those of all of them."""
        values = values.double()
        count = torch.tensor(float(len(values)), dtype=torch.float64, device=values.device)
        total, squares = values.sum(0), values.square().sum(0)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            packed = torch.cat([count[None], total, squares])
            torch.distributed.all_reduce(packed)
            count, total, squares = packed[0], *packed[1:].chunk(2)
        if not count:
            return
        mean = total / count
        m2 = (squares - count * mean.square()).clamp(min=0)
        n = self.n + count
        delta = mean - self.mean
        self.mean += delta * (count / n)
        self.m2 += m2 + delta.square() * (self.n * count / n)
        self.n.copy_(n)

    def forward(self, values: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Return standardised values in the type they came in."""
        if self.n < 2:
            return values
        std = (self.m2 / (self.n - 1)).sqrt() + self.eps
        return (values - self.mean.to(values.dtype)) / std.to(values.dtype)


class Normaliser(nn.Module):
    """The two views of the signals of one matrix.

    Args:
        kind: `none`: raw. `ln`: LayerNorm for the attention, raw residual. `unit`: each of `h` and
            `u` of a token scaled to the norm of a standard normal vector. `running`: running mean
            and deviation everywhere. `running_res`: for the attention only, raw residual.
            `running_ln`: running everywhere, LayerNorm on top for the attention.
        d_in: Width of `h`.
        d_out: Width of `u`.
    """

    def __init__(self, kind: Norm, d_in: int, d_out: int) -> None:
        super().__init__()
        self.kind, self.d_in, self.d_out = kind, d_in, d_out
        width = d_in + d_out
        self.running = Running(width) if kind.startswith("running") else None
        self.ln = nn.LayerNorm(width) if kind in {"ln", "running_ln"} else None

    def observe(
        self,
        h: Float[Tensor, "E T d_in"],
        u: Float[Tensor, "E T d_out"],
        mask: Bool[Tensor, "E T"],
    ) -> None:
        """Take the signals of training tokens into the running statistics, if there are any."""
        if self.running is not None:
            self.running.observe(torch.cat([h[mask], u[mask]], -1))

    @property
    def raw(self) -> bool:
        """Whether the residual path carries raw factors, so that its update is a gradient step."""
        return self.kind in {"none", "ln", "running_res"}

    def forward(
        self, h: Float[Tensor, "E T d_in"], u: Float[Tensor, "E T d_out"]
    ) -> tuple[Float[Tensor, "E T D"], Float[Tensor, "E T D"]]:
        """Return what the attention sees and what the residual path carries."""
        signal = torch.cat([h, u], -1)
        if self.kind == "unit":
            both = torch.cat([_unit(h), _unit(u)], -1)
            return both, both
        if self.running is not None:
            standard = self.running(signal)
            seen = standard if self.ln is None else self.ln(standard)
            return seen, signal if self.kind == "running_res" else standard
        return (signal if self.ln is None else self.ln(signal)), signal

    def scale(self) -> Float[Tensor, " D"] | None:
        """Return the deviation by which a residual in standard units has to be multiplied."""
        if self.kind != "running_res" or self.running is None or self.running.n < 2:
            return None
        return (self.running.m2 / (self.running.n - 1)).sqrt()


def _unit(x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """Scale each vector to norm √d; zero stays zero."""
    norm = x.norm(dim=-1, keepdim=True)
    return torch.where(norm > 0, x / norm.clamp(min=torch.finfo(x.dtype).tiny), x) * (
        x.shape[-1] ** 0.5
    )
