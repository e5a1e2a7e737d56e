"""Where in the model patches begin to act."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from errata.patch.patch import Patch

if TYPE_CHECKING:
    from errata.model.lm import LM


def blocks_at(lm: LM, path: str) -> list[int]:
    """Return the block that a path, with a dot behind it, leads into; none if it is in none."""
    return [n for n, block in enumerate(lm.spec.blocks) if path.startswith(f"{block}.")]


def first_changed(lm: LM, patches: Iterable[Patch | None]) -> int | None:
    """Return the lowest block in which one of the patches changes a parameter.

    All blocks below it compute what they did. None: that cannot be said, for a patch changes
    something outside the blocks, or hidden states by a network, or the model as a whole.
    """
    lowest = lm.n_layers
    for patch in patches:
        for change in () if patch is None else patch.changes:
            name = f"{change.parameter}."
            own = blocks_at(lm, name)
            if change.parameter is None or not own:
                return None
            lowest = min(lowest, own[0])
    return lowest
