"""The change itself: a value that is applied, undone, added, saved and exported."""

from errata.patch.changes import (
    Change,
    Context,
    Dense,
    LowRank,
    Module,
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
    "Route",
    "Router",
    "change_kind",
    "module_kind",
    "route_kind",
]
