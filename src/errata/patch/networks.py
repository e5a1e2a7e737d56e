"""Networks that a patch puts behind modules: how they are given what they read."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from errata.errors import PatchError
from errata.model.hooks import before, hooked
from errata.model.passes import Pass
from errata.patch.around import sees_pass
from errata.patch.changes.base import fitting
from errata.patch.places import module_of

if TYPE_CHECKING:
    from errata.model.lm import LM


LABEL = "errata_label"
"""Attribute of a network that says what messages call it."""


class Sources:
    """Inputs of modules that networks elsewhere read: kept from one hook to the next.

    Args:
        lm: The model.
    """

    def __init__(self, lm: LM) -> None:
        self.lm = lm
        self.kept: dict[str, Tensor] = {}

    def watching(self, paths: Sequence[str]) -> AbstractContextManager[None]:
        """Hook modules; called last, so that what is kept is what the module is given."""
        return hooked(
            self.lm,
            *(before(module_of(self.lm, path), self._keep(path)) for path in dict.fromkeys(paths)),
            lasting=True,
        )

    def _keep(self, path: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            self.kept[path] = entering(module, args)

        return hook


def entering(module: nn.Module, args: Sequence[Any]) -> Tensor:
    """Return the hidden states that a module is given.

    Raises:
        PatchError: If it is called without any in the first place, as attention may be.
    """
    if not args:
        raise PatchError(
            f"a change meets {type(module).__name__}, which is given no hidden states in front",
            "The patch is damaged, or for another model; make it again.",
        )
    return args[0]


def called(
    network: nn.Module, hidden: Sequence[Tensor], seen: Pass | None, shape: Sequence[int]
) -> Tensor:
    """Call a network; one that looks at whole rows is given them as rows.

    Raises:
        PatchError: If its tensors do not fit what it is given, or it returns another shape.
    """
    with fitting(str(getattr(network, LABEL, "a network of this patch"))):
        if not sees_pass(network):
            made = network(*hidden)
        else:
            assert seen is not None  # hooked on the model, which has been called
            rows = [x.reshape(*seen.ids.shape, x.shape[-1]) for x in hidden]
            made = network(*rows, seen).reshape(shape)
        if made.shape != hidden[-1].shape:
            raise ValueError(f"it makes {tuple(made.shape)} of {tuple(hidden[-1].shape)}")
    return made
