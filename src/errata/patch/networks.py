"""Networks that a patch puts behind modules: how they are given what they read."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from errata.model.hooks import before, hooked
from errata.model.passes import Pass
from errata.patch.around import sees_pass
from errata.patch.places import module_of

if TYPE_CHECKING:
    from errata.model.lm import LM


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
            self.kept[path] = args[0]

        return hook


def called(
    network: nn.Module, hidden: Sequence[Tensor], seen: Pass | None, shape: Sequence[int]
) -> Tensor:
    """Call a network; one that looks at whole rows is given them as rows."""
    if not sees_pass(network):
        return network(*hidden)
    assert seen is not None  # hooked on the model, which has been called
    rows = [x.reshape(*seen.ids.shape, x.shape[-1]) for x in hidden]
    return network(*rows, seen).reshape(shape)
