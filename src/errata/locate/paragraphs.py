"""Paragraphs of ordinary text, which editors with a memory read beside the edits."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from errata.errors import DataError
from errata.locate.own_text import text_for

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.model.tokens import Row

HEADING = re.compile(r"^\s*=|=\s*$")
"""A line of wikitext that is no text."""

SPARE = 4
"""Documents asked for per paragraph wanted: of wikitext's lines many are headings or short."""


@dataclass(frozen=True)
class Paragraphs:
    """Which paragraphs of ordinary text are taken.

    Attributes:
        source: A name that [`text_for`][errata.locate.own_text.text_for] knows.
        count: Paragraphs.
        words: A paragraph has more words than this.
        length: Tokens of a paragraph at most.
        seed: Seed of their order.
    """

    source: str
    count: int
    words: int
    length: int
    seed: int

    def rows(self, lm: LM) -> list[Row]:
        """Return the paragraphs, tokenised, as many as wanted or as there are.

        Raises:
            DataError: If the text cannot be read, or holds no paragraph that is long enough.
        """
        return lm.once(("paragraphs", self), lambda: self._read(lm))

    def _read(self, lm: LM) -> list[Row]:
        corpus = text_for(lm, self.source, SPARE * self.count)
        texts = [
            text
            for text in corpus.texts
            if len(text.split()) > self.words and not HEADING.search(text)
        ]
        if not texts:
            raise DataError(
                f"{corpus.name} holds no paragraph of more than {self.words} words",
                "Take shorter ones: --set memory_words=0, or another text: --set memory_text=FILE",
            )
        random.Random(self.seed).shuffle(texts)
        return lm.text_rows(texts[: self.count], self.length)
