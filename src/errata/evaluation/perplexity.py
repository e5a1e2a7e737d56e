"""Perplexity on a local text: what editing costs on text that has nothing to do with the edits."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from errata.errors import DataError
from errata.model.tokens import Row
from errata.world.held import world_sentences
from errata.world.shipped import knows_world

if TYPE_CHECKING:
    from errata.evaluation.scoring import Scorer
    from errata.model.lm import LM
    from errata.patch import Patch

TOKENS = 8192
"""Most predicted tokens: a standard error of a few percent, far less between points on one text."""

WINDOW = 512
"""Longest piece of a document that is one row; shorter where the model's context is."""


@dataclass(frozen=True)
class Text:
    """A tokenised text.

    Attributes:
        name: Where it comes from.
        rows: Its pieces, every token but the first of a piece a label.
        id: SHA-256 over the token ids, shortened.
    """

    name: str
    rows: tuple[Row, ...]
    id: str

    @property
    def tokens(self) -> int:
        """Number of predicted tokens."""
        return sum(len(row.labels) for row in self.rows)


def load_text(lm: LM, source: str | None) -> Text | None:
    """Read and tokenise a text.

    Args:
        lm: Tokenises.
        source: A text that [`errata.data.corpus.load_corpus`][] reads (`.txt`, `.json`,
            `.jsonl`), of which the first TOKENS tokens are used, its documents shuffled by a fixed
            seed; `auto`: for the pocket model sentences of its world, in wordings that its text
            never contained, about heads that no test edits; nothing for other models.

    Raises:
        DataError: If it cannot be read, or holds no two tokens.
    """
    if source is None or (source == "auto" and not knows_world(lm.name)):
        return None
    if source == "auto":
        name, documents = "the pocket model's world, held-out sentences", world_sentences()
    else:
        from errata.data.corpus import load_corpus

        corpus = load_corpus(lm.name, source, TOKENS)  # a document has one token at least
        name, documents = corpus.name, iter(corpus.texts)
    rows: list[Row] = []
    left = TOKENS
    for ids in _pieces(lm, documents):
        ids = ids[: left + 1]
        rows.append(Row(ids[:-1], tuple(range(len(ids) - 1)), ids[1:], len(ids)))
        left -= len(ids) - 1
        if left <= 0:
            break
    if not rows:
        raise DataError(f"{name} holds no text of two tokens", "Give a longer one.")
    digest = hashlib.sha256(json.dumps([row.ids for row in rows]).encode()).hexdigest()
    return Text(name, tuple(rows), digest[:16])


def _pieces(lm: LM, documents: Iterable[str]) -> Iterator[tuple[int, ...]]:
    window = min(WINDOW, lm.max_length or WINDOW)
    for document in documents:
        ids = tuple(lm.tokenizer(document, verbose=False)["input_ids"])
        for start, end in pairwise([*range(0, len(ids), window), len(ids)]):
            if end - start > 1:
                yield ids[start:end]


def perplexity(scorer: Scorer, text: Text, patch: Patch | None) -> float | None:
    """Return `exp` of the mean negative log-likelihood per token; None if it is not finite."""
    scores = scorer.score(text.rows, [patch] * len(text.rows))
    total = math.fsum(x for score in scores for x in score.logprobs)
    try:
        found = math.exp(-total / text.tokens)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None
