"""What the loop asks of an editor: the loop stands below editors and knows none of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from pydantic import BaseModel

    from errata.case import Edit
    from errata.model.lm import LM
    from errata.model.spec import Site
    from errata.training.config import TrainConfig
    from errata.training.objective import Objective
    from errata.training.prepared import Prepared


class Trainable(Protocol):
    """An editor whose networks can be trained; errata's own derive from `NetworkEditor`."""

    name: ClassVar[str]
    """Name of the editor, written beside the networks."""
    defaults: ClassVar[Mapping[str, Any]]
    """Settings of the loop that suit it; a mapping in it holds those for one model."""
    untrained: ClassVar[tuple[str, ...]]
    """Settings that training has nothing to do with."""

    @property
    def settings(self) -> BaseModel:
        """The settings of the networks, written beside them."""
        ...

    def sites(self, lm: LM) -> list[tuple[int, Site]]:
        """Return block number and projection of every matrix that is edited."""
        ...

    def build(self, sites: Sequence[tuple[int, Site]], lm: LM) -> Any:
        """Return untrained networks."""
        ...

    def objective(self, lm: LM, prepared: Prepared, config: TrainConfig) -> Objective:
        """Return the losses that the networks are trained with."""
        ...

    def with_others(self, edits: Sequence[Edit]) -> list[Edit]:
        """Return the edits of a group, and after them further requests the networks want to see."""
        ...

    def completed(self, lm: LM, edits: Sequence[Edit]) -> list[Edit]:
        """Return the requests with what the networks want to read filled in."""
        ...

    def adopt(self, lm: LM, network: Any, source: str | None = None) -> None:
        """Use these networks from now on; `source` says where they are kept."""
        ...
