"""Edits that ask for different answers to one question."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from errata.case import Edit
from errata.errors import EditError
from errata.patch.removal import edit_key

SHOWN = 5  # contradictions that a message names
LENGTH = 80
"""Characters of a text that a message shows: answers may be whole paragraphs."""


def contradictions(group: Sequence[Edit], by_subject: bool = False) -> list[tuple[Edit, Edit]]:
    """Return each edit of a group that answers a prompt otherwise than an earlier one, and that.

    One pass, however many edits.

    Args:
        group: The edits.
        by_subject: Whether the same prompt about another subject is another question.
    """
    seen: dict[tuple[object, str | None], Edit] = {}
    found = []
    for edit in group:
        first = seen.setdefault((edit.question, edit.subject if by_subject else None), edit)
        if first.target.strip() != edit.target.strip():
            found.append((first, edit))
    return found


def refuse_conflicts(
    group: Sequence[Edit], by_subject: bool = False, instead: str | None = None
) -> None:
    """Refuse edits that ask for different answers to one prompt.

    Args:
        group: The edits.
        by_subject: Whether the same prompt about another subject is another question.
        instead: Value of the setting `conflicts` that carries them out.

    Raises:
        EditError: Names them; `edits` holds the later one of each pair.
    """
    found = contradictions(group, by_subject)
    if not found:
        return
    hint = "Leave one out, or edit them one after the other (the later wins): --regime sequential"
    if instead is not None:
        hint += f"; or: --set conflicts={instead}"
    first, edit = found[0]
    message = (
        f"two edits conflict: {_short(edit.prompt)} is to be answered by {_short(first.target)} "
        f"and by {_short(edit.target)}"
    )
    if len(found) > 1:
        message = f"{len(found)} of {len(group)} edits conflict with earlier ones: {_named(found)}"
    raise EditError(message, hint, edits=tuple(edit for _, edit in found))


def refuse_earlier(
    earlier: Sequence[Edit], group: Sequence[Edit], held: Collection[str], conflicts: str
) -> None:
    """Refuse edits that contradict those which a patch free of order holds.

    There the later edit does not win: both are solved for together, and spoil each other.

    Args:
        earlier: Edits of the patch.
        group: Edits to be added.
        held: Keys of those that are solved for together.
        conflicts: The setting; `keep` lets them pass.

    Raises:
        EditError: Names them; `edits` holds those to be added.
    """
    if conflicts == "keep" or not held:
        return
    own = [edit for edit in earlier if edit_key(edit) in held]
    added = {id(edit) for edit in group}
    found = [pair for pair in contradictions([*own, *group]) if id(pair[1]) in added]
    if found:
        raise EditError(
            f"{len(found)} of {len(group)} edits conflict with edits of the earlier patch: "
            f"{_named(found)}",
            "Take the earlier ones out (errata remove, errata replace): free of order the later "
            "edit does not win. Or: --set conflicts=keep",
            edits=tuple(edit for _, edit in found),
        )


def _named(found: Sequence[tuple[Edit, Edit]]) -> str:
    named = [
        f"{_short(edit.prompt)} by {_short(first.target)} and by {_short(edit.target)}"
        for first, edit in found[:SHOWN]
    ]
    more = f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return "; ".join(named) + more


def _short(text: str) -> str:
    return repr(text if len(text) <= LENGTH else f"{text[: LENGTH - 1]}…")
