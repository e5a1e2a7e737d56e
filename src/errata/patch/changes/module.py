"""Networks in front of or behind modules of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from errata.errors import PatchError
from errata.patch.changes.base import Change, Merge, building, object_of, text_of
from errata.patch.changes.kinds import NETWORKS, change_kind, module_kind
from errata.patch.places import module_of

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.patch.parts import Parts

Where = Literal["input", "output", "both"]


@change_kind("module")
@dataclass(frozen=True, eq=False, repr=False)
class Module(Change):
    """A small network in front of or behind a module of the model.

    Attributes:
        path: Dotted path of the module it hooks.
        name: Registered kind of network (`@module_kind`), after the method that makes it.
        config: What the kind needs besides tensors (JSON values).
        weights: Its tensors.
        where: `input` maps the module's first input, `output` its (first) output; `both` is given
            the two and returns what stands for the output.
        source: With `both`, the module whose first input is given, if it is another one: a branch
            beside a whole FFN reads the input of its first matrix and acts behind its last.
    """

    kind: ClassVar[str] = "module"
    path: str
    name: str
    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    where: Where = "output"
    source: str | None = None

    def __post_init__(self) -> None:
        if self.source is not None and self.where != "both":
            raise PatchError(f"{self.label}: a source goes with where='both', not {self.where!r}")

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"the {self.name} module at {self.path}"

    def build(self) -> nn.Module:
        """Return the network: called with hidden states (`both`: two), it returns hidden states.

        A network whose class says `sees_pass = True` is called with a
        [`Pass`][errata.model.passes.Pass] as well; behind cached tokens only if it says
        `follows_cache = True` too.

        Raises:
            PatchError: If this version of errata does not know the kind.
        """
        make = NETWORKS.find(self.name, f" at {self.path}")
        with building(self.label):
            return make(self.config, self.weights).eval()

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved in the tensor file."""
        return dict(self.weights)

    def describe(self) -> dict[str, Any]:
        """Return what is saved in the JSON file."""
        return {
            "kind": self.kind,
            "path": self.path,
            "name": self.name,
            "config": dict(self.config),
            "where": self.where,
            **({} if self.source is None else {"source": self.source}),
        }

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Module:
        """Return the change that was saved."""
        where = text_of(entry, "where")
        if where not in ("input", "output", "both"):
            raise PatchError(f"where is {where!r}; expected input, output or both")
        source = None if entry.get("source") is None else text_of(entry, "source")
        path, name, config = (
            text_of(entry, "path"),
            text_of(entry, "name"),
            object_of(entry, "config"),
        )
        return cls(path, name, config, dict(tensors), where, source)

    @property
    def reads_input(self) -> bool:
        """Whether it maps what its module is given."""
        return self.where == "input"

    def check(self, lm: LM) -> None:
        """Refuse a model without the modules that it hooks."""
        module_of(lm, self.path)
        if self.source is not None:
            module_of(lm, self.source)

    def install(self, parts: Parts, group: int) -> None:
        """Add a network."""
        parts.add_network(group, self, self.build())

    def merge(self) -> Merge | None:
        """Return what the network's class says: its static method `merged`, if it has one.

        `merged(lm, changes)` raises a PatchError or returns a function from `lm` to a model of
        transformers that has all these changes built in.
        """
        return getattr(NETWORKS.find(self.name, f" at {self.path}"), "merged", None)


@module_kind("shift")
class Shift(nn.Module):
    """Adds one vector to the hidden states at every token.

    Args:
        config: Unused.
        tensors: `vector` of shape `[d]`.
    """

    def __init__(self, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.vector = tensors["vector"]

    def forward(self, hidden: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """Return `hidden + vector`, added in float32 at least."""
        vector = self.vector.to(hidden.device)
        return (hidden.to(torch.promote_types(hidden.dtype, vector.dtype)) + vector).to(
            hidden.dtype
        )
