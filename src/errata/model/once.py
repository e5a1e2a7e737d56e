"""What is made of a model once and kept beside it while its weights are what they were."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakKeyDictionary

from torch import nn

if TYPE_CHECKING:
    from errata.model.hooks import Installed

T = TypeVar("T")


class Once:
    """Keeps what was made of a model, and drops all of it once somebody wrote to the weights.

    Args:
        model: The model.
        installed: Knows who wrote to it.
    """

    def __init__(self, model: nn.Module, installed: Installed) -> None:
        self._model, self._installed = model, installed
        self._kept: dict[Hashable, Any] = {}
        self._kept_for: WeakKeyDictionary[Any, dict[Hashable, Any]] = WeakKeyDictionary()
        self._at = installed.foreign

    def __call__(self, key: Hashable, make: Callable[[], T], owner: object | None = None) -> T:
        """Return what `make` gave when this key was first asked for; see `LM.once`."""
        if self._at != self._installed.foreign:
            self._at = self._installed.foreign
            self._kept.clear()
            self._kept_for.clear()
        kept = self._kept if owner is None else self._kept_for.setdefault(owner, {})
        if key not in kept:
            if not self._installed.versions:
                self._installed.look(self._model)  # what is made now is made of these weights
            kept[key] = make()
        return cast("T", kept[key])
