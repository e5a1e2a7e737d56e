"""What several patches consist of, by the way it acts: filled by changes, installed by a stack.

A kind of change adds its parts in `install`; neither a stack nor a patch in place asks what kinds
there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from errata.patch.networks import LABEL

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.patch.changes import Context, Dense, LowRank, Module, Router
    from errata.patch.patch import Patch


@dataclass
class Parts:
    """The parts of one patch per group.

    Attributes:
        lm: The model.
        factors: By module and group, what adds `B A` to its weight.
        differences: Groups, and what is added to a parameter.
        networks: Groups, where a network acts, and the network.
        contexts: By group, its tokens in front of every input.
        routers: Groups, and what answers in place of the model.
    """

    lm: LM
    factors: dict[str, dict[int, list[LowRank]]] = field(default_factory=dict)
    differences: list[tuple[int, Dense]] = field(default_factory=list)
    networks: list[tuple[int, Module, nn.Module]] = field(default_factory=list)
    contexts: dict[int, list[Context]] = field(default_factory=dict)
    routers: list[tuple[int, Router]] = field(default_factory=list)

    @classmethod
    def of(cls, lm: LM, patches: Sequence[Patch | None]) -> Parts:
        """Return the parts of patches that fit the model, in the order of their changes.

        Raises:
            PatchError: If a kind of network or router is not known here.
        """
        parts = cls(lm)
        for group, patch in enumerate(patches):
            for change in () if patch is None else patch.changes:
                change.install(parts, group)
        return parts

    @property
    def only_contexts(self) -> bool:
        """Whether tokens in front are all that any group has."""
        return not (self.factors or self.differences or self.networks or self.routers)

    def add_factors(self, group: int, change: LowRank) -> None:
        """Add `B A` to the weight of a projection."""
        self.factors.setdefault(change.path, {}).setdefault(group, []).append(change)

    def add_difference(self, group: int, change: Dense) -> None:
        """Add to a parameter."""
        self.differences.append((group, change))

    def add_network(self, group: int, place: Module, network: nn.Module) -> None:
        """Put a network in front of or behind a module.

        Args:
            group: Whose.
            place: Says where: `path`, `where`, `source`.
            network: The network.
        """
        setattr(network, LABEL, place.label)
        self.networks.append((group, place, network.to(self.lm.device)))

    def add_context(self, group: int, context: Context) -> None:
        """Put tokens in front of every input, behind those that are there."""
        self.contexts.setdefault(group, []).append(context)

    def add_router(self, group: int, router: Router) -> None:
        """Let a router answer the rows that it takes."""
        self.routers.append((group, router))
