"""Editing many groups at once, such that a request that cannot be edited costs only itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from errata.case import Case, Edit
from errata.errors import EditError, ErrataError, ModelError, PatchError
from errata.patch import Patch

if TYPE_CHECKING:
    from errata.editors.base import Editor
    from errata.model.lm import LM


Outcome = Patch | ErrataError

Numbered = tuple[int, Sequence[Case]]
"""A unit and its number."""


class Waiting(NamedTuple):
    """A case that is edited and not asked yet: its unit's number and patch."""

    unit: int
    case: Case
    patch: Patch | None


@dataclass(frozen=True)
class Edited:
    """Units after their edits, before their questions.

    Attributes:
        patches: Of each unit; None: nothing was edited.
        failed: Why cases could not be edited.
        also: What records say besides answers, by case.
    """

    patches: Sequence[Patch | None]
    failed: Mapping[str, str]
    also: Mapping[str, dict[str, Any]] = field(default_factory=dict)

    def cases(self, batch: Sequence[Numbered]) -> list[Waiting]:
        """Return the cases of the units in order."""
        return [
            Waiting(number, case, patch)
            for (number, unit), patch in zip(batch, self.patches, strict=True)
            for case in unit
        ]


def edit_groups(
    editor: Editor,
    lm: LM,
    groups: Sequence[Sequence[Edit]],
    after: Sequence[Patch | None],
) -> list[Outcome]:
    """Edit independent groups; a group that fails is returned as its error, the others go on.

    Which group failed is read off the error if it names edits, and found by halving if not.

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
        outcomes: list[Outcome | None] = [None] * len(groups)
        for part in _parts(groups, error):
            found = edit_groups(editor, lm, [groups[i] for i in part], [after[i] for i in part])
            for i, outcome in zip(part, found, strict=True):
                outcomes[i] = outcome
        return [outcome for outcome in outcomes if outcome is not None]
    if len(patches) != len(groups):
        raise RuntimeError(
            f"editor {editor.name} returned {len(patches)} patches for {len(groups)} groups"
        )
    return [_checked(patch) for patch in patches]


def _parts(groups: Sequence[Sequence[Edit]], error: ErrataError) -> list[list[int]]:
    """Return the numbers of the groups in two parts, of which one holds what failed if possible."""
    named = _culprits(error)
    bad = [i for i, group in enumerate(groups) if any(edit in named for edit in group)]
    if 0 < len(bad) < len(groups):
        return [[i for i in range(len(groups)) if i not in bad], bad]
    half = len(groups) // 2
    return [list(range(half)), list(range(half, len(groups)))]


def _culprits(error: object) -> frozenset[Edit]:
    """Return the edits that an error names; a set, as there may be thousands of them."""
    return frozenset(error.edits) if isinstance(error, EditError) else frozenset()


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

    When a group of several cases fails and the error names edits of it, the cases with those edits
    are recorded and the rest is edited jointly again. If it names none, each case is tried alone;
    those that fail are recorded and the rest is edited jointly. If the rest still fails, all of it
    is recorded.

    Returns:
        For each group the complete patch (`after` if nothing of it could be edited), and for each
        case left out the reason.
    """
    failed: dict[str, str] = {}
    patches: list[Patch | None] = list(after)
    rest = [list(group) for group in groups]
    todo = [i for i, group in enumerate(groups) if group]
    while todo:
        outcomes = edit_groups(
            editor, lm, [_requests(rest[i]) for i in todo], [after[i] for i in todo]
        )
        again: list[int] = []
        for i, outcome in zip(todo, outcomes, strict=True):
            if isinstance(outcome, Patch):
                patches[i] = outcome
                continue
            named = _culprits(outcome)
            out = [case for case in rest[i] if any(edit in named for edit in case.edits)]
            if out:
                failed |= {case.id: outcome.message for case in out}
                rest[i] = [case for case in rest[i] if case.id not in failed]
            else:
                patch, errors = _without_failing(editor, lm, rest[i], after[i], outcome)
                patches[i] = patch
                failed |= errors
                rest[i] = []
            if rest[i]:
                again.append(i)
        todo = again
    return patches, failed


def _without_failing(
    editor: Editor, lm: LM, group: Sequence[Case], base: Patch | None, error: ErrataError
) -> tuple[Patch | None, dict[str, str]]:
    """Try each case of a group that failed alone, then what can be edited jointly."""
    if len(group) == 1:
        return base, {group[0].id: error.message}
    alone = edit_groups(editor, lm, [_requests([case]) for case in group], [base] * len(group))
    failed = {
        case.id: one.message
        for case, one in zip(group, alone, strict=True)
        if isinstance(one, ErrataError)
    }
    rest = [case for case in group if case.id not in failed]
    if not rest:
        return base, failed
    (outcome,) = edit_groups(editor, lm, [_requests(rest)], [base])
    if isinstance(outcome, ErrataError):
        return base, failed | {case.id: outcome.message for case in rest}
    return outcome, failed


def _requests(cases: Sequence[Case]) -> list[Edit]:
    return [edit for case in cases for edit in case.edits]
