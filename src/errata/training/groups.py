"""Training groups: edits that are applied together, questions that should follow, and others.

A group is one data set record: its edits, and the hops its questions build on, are edited jointly;
its generality questions should then be answered as the edit says, its locality questions as before.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from errata.case import Case, Edit
from errata.data._questions import PORTABILITY
from errata.errors import DataError, EditError, ModelError
from errata.model.lm import LM
from errata.model.tokens import Row
from errata.nets.capture import edit_rows

if TYPE_CHECKING:
    from errata.training.trainable import Trainable


SENTENCE_TOKENS = 64
"""Tokens at most of a sentence that is a locality question."""


@dataclass(frozen=True)
class Group:
    """One training group, tokenised.

    Attributes:
        id: Of the case it was made from.
        edits: Main edits, then those hops that are edited with them.
        edit_rows: The same, tokenised.
        gens: Questions that should follow the edits.
        locs: Questions whose answer must not move.
        main: Number of main edits.
    """

    id: str
    edits: tuple[Edit, ...]
    edit_rows: tuple[Row, ...]
    gens: tuple[Row, ...]
    locs: tuple[Row, ...]
    main: int


def unknown_hops(lm: LM, cases: Sequence[Case], top_k: int = 5) -> set[tuple[str, str]]:
    """Return prompt and target of the hops that the model does not know before any edit.

    Known means that every target token is among the `top_k`, as the protocol asks.
    """
    hops = {(h.prompt, h.target): h for c in cases for p in c.of("generality") for h in p.hops}
    asked = sorted(hops)
    scores = lm.score([lm.row_of(hops[key]) for key in asked])
    return {
        key for key, score in zip(asked, scores, strict=True)
        if any(rank >= top_k for rank in score.ranks)
    }  # fmt: skip


def make_groups(
    lm: LM,
    cases: Sequence[Case],
    *,
    hops: str,
    generality: str = "all",
    seed: int = 0,
) -> list[Group]:
    """Turn cases into training groups.

    Args:
        lm: The model, for its tokenizer and for what it knows.
        cases: Records with edits and probes.
        hops: Which hops are edited with the main edit: `all`, `unknown` to the model, `mixed`
            (all of them in half the groups, drawn once, else the unknown ones) or `none`.
        generality: `all` questions, or only `rephrase` (no hop, no reversal, no comparison).
        seed: For `mixed`.

    Raises:
        EditError: If a record cannot be tokenised; names the record.
    """
    unknown = unknown_hops(lm, cases) if hops in {"unknown", "mixed"} else set()
    groups = []
    for case in cases:
        draw = random.Random(f"{seed} {case.id}").random() < 0.5
        everything = hops == "all" or (hops == "mixed" and draw)
        wanted = None if everything else set() if hops == "none" else unknown
        try:
            groups.append(_group(lm, case, wanted, generality == "rephrase"))
        except (EditError, ModelError) as error:
            raise EditError(
                f"record {case.id!r} cannot be trained on: {error.message}",
                "Mend or remove it, or draw others with --limit.",
            ) from None
    return groups


def _group(lm: LM, case: Case, wanted: set[tuple[str, str]] | None, plain_only: bool) -> Group:
    """Tokenise one case; hops are edited with it if they are wanted, all of them for None."""
    edits = list(case.edits)
    seen = {(e.prompt, e.target) for e in edits}
    gens = []
    for probe in case.of("generality"):
        plain = not (set(probe.criteria) & {"MH", "RR", "SER", PORTABILITY} or probe.hops)
        if plain_only and not plain:
            continue
        gens.append(lm.row_of(probe))
        for hop in probe.hops:
            key = (hop.prompt, hop.target)
            if (wanted is None or key in wanted) and key not in seen:
                seen.add(key)
                edits.append(hop)
    return Group(
        case.id,
        tuple(edits),
        tuple(edit_rows(lm, edits)),
        tuple(gens),
        tuple(lm.row_of(p) for p in case.of("locality")),
        len(case.edits),
    )


def with_sentences(
    lm: LM, groups: Sequence[Group], texts: Sequence[str], seed: int = 0
) -> list[Group]:
    """Return the groups, each with a sentence of a text as one more locality question.

    All its tokens but the first are asked for, so that the whole sentence stays as probable as it
    was. The text of a group is drawn by seed and id and does not depend on the groups beside it.

    Args:
        lm: The model, for its tokenizer.
        groups: The groups.
        texts: Texts; each is cut to `SENTENCE_TOKENS` tokens.
        seed: Of what is drawn.

    Raises:
        DataError: If no text has two tokens.
    """
    rows = [row for row in lm.text_rows(texts, SENTENCE_TOKENS) if len(row.ids) > 1]
    if not rows:
        raise DataError("il_text: no text has two tokens", "Give another: --train il_text=FILE.txt")
    asked = [
        replace(row, ids=row.ids[:-1], positions=tuple(range(len(row.ids) - 1)),
                labels=row.ids[1:], prompt_length=1)
        for row in rows
    ]  # fmt: skip
    return [
        replace(group, locs=(*group.locs, random.Random(f"{seed} {group.id}").choice(asked)))
        for group in groups
    ]


def complete(lm: LM, editor: Trainable, groups: Sequence[Group]) -> list[Group]:
    """Fill in what an editor's networks want to read beside the edits; all groups at once."""
    asked = [editor.with_others(group.edits) for group in groups]
    others = [edits[len(group.edits) :] for edits, group in zip(asked, groups, strict=True)]
    full = iter(editor.completed(lm, [edit for edits in asked for edit in edits]))
    return [
        replace(
            group,
            edits=tuple(next(full) for _ in edits),
            edit_rows=(*group.edit_rows, *(edit_rows(lm, other) if other else ())),
        )
        for group, edits, other in zip(groups, asked, others, strict=True)
    ]


def merged(groups: Sequence[Group]) -> Group:
    """Return several records as one group, main edits first."""
    mains = [(g.edits[: g.main], g.edit_rows[: g.main]) for g in groups]
    hops = [(g.edits[g.main :], g.edit_rows[g.main :]) for g in groups]
    return Group(
        "+".join(g.id for g in groups),
        tuple(e for edits, _ in (*mains, *hops) for e in edits),
        tuple(r for _, rows in (*mains, *hops) for r in rows),
        tuple(r for g in groups for r in g.gens),
        tuple(r for g in groups for r in g.locs),
        sum(g.main for g in groups),
    )
