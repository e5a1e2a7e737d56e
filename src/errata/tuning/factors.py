"""Low-rank differences to the weights of projections, one pair of factors per group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from errata.model.hooks import after, hooked
from errata.model.passes import first, with_first
from errata.model.spec import Site
from errata.model.tokens import Batch

if TYPE_CHECKING:
    from errata.model.lm import LM


class TunedFactors:
    """`W x + scale B_g A_g x`: factors per projection and group, float32 at least.

    `A` is drawn from N(0, 1/r) and `B` is zero, so at the start nothing is changed. The base may
    be of any type, also quantised: only its outputs are added to.

    Args:
        lm: The model.
        sites: Block number and projection of each.
        groups: Number of groups; all start from the same `A`.
        rank: `r`, at most the smaller side of a matrix.
        scale: `alpha / r`.
        seed: Of `A`.

    Attributes:
        values: `A` `[G, r, d_in]` and `B` `[G, d_out, r]` of every projection, in turn.
    """

    def __init__(
        self,
        lm: LM,
        sites: Sequence[tuple[int, Site]],
        groups: int,
        rank: int,
        scale: float,
        seed: int,
    ) -> None:
        self.lm, self.sites, self.scale = lm, list(sites), scale
        self.lowest = min(layer for layer, _ in sites)
        dtype = torch.float64 if lm.dtype == torch.float64 else torch.float32
        generator = torch.Generator().manual_seed(seed)
        self.values: list[Float[Tensor, "G ..."]] = []
        for _, site in sites:
            r = min(rank, site.d_in, site.d_out)
            A = torch.randn(r, site.d_in, generator=generator) / r**0.5
            self.values.append(A.to(lm.device, dtype).expand(groups, -1, -1).clone())
            self.values.append(torch.zeros(groups, site.d_out, r, dtype=dtype, device=lm.device))

    def factors(self, group: int) -> list[tuple[str, Tensor, Tensor]]:
        """Return for each projection its path, `scale B` and `A` of one group."""
        pairs = zip(self.values[::2], self.values[1::2], strict=True)
        return [
            (site.path, (self.scale * B[group]).contiguous(), A[group].clone())
            for (_, site), (A, B) in zip(self.sites, pairs, strict=True)
        ]

    @contextmanager
    def installed(
        self,
        owner: Sequence[int],
        leaves: Sequence[Tensor],
        batch: Batch,
        prompts: Int[Tensor, " B"],
    ) -> Iterator[None]:
        """Add every row's differences to the outputs of the projections."""
        number = torch.tensor(owner, device=self.lm.device)
        with ExitStack() as context:
            for i, (_, site) in enumerate(self.sites):
                hook = _adder(number, leaves[2 * i], leaves[2 * i + 1], self.scale)
                context.enter_context(hooked(self.lm, after(self.lm.module(site.path), hook)))
            yield


def _adder(number: Int[Tensor, " B"], A: Tensor, B: Tensor, scale: float) -> Any:
    """Hook that adds `scale B_g A_g x` to a projection's output, `g` the group of the row."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        y = first(output)
        x = args[0].reshape(len(number), -1, args[0].shape[-1]).to(A.dtype)
        inner = torch.bmm(x, A[number].transpose(1, 2))
        term = scale * torch.bmm(inner, B[number].transpose(1, 2))
        return with_first(output, (y.to(term.dtype) + term.view(y.shape)).to(y.dtype))

    return hook
