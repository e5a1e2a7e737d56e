"""The change itself: a value that is applied, undone, added, saved and exported."""

from errata.patch.changes import (
    Change,
    Context,
    Dense,
    LowRank,
    Module,
    Ridge,
    Route,
    Router,
    change_kind,
    module_kind,
    route_kind,
)
from errata.patch.patch import Patch

__all__ = [
    "Change",
    "Context",
    "Dense",
    "LowRank",
    "Module",
    "Patch",
    "Ridge",
    "Route",
    "Router",
    "change_kind",
    "module_kind",
    "route_kind",
]
