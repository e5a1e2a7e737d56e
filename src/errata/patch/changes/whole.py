"""Changes of a whole model: other answers than its own, and tokens in front of every input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor

from errata.errors import PatchError
from errata.patch.changes.base import Change, building, object_of, text_of
from errata.patch.changes.kinds import ROUTERS, change_kind

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.model.passes import Pass
    from errata.patch.parts import Parts


@runtime_checkable
class Router(Protocol):
    """What a `Route` change does at work; the rows it is shown are those of its own patch.

    A class with a static method `together(routers)` serves the routers of many patches at once: it
    returns an object with the same methods, which are told each row's router as `owner` `[B]`.

    A router that only lets the model answer other tokens may have a method `rewritten(seen)`: for
    each row in scope, those tokens. Answers then grow behind a key/value cache.
    """

    def scope(self, seen: Pass) -> Bool[Tensor, " B"]:
        """Return which rows it answers; the others stay bit-equal to the model's."""
        ...

    def logits(
        self, seen: Pass, at: Int[Tensor, "N 2"], base: Float[Tensor, "N V"]
    ) -> Float[Tensor, "N V"]:
        """Return what stands for the model's logits.

        Args:
            seen: The rows in scope.
            at: (row, column) pairs; the row counts within `seen`.
            base: The model's own logits there.
        """
        ...


@change_kind("route")
@dataclass(frozen=True, eq=False, repr=False)
class Route(Change):
    """Another answer than the model's, for the inputs that a router takes.

    Attributes:
        name: Registered kind of router (`@route_kind`), after the method that makes it.
        config: What the kind needs besides tensors (JSON values).
        weights: Its tensors.
        path: Empty: it acts on the whole model.
    """

    kind: ClassVar[str] = "route"
    name: str
    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    path: ClassVar[str] = ""

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"the {self.name} route"

    def build(self, lm: LM) -> Router:
        """Return the router.

        Raises:
            PatchError: If this version of errata does not know the kind, or what the router needs
                is missing.
        """
        make = ROUTERS.find(self.name)
        with building(self.label):
            return make(lm, self.config, self.weights)

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved in the tensor file."""
        return dict(self.weights)

    def describe(self) -> dict[str, Any]:
        """Return what is saved in the JSON file."""
        return {"kind": self.kind, "name": self.name, "config": dict(self.config)}

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Route:
        """Return the change that was saved."""
        return cls(text_of(entry, "name"), object_of(entry, "config"), dict(tensors))

    @property
    def answers(self) -> bool:
        """It does."""
        return True

    def check(self, lm: LM) -> None:
        """Fit every model; the router that is built checks what it needs."""

    def install(self, parts: Parts, group: int) -> None:
        """Add a router."""
        parts.add_router(group, self.build(parts.lm))


@change_kind("context")
@dataclass(frozen=True, eq=False, repr=False)
class Context(Change):
    """Tokens in front of every input, kept as keys and values of the attention.

    Attributes:
        ids: `[P]`, special tokens included; inputs keep theirs as well.
        text: The same for a reader.
        path: Empty: it acts on the whole model.
    """

    kind: ClassVar[str] = "context"
    ids: Int[Tensor, " P"]
    text: str
    path: ClassVar[str] = ""

    def __post_init__(self) -> None:
        if self.ids.ndim != 1 or not len(self.ids) or self.ids.is_floating_point():
            raise PatchError(
                f"a context of shape {tuple(self.ids.shape)}; expected one row of token ids"
            )

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"the context of {len(self.ids)} tokens"

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved in the tensor file."""
        return {"ids": self.ids}

    def describe(self) -> dict[str, Any]:
        """Return what is saved in the JSON file."""
        return {"kind": self.kind, "text": self.text}

    @classmethod
    def from_entry(cls, entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Context:
        """Return the change that was saved."""
        if "ids" not in tensors:
            raise PatchError("the tensor 'ids' is missing")
        return cls(tensors["ids"], text_of(entry, "text"))

    @property
    def tokens(self) -> int:
        """How many tokens it puts in front of every input."""
        return len(self.ids)

    def check(self, lm: LM) -> None:
        """Refuse a model that lacks these tokens or the room for them."""
        limit = lm.max_length
        if int(self.ids.min()) < 0 or int(self.ids.max()) >= lm.embedding.shape[0]:
            raise PatchError(f"{self.label} holds ids that {lm.name} does not have")
        if limit is not None and len(self.ids) >= limit:
            raise PatchError(
                f"{self.label} leaves no room: {lm.name} holds {limit} positions",
                "Edit fewer facts at once, or give fewer demonstrations.",
            )

    def install(self, parts: Parts, group: int) -> None:
        """Add tokens in front."""
        parts.add_context(group, self)
