"""The patches that edits go on from."""

from __future__ import annotations

from collections.abc import Sequence

from errata.arguments import expect, several
from errata.errors import EditError
from errata.model.lm import LM
from errata.patch import Patch
from errata.patch.patch import LOAD_PATCH


def earlier_patches(
    lm: LM, count: int, after: Patch | Sequence[Patch | None] | None
) -> list[Patch]:
    """Return one earlier patch per group, each checked against the model; an empty one for None.

    Raises:
        ArgumentError: If something else is given.
        EditError: If there are more of them than groups, or fewer.
        PatchError: If one belongs to another model.
    """
    if after is None or isinstance(after, Patch):
        given = [after] * count
    else:
        given = list(several(after, "after", "a patch, or a list of them"))
    if len(given) != count:
        raise EditError(f"{len(given)} earlier patches for {count} groups; expected one per group")
    own: dict[int, Patch] = {}
    for patch in given:
        if patch is not None and id(patch) not in own:
            expect(patch, Patch, "after", "a patch, or a list of them", LOAD_PATCH)
            patch.check(lm)
            own[id(patch)] = patch.on(lm.device)  # one out of a file goes on beside the model
    return [Patch() if patch is None else own[id(patch)] for patch in given]
