"""Edits that ask for different answers to one question."""

from __future__ import annotations

from collections.abc import Sequence

from errata.case import Edit
from errata.errors import EditError


def contradiction(group: Sequence[Edit], by_subject: bool = False) -> tuple[Edit, Edit] | None:
    """Return the first two edits of a group that ask for different answers to one prompt.

    Args:
        group: The edits.
        by_subject: Whether the same prompt about another subject is another question.
    """
    seen: dict[tuple[object, str | None], Edit] = {}
    for edit in group:
        first = seen.setdefault((edit.question, edit.subject if by_subject else None), edit)
        if first.target.strip() != edit.target.strip():
            return first, edit
    return None


def refuse_conflicts(
    group: Sequence[Edit], by_subject: bool = False, instead: str | None = None
) -> None:
    """Refuse two edits that ask for different answers to one prompt.

    Args:
        group: The edits.
        by_subject: Whether the same prompt about another subject is another question.
        instead: Value of the setting `conflicts` that carries them out.

    Raises:
        EditError: Names both; `edits` holds the later one.
    """
    found = contradiction(group, by_subject)
    if found is None:
        return
    first, edit = found
    hint = "Leave one out, or edit them one after the other (the later wins): --regime sequential"
    if instead is not None:
        hint += f"; or: --set conflicts={instead}"
    raise EditError(
        f"two edits conflict: {edit.prompt!r} is to be answered by {first.target!r} and "
        f"by {edit.target!r}",
        hint,
        edits=(edit,),
    )
