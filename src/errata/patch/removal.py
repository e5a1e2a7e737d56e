"""Taking single edits back out of a finished patch, as if they had never been made.

That needs a patch whose changes keep what each edit asked for and do not depend on the order of the
edits (`Ridge`). Undoing the last of a chain of updates would not do: later ones were computed on
the model that the edit had changed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from errata.case import Edit, described
from errata.config import did_you_mean
from errata.errors import PatchError
from errata.store.digest import digest_of

if TYPE_CHECKING:
    from errata.patch.changes import Change
    from errata.patch.patch import Patch

LENGTH = 16
"""Hex digits by which changes know an edit."""


def edit_key(edit: Edit) -> str:
    """Return what a change knows an edit by: what it says and how it is asked, not its id."""
    told = {name: value for name, value in described(edit).items() if name != "id"}
    return digest_of(json.dumps(told, sort_keys=True, ensure_ascii=False))[:LENGTH]


def find_edit(patch: Patch, name: str | int | Edit) -> int:
    """Return the position of an edit in `patch.edits`.

    Args:
        patch: The patch.
        name: An edit; its number, from 1; or a text: its id, its prompt, or its number (`#3` where
            an id is `3`).

    Raises:
        PatchError: If there is none, or several, of that name.
    """
    edits = patch.edits
    if isinstance(name, Edit):
        found = [i for i, edit in enumerate(edits) if edit == name]
        shown = repr(name.prompt)
    elif isinstance(name, int):
        shown = f"#{name}"
        found = [name - 1] if 1 <= name <= len(edits) else []
    else:
        shown = name
        found = [i for i, edit in enumerate(edits) if edit.id == shown]
        found = found or [i for i, edit in enumerate(edits) if edit.prompt == shown]
        number = shown.removeprefix("#")
        if not found and number.isdecimal() and 1 <= int(number) <= len(edits):
            found = [int(number) - 1]
    if not found:
        names = [edit.id or edit.prompt for edit in edits]
        raise PatchError(
            f"no edit {shown!r} in this patch of {len(edits)}",
            f"Name it by id, prompt, or number from #1 to #{len(edits)}. "
            f"{did_you_mean(shown, names) if 0 < len(names) <= 200 else ''}".strip(),
        )
    if len(found) > 1:
        numbers = ", ".join(f"#{i + 1}" for i in found[:8])
        raise PatchError(
            f"{len(found)} edits of this patch go by {shown!r}", f"Say which: {numbers}"
        )
    return found[0]


def removable(patch: Patch) -> list[bool]:
    """Return for each edit of a patch whether it can be taken back out of it."""
    held = [_places(change, patch.edits) for change in patch.changes]
    return [any(number in places for places in held) for number in range(len(patch.edits))]


def remove(patch: Patch, edits: Sequence[str | int | Edit]) -> Patch:
    """Return the patch that would have been built without some of its edits.

    What was measured of the patch (`results`, `aftermath`) is left out: it was measured with them.

    Args:
        patch: The patch; it is not changed.
        edits: Which, as `find_edit` takes them.

    Raises:
        PatchError: If there is no such edit, or the editor's updates depend on the order of its
            edits, so that none of them can be taken back.
    """
    out = {find_edit(patch, name) for name in edits}
    if not out:
        raise PatchError("no edit is named", "Name the edits to take out by id, prompt or number.")
    held = [_places(change, patch.edits) for change in patch.changes]
    for number in sorted(out):
        if not any(number in places for places in held):
            raise PatchError(_why_not(patch, number), REBUILD)
    changes: list[Change] = []
    for change, places in zip(patch.changes, held, strict=True):
        gone = {place for number, place in places.items() if number in out}
        left = change.without(gone) if gone else change
        if left is not None:
            changes.append(left)
    kept = tuple(edit for number, edit in enumerate(patch.edits) if number not in out)
    return replace(patch, changes=tuple(changes), edits=kept, results=(), aftermath={})


REBUILD = (
    "Make the patch again from its other edits: errata remove PATCH --edit ID --rebuild --out NEW; "
    "or edit with what is free of order: a locate-then-edit method +simie, or ultraedit with "
    "--set order=free."
)


def _why_not(patch: Patch, number: int) -> str:
    edit = patch.edits[number]
    editor = patch.meta.get("editor") or "its editor"
    return (
        f"{edit.prompt!r} cannot be taken out of this patch: the updates of {editor} depend on the "
        "edits before them, and what a single one added is not kept"
    )


def _places(change: Change, edits: Sequence[Edit]) -> dict[int, int]:
    """Return number of an edit -> its position in what a change holds; equal edits in order.

    Where a patch names an edit more often than the change holds it, another editor made one of
    them, and which is not known: none of them is returned.
    """
    if not change.held:
        return {}
    held: dict[str, list[int]] = {}
    for place, key in enumerate(change.held):
        held.setdefault(key, []).append(place)
    named: dict[str, list[int]] = {}
    for number, edit in enumerate(edits):
        named.setdefault(edit_key(edit), []).append(number)
    found = {}
    for key, places in held.items():
        numbers = named.get(key, [])
        if len(numbers) == len(places):
            found |= dict(zip(numbers, places, strict=True))
    return found
