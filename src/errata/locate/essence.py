"""The essence row: "{subject} is a", whose distribution at the subject must not drift.

Of it only the subject's last token is read, and nothing behind a token matters in a causal model:

```
 bare prompt   "Rome │ is the capital of"   begins with the subject (most prompts of CounterFact):
 essence       "Rome │ is a"                its row is read at the subject, no other one is run
 bare prompt   "The mother tongue of Ada │ is"
 essence       "Ada │"                      a row of its own, which ends there
```
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from errata.model.tokens import Row

if TYPE_CHECKING:
    from errata.model.lm import LM


def essence_prompt(subject: str) -> str:
    """Return the prompt whose distribution at the subject must not drift."""
    return f"{subject} is a"


def run_rows(
    lm: LM, rows: Sequence[Row], per_edit: int, *, spare: bool
) -> tuple[list[Row], list[int], list[int]]:
    """Choose the rows that an optimisation runs.

    Args:
        lm: The model; under changes that look at whole rows every essence row is run whole.
        rows: Of each edit, its contexts and then its essence row; pieces of answers may have none.
        per_edit: How many rows an edit has.
        spare: Whether to run no more of an essence row than is read.

    Returns:
        The rows, the number of the edit of each, and for each edit with an essence the row in which
        it is read (at the subject's last token).
    """
    spare = spare and not lm.installed.around_model
    kept: list[Row] = []
    owner: list[int] = []
    read: list[int] = []
    for edit in range(len(rows) // per_edit):
        own = rows[edit * per_edit : (edit + 1) * per_edit]
        if own[-1].labels:  # a piece of an answer that has no essence
            kept += own
            owner += [edit] * len(own)
            continue
        *own, essence = own
        if spare:
            end = essence.subject_last + 1
            essence = replace(essence, ids=essence.ids[:end], positions=(end - 1,))
        held = spare and own[0].ids[: own[0].subject_last + 1] == essence.ids
        read.append(len(kept) + (0 if held else len(own)))
        own = own if held else [*own, essence]
        kept += own
        owner += [edit] * len(own)
    return kept, owner, read
