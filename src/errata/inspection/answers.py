"""Short greedy answers of the unedited model, and whether they are still given under a patch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from errata.model.logprobs import RowScore
from errata.model.tokens import Row

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.model.texts import Prompt

LONGEST = 2
"""Tokens of a short answer at most: more than one where the first say nothing yet."""

FEW = 0.25
"""Share of the answers that may be an article, or no word, without being made longer."""

SHOWN = 4
"""Tokens that are generated to show an answer."""

_NOTHING_YET = re.compile(r"\W*(?:the|a|an|located in|in)?\W*", re.IGNORECASE)


def short_answers(
    lm: LM, prompts: Sequence[Prompt], also: Sequence[Row] = ()
) -> tuple[list[Row], list[RowScore]]:
    """Return each prompt with the model's own short answer as labels.

    An answer is the first greedy token; where that is an article or no word for many of them,
    the next as well.

    Args:
        lm: The model.
        prompts: What is asked.
        also: Rows that are scored in the same pass.

    Returns:
        The prompts as rows, and the scores of `also`.
    """
    rows = lm.rows(prompts)
    first = lm.score([*also, *(_asking(row) for row in rows)])
    ids = [score.argmax for score in first[len(also) :]]
    for _ in range(LONGEST - 1):
        longer = [
            i
            for i, own in enumerate(ids)
            if _NOTHING_YET.fullmatch(lm.text(own)) and _fits(lm, rows[i], own)
        ]
        if len(longer) <= FEW * len(ids):
            break  # a pass for some of them is not worth it
        scores = lm.score([_asking(rows[i], ids[i]) for i in longer])
        for i, score in zip(longer, scores, strict=True):
            ids[i] += score.argmax
    answers = [
        replace(
            row,
            ids=row.ids + own[:-1],
            positions=tuple(range(len(row.ids) - 1, len(row.ids) + len(own) - 1)),
            labels=own,
        )
        for row, own in zip(rows, ids, strict=True)
    ]
    return answers, first[: len(also)]


def word_of(text: str) -> str:
    """Return the first word that says something, for a line about an answer."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    words = re.sub(r"\s+", " ", shown).strip().split(" ")
    kept = [word for word in words if not _NOTHING_YET.fullmatch(word)]
    return (kept[0] if kept else " ".join(words)).strip(".,;:!?\"'()[]“”")


def _asking(row: Row, ids: tuple[int, ...] = ()) -> Row:
    """Return a row whose score says the most probable token behind it; its label says nothing."""
    every = row.ids + ids
    return replace(row, ids=every, positions=(len(every) - 1,), labels=(0,))


def _fits(lm: LM, row: Row, ids: tuple[int, ...]) -> bool:
    eos = lm.tokenizer.eos_token_id
    return ids[-1] != eos and (lm.max_length is None or len(row.ids) + len(ids) < lm.max_length)
