"""What builds a change, a network or a router of a given kind, found when a patch holds one.

A kind is registered by a decorator when its module is imported. A patch may be loaded in a process
that has not edited anything, so a kind that is not known yet is looked for: the kind of a
method bears the method's name, so its method is imported; other distributions name theirs by the
entry-point group `errata.kinds`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from torch import Tensor, nn

from errata.errors import PatchError

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.patch.changes.base import Change
    from errata.patch.changes.whole import Router

T = TypeVar("T")

PLUG_INS = "errata.kinds"
"""Entry points of other distributions: the name is the kind, the value what registers it."""

METHODS = ("errata.editors", "errata.strategies")
"""Packages that are registries of methods, and entry-point groups of further ones."""


class Kinds(Generic[T]):
    """Builders by kind.

    Args:
        what: Word for messages.
        hint: What may be the matter if a kind is unknown.
    """

    def __init__(self, what: str, hint: str) -> None:
        self.what, self._hint = what, hint
        self._known: dict[str, T] = {}

    def register(self, kind: str) -> Callable[[Any], Any]:
        """Return a decorator that registers what builds this kind."""

        def keep(build: T) -> T:
            self._known[kind] = build
            return build

        return keep

    def forget(self, kind: str) -> None:
        """Take a kind out again."""
        del self._known[kind]

    def find(self, kind: str, place: str = "") -> T:
        """Return what builds a kind; what may register it is imported as far as it is needed.

        Args:
            kind: The kind.
            place: For messages: where it was met.

        Raises:
            PatchError: If nothing registers it.
        """
        homes = _homes(kind)
        while kind not in self._known:
            home = next(homes, None)
            if home is None:
                known = ", ".join(sorted(self._known))
                raise PatchError(
                    f"unknown kind of {self.what} {kind!r}{place}", f"Known: {known}. {self._hint}"
                )
            importlib.import_module(home)
        return self._known[kind]


def _homes(kind: str) -> Iterator[str]:
    """Yield modules that may register a kind, the likeliest first."""
    for point in metadata.entry_points(group=PLUG_INS):
        if point.name == kind:
            yield point.module
    for package in METHODS:
        methods = getattr(importlib.import_module(package), package.rpartition(".")[2])
        if kind in methods.entries:
            yield methods.entry(kind).target.partition(":")[0]
    for package in METHODS:  # a method of another distribution may register kinds of other names
        for point in metadata.entry_points(group=package):
            yield point.module


PLUG_IN_MISSING = "Was the patch made by a plug-in that is not installed here?"
CHANGES: Kinds[type[Change]] = Kinds(
    "change", f"The patch was made by a newer errata. {PLUG_IN_MISSING}"
)
NETWORKS: Kinds[Callable[[Mapping[str, Any], Mapping[str, Tensor]], nn.Module]] = Kinds(
    "module", PLUG_IN_MISSING
)
ROUTERS: Kinds[Callable[[LM, Mapping[str, Any], Mapping[str, Tensor]], Router]] = Kinds(
    "route", PLUG_IN_MISSING
)


def change_kind(kind: str) -> Callable[[T], T]:
    """Register a class of [`Change`][errata.patch.changes.base.Change]."""
    return CHANGES.register(kind)


def module_kind(kind: str) -> Callable[[T], T]:
    """Register a class that a `Module` change of this kind builds from `(config, tensors)`."""
    return NETWORKS.register(kind)


def route_kind(kind: str) -> Callable[[T], T]:
    """Register what builds the router of a `Route` change from `(lm, config, tensors)`."""
    return ROUTERS.register(kind)


def change_of(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Change:
    """Return the change that an entry of `patch.json` and its tensors describe.

    Raises:
        PatchError: If this errata does not know its kind, or it describes none.
    """
    if not isinstance(entry, Mapping):
        raise PatchError(f"{entry!r} does not describe a change", "The patch is damaged.")
    return CHANGES.find(str(entry.get("kind"))).from_entry(entry, tensors)
