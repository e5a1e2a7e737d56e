"""Long answers, as the model writes them itself, compared with the texts that were wanted.

`--protocol long` asks every edit and every generality question once more, greedily, until the model
ends its text, and scores what it says as UnKE and AnyEdit do (Deng et al., arXiv:2405.15349):

* `rouge1`, `rouge2`, `rougeL`: recall of words, of pairs of words, and of the longest common
  subsequence of words: `matches / words of the wanted text`;
* `bleu` over words, `bleu_char` over the characters of both texts: the published tables hand NLTK
  strings, which it takes for lists of characters, so that their BLEU is the latter;
* `similarity`, if an encoder is named: the cosine of sentence embeddings, which the published
  tables call BERTScore.

Words are runs of letters and digits in lower case, for BLEU what stands between spaces, as given.
A text that says more than was wanted loses nothing in recall.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from errata.model.lm import LM

TOKENS = 512
"""Most tokens of a long answer, as published."""

METRICS = ("rouge1", "rouge2", "rougeL", "bleu", "bleu_char", "similarity")
TITLES = {
    "rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "bleu": "BLEU",
    "bleu_char": "BLEU of characters", "similarity": "similarity",
}  # fmt: skip

KINDS = ("reliability", "generality")
"""Kinds of questions that are scored so."""

NAMES = tuple(f"long.{metric}.{kind}" for metric in METRICS for kind in KINDS)
"""The scores by kind of question, as gates and reports call them."""

LongScores = Callable[[str, str], dict[str, float]]
"""From the wanted text and what was said to scores by name."""

ORDER = 4  # of BLEU


def words(text: str) -> list[str]:
    """Return the words of a text as ROUGE compares them: letters and digits, lower case."""
    return re.findall(r"[^\W_]+", text.lower())


def rouge(wanted: Sequence[str], said: Sequence[str], n: int) -> float:
    """Return the share of the wanted text's n-grams that are said, each as often as it is there."""
    own = _grams(wanted, n)
    return (own & _grams(said, n)).total() / own.total() if own else 0.0


def rouge_l(wanted: Sequence[str], said: Sequence[str]) -> float:
    """Return the length of the longest common subsequence, as a share of the wanted text."""
    if not wanted:
        return 0.0
    above = [0] * (len(said) + 1)
    for word in wanted:
        row = [0]
        for j, other in enumerate(said):
            row.append(above[j] + 1 if word == other else max(above[j + 1], row[j]))
        above = row
    return above[-1] / len(wanted)


def bleu(wanted: Sequence[str], said: Sequence[str]) -> float:
    """Return BLEU-4 against one reference, without smoothing: 0 if no run of four is right.

    `exp(min(0, 1 - r/c)) (p1 p2 p3 p4)^(1/4)` with clipped precisions `p_n`, `r` and `c` the
    lengths of the wanted and of the said text (Papineni et al. 2002).
    """
    logs = []
    for n in range(1, ORDER + 1):
        own = _grams(said, n)
        right = (own & _grams(wanted, n)).total()
        if not right:
            return 0.0
        logs.append(math.log(right / own.total()))
    return math.exp(min(0.0, 1 - len(wanted) / len(said)) + math.fsum(logs) / ORDER)


def overlaps(wanted: str, said: str) -> dict[str, float]:
    """Return all scores that need no model."""
    one, two = words(wanted), words(said)
    return {
        "rouge1": rouge(one, two, 1),
        "rouge2": rouge(one, two, 2),
        "rougeL": rouge_l(one, two),
        "bleu": bleu(wanted.split(), said.split()),
        "bleu_char": bleu(list(wanted), list(said)),
    }


def long_scores(lm: LM, encoder: str | None) -> LongScores:
    """Return what scores long answers.

    Args:
        lm: The unedited model.
        encoder: Sentence encoder for the similarity, as `get_encoder` takes it; None: there is no
            similarity.

    Raises:
        ModelError: If the encoder cannot be loaded.
    """
    if encoder is None:
        return overlaps
    from errata.editors.ike.encoder import get_encoder

    embed = get_encoder(lm, encoder)

    def score(wanted: str, said: str) -> dict[str, float]:
        found = overlaps(wanted, said)
        one, two = embed([wanted, said or " "]).double()
        return {**found, "similarity": float(one @ two) if said.strip() else 0.0}

    return score


def _grams(items: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(items[i : i + n]) for i in range(len(items) - n + 1))
