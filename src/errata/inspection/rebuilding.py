"""Patches made again with fewer or other edits, by the editor that made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from errata.case import Edit
from errata.data._records import thaw
from errata.editors import get_editor
from errata.errors import ConfigError, PatchError
from errata.patch import Patch
from errata.patch.removal import find_edit, remove

if TYPE_CHECKING:
    from errata.editors.base import Editor
    from errata.model.lm import LM
    from errata.progress import Step


def maker_of(patch: Patch) -> Editor:
    """Return the editor that made a patch, with its settings.

    Raises:
        PatchError: If several did, or the patch does not say which, or with what strength.
        ConfigError: If there is no such editor here.
    """
    name, config = patch.meta.get("editor"), patch.meta.get("config")
    if "composed_of" in patch.meta or "scaled" in patch.meta:
        raise PatchError(
            "this patch was composed or scaled; no single editor made it as it is",
            "Make its parts again, each by itself.",
        )
    if not isinstance(name, str) or not isinstance(config, Mapping):
        raise PatchError(
            "this patch does not say which editor made it", "Edit again: errata edit --edits FILE"
        )
    return get_editor(name, thaw(config))


def rebuilt(
    lm: LM,
    editor: Editor,
    edits: Sequence[Edit],
    *,
    batch: int | None = None,
    progress: Step | None = None,
) -> Patch:
    """Return a patch of these edits, made from nothing.

    Args:
        lm: The model.
        editor: The editor.
        edits: The edits; none: an empty patch.
        batch: Edits of one turn; None: all together.
        progress: Called with (done, total).
    """
    if batch is not None and batch < 1:
        raise ConfigError(f"a turn of {batch} edits; expected at least 1", "Example: --batch 100")
    patch = Patch.for_model(lm, editor=editor.name, config=editor.config.model_dump(mode="json"))
    step = batch or max(1, len(edits))
    for first in range(0, len(edits), step):
        if progress is not None:
            progress(first, len(edits))
        patch = editor.edit_one(lm, edits[first : first + step], patch)
    return patch


def without(
    lm: LM,
    patch: Patch,
    names: Sequence[str | int | Edit],
    *,
    batch: int | None = None,
    progress: Step | None = None,
) -> Patch:
    """Return a patch made again without some of its edits; for editors that depend on order.

    Args:
        lm: Its model.
        patch: The patch.
        names: The edits, as `errata.patch.removal.find_edit` takes them.
        batch: Edits of one turn, as it was made; None: all together.
        progress: Called with (done, total).

    Raises:
        PatchError: If there is no such edit, or no single editor made the patch.
    """
    editor = maker_of(patch)
    out = {find_edit(patch, name) for name in names}
    left = [edit for number, edit in enumerate(patch.edits) if number not in out]
    return rebuilt(lm, editor, left, batch=batch, progress=progress)


def replaced(
    lm: LM,
    patch: Patch,
    name: str | int | Edit,
    edit: Edit,
    *,
    rebuild: bool = False,
    batch: int | None = None,
    progress: Step | None = None,
) -> Patch:
    """Return the patch that would have been built with another edit in the place of one.

    Args:
        lm: Its model.
        patch: The patch.
        name: The edit that gives way.
        edit: What takes its place; where the patch is free of order, at the end.
        rebuild: Make all edits again, which every editor can.
        batch: Edits of one turn of that.
        progress: Called with (done, total).

    Raises:
        PatchError: If there is no such edit; or it cannot be taken out and `rebuild` is off.
    """
    editor = maker_of(patch)
    number = find_edit(patch, name)
    if rebuild:
        edits = [edit if i == number else old for i, old in enumerate(patch.edits)]
        return rebuilt(lm, editor, edits, batch=batch, progress=progress)
    return editor.edit_one(lm, [edit], after=remove(patch, [number + 1]))


def variant(old: Edit, target: str, prompt: str | None, subject: str | None) -> Edit:
    """Return an edit with another answer, and another question if one is given."""
    if prompt is None:
        return replace(old, target=target, target_true=None, id=None)
    return replace(
        old, prompt=prompt, target=target, subject=subject, target_true=None, id=None,
        subject_rephrases=(),
    )  # fmt: skip
