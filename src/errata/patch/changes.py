"""The kinds of change a patch is made of, and the registries of networks and routers.

Orientation: a projection computes `v = W k + b` with `W` of shape `d_out x d_in`, and a low-rank
change is `W += B A`. Only `errata.model.spec` and `errata.patch.deltas` know that some
modules store the transpose.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from errata.errors import PatchError

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.model.passes import Pass

Where = Literal["input", "output", "both"]
Network = Callable[[Mapping[str, Any], Mapping[str, Tensor]], nn.Module]
MakeRouter = Callable[["LM", Mapping[str, Any], Mapping[str, Tensor]], "Router"]
_MODULES: dict[str, Network] = {}
_ROUTES: dict[str, MakeRouter] = {}
HOMES = {
    "rep": "errata.strategies.rep.adapter",
    "grace": "errata.editors.grace.codebook",
    "t_patcher": "errata.editors.t_patcher.units",
    "lemoe": "errata.editors.lemoe.experts",
    "serac": "errata.editors.serac.route",
}
"""Kinds that other modules of errata register: imported when a patch holds one, which may be in a
process that has not edited anything."""
PLUG_INS = "errata.editors"
"""Entry points of editors of other distributions, whose modules may register kinds too."""
M = TypeVar("M", bound=Network)
R = TypeVar("R", bound=MakeRouter)


def module_kind(kind: str) -> Callable[[M], M]:
    """Register a class that a `Module` change of this kind builds from `(config, tensors)`."""

    def register(build: M) -> M:
        _MODULES[kind] = build
        return build

    return register


def route_kind(kind: str) -> Callable[[R], R]:
    """Register what builds the router of a `Route` change from `(lm, config, tensors)`."""

    def register(build: R) -> R:
        _ROUTES[kind] = build
        return build

    return register


def _registered(known: Mapping[str, Any], kind: str, what: str) -> Any:
    """Return what builds a kind; what may register it is imported as far as it is needed."""
    if kind not in known and kind in HOMES:
        importlib.import_module(HOMES[kind])
    if kind not in known:
        for point in metadata.entry_points(group=PLUG_INS):
            importlib.import_module(point.module)
    if kind not in known:
        names = ", ".join(sorted({*_MODULES, *_ROUTES, *HOMES}))
        raise PatchError(
            f"unknown kind of {what}",
            f"Known: {names}. Was the patch made by a plug-in that is not installed here?",
        )
    return known[kind]


@contextmanager
def _broken(label: str) -> Iterator[None]:
    """Name the change whose configuration or tensors are not what its kind needs."""
    try:
        yield
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RuntimeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise PatchError(
            f"{label} cannot be built: {what}", "The patch is damaged; make it again."
        ) from error


class _Named:
    """What all changes show of themselves: one line, never a tensor.

    Two changes are equal if they are the same object: tensors have no truth value to compare by.
    """

    def __repr__(self) -> str:
        own: Any = self
        shapes = ", ".join(
            f"{name} {'×'.join(map(str, tensor.shape))}" for name, tensor in own.tensors().items()
        )
        return f"<{type(self).__name__}: {own.label.removeprefix('the ')}; {shapes}>"


@dataclass(frozen=True, eq=False, repr=False)
class LowRank(_Named):
    """`W += B A` on the weight of one projection.

    Attributes:
        path: Dotted path of the module.
        B: `[d_out, r]`.
        A: `[r, d_in]`.
    """

    kind: ClassVar[str] = "low_rank"
    path: str
    B: Float[Tensor, "d_out r"]
    A: Float[Tensor, "r d_in"]

    def __post_init__(self) -> None:
        if self.B.ndim != 2 or self.A.ndim != 2 or self.B.shape[1] != self.A.shape[0]:
            raise PatchError(
                f"low-rank change of {self.path}: B is {tuple(self.B.shape)}, "
                f"A is {tuple(self.A.shape)}; expected d_out x r and r x d_in"
            )

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"the change of {self.path}"

    @property
    def rank(self) -> int:
        """Number of rank-one terms."""
        return self.A.shape[0]

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved in the tensor file."""
        return {"B": self.B, "A": self.A}

    def describe(self) -> dict[str, Any]:
        """Return what is saved in the JSON file."""
        return {"kind": self.kind, "path": self.path}


@dataclass(frozen=True, eq=False, repr=False)
class Dense(_Named):
    """`parameter += delta`, for any parameter.

    Attributes:
        path: Name of the parameter.
        delta: In the parameter's stored shape.
    """

    kind: ClassVar[str] = "dense"
    path: str
    delta: Float[Tensor, ...]

    @property
    def label(self) -> str:
        """What messages call it."""
        return f"the change of {self.path}"

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved in the tensor file."""
        return {"delta": self.delta}

    def describe(self) -> dict[str, Any]:
        """Return what is saved in the JSON file."""
        return {"kind": self.kind, "path": self.path}


@dataclass(frozen=True, eq=False, repr=False)
class Module(_Named):
    """A small network in front of or behind a module of the model.

    Attributes:
        path: Dotted path of the module it hooks.
        name: Registered kind of network (`@module_kind`).
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
        [`Pass`][errata.model.passes.Pass] as well.

        Raises:
            PatchError: If this version of errata does not know the kind.
        """
        make = _registered(_MODULES, self.name, f"module {self.name!r} at {self.path}")
        with _broken(self.label):
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


@runtime_checkable
class Router(Protocol):
    """What a `Route` change does at work; the rows it is shown are those of its own patch.

    A class with a static method `together(routers)` serves the routers of many patches at once: it
    returns an object with the same two methods, which are told each row's router as `owner` `[B]`.
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


@dataclass(frozen=True, eq=False, repr=False)
class Route(_Named):
    """Another answer than the model's, for the inputs that a router takes.

    Attributes:
        name: Registered kind of router (`@route_kind`).
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
        make = _registered(_ROUTES, self.name, f"route {self.name!r}")
        with _broken(self.label):
            return make(lm, self.config, self.weights)

    def tensors(self) -> dict[str, Tensor]:
        """Return what is saved in the tensor file."""
        return dict(self.weights)

    def describe(self) -> dict[str, Any]:
        """Return what is saved in the JSON file."""
        return {"kind": self.kind, "name": self.name, "config": dict(self.config)}


@dataclass(frozen=True, eq=False, repr=False)
class Context(_Named):
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


Change = LowRank | Dense | Module | Route | Context


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
