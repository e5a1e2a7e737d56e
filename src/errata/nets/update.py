"""What a hypernetwork returns: the factors of an update, ready for rows or for a patch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from errata.model.spec import Site
from errata.nets.capture import Signals
from errata.nets.rates import EditRates
from errata.patch import LowRank


@dataclass(frozen=True)
class Term:
    """Part of an update at one matrix: `W -= valuesᵀ keys` for each of N sets of factors.

    Attributes:
        keys: `[N, R, d_in]`, the edit learning rate included.
        values: `[N, R, d_out]`.
        mask: Factors that count, `[N, R]`; the others are zero in `keys` or `values`.
        owner: Group of each set, `[N]`.
    """

    keys: Float[Tensor, "N R d_in"]
    values: Float[Tensor, "N R d_out"]
    mask: Bool[Tensor, "N R"]
    owner: Int[Tensor, " N"]

    def by_group(self, groups: int) -> tuple[Float[Tensor, "G r d_in"], Float[Tensor, "G d_out r"]]:
        """Return `A` and `B` of `W_g += B_g A_g`, the factors of a group side by side."""
        count, rank = self.mask.shape
        if count == groups and bool((self.owner.cpu() == torch.arange(groups)).all()):
            return self.keys, -self.values.transpose(1, 2)
        sizes = torch.bincount(self.owner, minlength=groups)
        most = int(sizes.max())
        order = torch.argsort(self.owner, stable=True)
        start = torch.cumsum(sizes, 0) - sizes
        slot = torch.empty_like(order)
        slot[order] = torch.arange(count, device=order.device) - start[self.owner[order]]
        place = self.owner * most + slot

        def spread(tensor: Tensor) -> Tensor:
            empty = tensor.new_zeros(groups * most, rank, tensor.shape[-1])
            return empty.index_copy(0, place, tensor).view(groups, most * rank, -1)

        return spread(self.keys), -spread(self.values).transpose(1, 2)


@dataclass(frozen=True)
class Update:
    """The update of G groups.

    Attributes:
        terms: Per edited matrix.
        groups: Number of groups.
        penalty: What the network adds to the loss per edit (the bottleneck's divergence, already
            weighted); `[E]`, or None.
        report: Numbers worth logging.
    """

    terms: tuple[Term, ...]
    groups: int
    penalty: Float[Tensor, " E"] | None = None
    report: dict[str, Tensor] | None = None

    def factors(self, sites: Sequence[Site]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return `(A, B)` of every matrix by path, `[G, r, d_in]` and `[G, d_out, r]`."""
        return {
            site.path: term.by_group(self.groups)
            for site, term in zip(sites, self.terms, strict=True)
        }

    def changes(self, sites: Sequence[Site], group: int, scale: float = 1.0) -> list[LowRank]:
        """Return one group's update as low-rank changes; the rank is the number of factors."""
        made = []
        for site, term in zip(sites, self.terms, strict=True):
            mine = (term.owner == group)[:, None] & term.mask
            keys, values = term.keys[mine], term.values[mine]
            if len(keys):
                made.append(LowRank(site.path, -scale * values.T.contiguous(), keys.contiguous()))
        return made


class EditNetwork(nn.Module):
    """Base of all networks that an editor trains."""

    def observe(self, signals: Signals) -> None:
        """Take in signals before they are used in training (running statistics)."""

    def edit_rates(self) -> list[nn.Parameter]:
        """Return what is trained at the rate for edit learning rates; here: nothing."""
        return []


class FactorNetwork(EditNetwork, ABC):
    """Base of hypernetworks that turn gradient factors into the factors of an update.

    Attributes:
        rates: Edit learning rates, one per matrix; a network without them says how it is calibrated
            instead.
    """

    rates: EditRates

    @abstractmethod
    def forward(self, signals: Signals, noise: Any = None) -> Update:
        """Return the update; `noise` draws what is random in training, None means no noise."""

    def edit_rates(self) -> list[nn.Parameter]:
        """Return what is trained at the rate for edit learning rates.

        It holds logarithms if the network learns them so.
        """
        return [self.rates.value]

    def calibrate(self, factors: Sequence[float]) -> None:
        """Multiply the edit learning rate of each matrix."""
        self.rates.multiply(factors)
