"""Edits of mixtures of experts: each subject's edit is written into the experts it is routed to.

A block's site depends on the token there, so edits of one call are sorted by the experts of their
subjects; those of one group whose experts differ follow one another, each on the model that its
predecessors left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from errata.case import Edit
from errata.errors import EditError, SpecError
from errata.model.experts import Routed, focused, routes
from errata.patch import Patch

if TYPE_CHECKING:
    from errata.editors.base import Editor
    from errata.model.lm import LM

EQUAL = 1e-3
"""Relative difference below which two experts count as having the same weight for a token."""

Choice = tuple[tuple[int, int], ...]
"""Pairs of a block and its expert."""


def routed_blocks(editor: Editor, lm: LM) -> list[int]:
    """Return the blocks that an editor edits and whose site depends on the token.

    Raises:
        EditError: If it cannot edit experts, or which blocks it edits is not known beforehand.
    """
    try:
        spec = lm.spec
    except SpecError:  # whoever needs it will say so
        return []
    mixed = [layer for layer in range(spec.n_blocks) if spec.routed(layer) is not None]
    if not mixed:
        return []
    edited = editor.edited_layers(lm)
    found = mixed if edited is None else [layer for layer in edited if layer in mixed]
    if found and not editor.edits_experts:
        dense = [layer for layer in range(spec.n_blocks) if layer not in mixed]
        raise EditError(
            f"{editor.name} cannot edit a mixture of experts: {lm.name} has "
            f"{spec.mixtures[found[0]].count} experts in block {found[0]}, "  # type: ignore[union-attr]
            "and which of them a text reaches depends on its tokens",
            f"Take rome, memit, emmet or ft{f', or a dense block: {dense}' if dense else ''}.",
        )
    return found


def edit_experts(
    editor: Editor,
    lm: LM,
    groups: Sequence[Sequence[Edit]],
    before: Sequence[Patch],
    blocks: Sequence[int],
) -> list[Patch]:
    """Return what each group adds to its earlier patch, as `Editor.edit_groups` does.

    Args:
        editor: One that edits experts.
        lm: The model.
        groups: Edits that belong together, for each group.
        before: The earlier patch of each group.
        blocks: Those that the editor edits and whose site depends on the token.
    """
    flat = [edit for group in groups for edit in group]
    chosen = iter(experts_of(lm, flat, blocks))
    parts: list[list[tuple[Choice, list[Edit]]]] = []
    for group in groups:
        pairs = [(next(chosen), edit) for edit in group]
        parts.append(
            [(key, [e for _, e in own]) for key, own in groupby(pairs, key=lambda pair: pair[0])]
        )
    added = [Patch() for _ in groups]
    for step in range(max(map(len, parts))):
        here = [g for g, part in enumerate(parts) if len(part) > step]
        for choice in dict.fromkeys(parts[g][step][0] for g in here):
            members = [g for g in here if parts[g][step][0] == choice]
            with focused(lm, dict(choice)):
                editor.prepare(lm)
                made = editor.edit_groups(
                    lm,
                    [parts[g][step][1] for g in members],
                    [before[g] + added[g] for g in members],
                )
            for g, patch in zip(members, made, strict=True):
                added[g] = added[g] + patch if step else patch
    return added


def experts_of(lm: LM, edits: Sequence[Edit], blocks: Sequence[int]) -> list[Choice]:
    """Return the expert of each edit in some blocks: the one with most weight at its subject.

    Without a subject the prompt's last token counts.

    Raises:
        EditError: If a router gives two experts the same weight there.
    """
    rows = [lm.row(edit.prompt, None, edit.subject) for edit in edits]
    at = [
        row.prompt_length - 1 if edit.subject is None else row.subject_last
        for edit, row in zip(edits, rows, strict=True)
    ]
    found: list[Choice] = []
    for edit, where in zip(edits, routes(lm, rows, at), strict=True):
        for layer in blocks:
            _refuse_tie(edit, layer, where[layer])
        found.append(tuple((layer, where[layer].experts[0]) for layer in blocks))
    return found


def _refuse_tie(edit: Edit, layer: int, routed: Routed) -> None:
    first, second = (*routed.weights, 0.0)[:2]
    if first - second <= EQUAL * abs(first):
        raise EditError(
            f"the router of block {layer} sends {edit.subject or edit.prompt!r} to the experts "
            f"{routed.experts[0]} and {routed.experts[1]} with the same weight ({first:.3f}): no "
            "single one holds the fact",
            "Edit another block: --set layer=N (or layers=[N]).",
        )


def said(where: Mapping[int, Routed]) -> str:
    """Return the experts of one token in words: `block 0: 3 (0.61), 1 (0.39)`."""
    return "; ".join(
        f"block {layer}: "
        + ", ".join(f"{e} ({w:.2f})" for e, w in zip(r.experts, r.weights, strict=True))
        for layer, r in where.items()
    )
