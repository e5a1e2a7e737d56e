"""Editing many groups at once, such that a request that cannot be edited costs only itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from errata.case import Case, Edit
from errata.errors import EditError, ErrataError, ModelError, PatchError
from errata.patch import Patch

if TYPE_CHECKING:
    from errata.editors._base import Editor
    from errata.lm import LM


Outcome = Patch | ErrataError


def edit_groups(
    editor: Editor,
    lm: LM,
    groups: Sequence[Sequence[Edit]],
    after: Sequence[Patch | None],
) -> list[Outcome]:
    """Edit independent groups; a group that fails is found by halving and returned as its error.

    Args:
        editor: The editor.
        lm: The model.
        groups: Requests edited jointly within a group.
        after: For each group, the patch it builds on.

    Returns:
        For each group the complete patch, or the error that says why there is none.
    """
    if not groups:
        return []
    earlier = None if all(patch is None for patch in after) else list(after)
    try:
        patches = editor.edit(lm, groups, after=earlier)
    except (EditError, ModelError) as error:
        if len(groups) == 1:
            return [error]
        half = len(groups) // 2
        return [
            *edit_groups(editor, lm, groups[:half], after[:half]),
            *edit_groups(editor, lm, groups[half:], after[half:]),
        ]
    if len(patches) != len(groups):
        raise RuntimeError(
            f"editor {editor.name} returned {len(patches)} patches for {len(groups)} groups"
        )
    return [_checked(patch) for patch in patches]


def _checked(patch: Patch) -> Outcome:
    try:
        patch.check_finite()
    except PatchError as error:
        return error
    return patch


def edit_cases(
    editor: Editor,
    lm: LM,
    groups: Sequence[Sequence[Case]],
    after: Sequence[Patch | None],
) -> tuple[list[Patch | None], dict[str, str]]:
    """Edit groups of cases jointly; cases that cannot be edited are left out of their group.

    When a group of several cases fails, each is tried alone; those that fail are recorded and the
    rest is edited jointly. If the rest still fails, all of it is recorded.

    Returns:
        For each group the complete patch (`after` if nothing of it could be edited), and for each
        case left out the reason.
    """
    outcomes = edit_groups(editor, lm, [_requests(group) for group in groups], after)
    patches: list[Patch | None] = []
    failed: dict[str, str] = {}
    for group, outcome, base in zip(groups, outcomes, after, strict=True):
        if isinstance(outcome, ErrataError) and len(group) > 1:
            alone = edit_groups(
                editor, lm, [_requests([case]) for case in group], [base] * len(group)
            )
            rest = [c for c, one in zip(group, alone, strict=True) if isinstance(one, Patch)]
            failed |= {
                case.id: one.message
                for case, one in zip(group, alone, strict=True)
                if isinstance(one, ErrataError)
            }
            group = rest
            if rest:
                (outcome,) = edit_groups(editor, lm, [_requests(rest)], [base])
        if isinstance(outcome, ErrataError):
            failed |= {case.id: outcome.message for case in group}
            outcome = base
        patches.append(outcome)
    return patches, failed


def _requests(cases: Sequence[Case]) -> list[Edit]:
    return [edit for case in cases for edit in case.edits]
