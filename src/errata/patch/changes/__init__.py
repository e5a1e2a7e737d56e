"""The kinds of change a patch is made of; further kinds inherit from `Change`."""

from errata.patch.changes.base import Change
from errata.patch.changes.kinds import change_kind, change_of, module_kind, route_kind
from errata.patch.changes.module import Module, Shift, Where
from errata.patch.changes.retrieved import Retrieved
from errata.patch.changes.ridge import Ridge
from errata.patch.changes.weights import Dense, LowRank
from errata.patch.changes.whole import Context, Route, Router

__all__ = [
    "Change",
    "Context",
    "Dense",
    "LowRank",
    "Module",
    "Retrieved",
    "Ridge",
    "Route",
    "Router",
    "Shift",
    "Where",
    "change_kind",
    "change_of",
    "module_kind",
    "route_kind",
]
