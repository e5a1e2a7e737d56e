"""Fluency: how much sampled text repeats itself (GE of the CounterFact protocol).

A continuation of each generation prompt is sampled from the five most probable tokens, 100 tokens
in all. Its score is `(2/3 H2 + 4/3 H3) / 2`, with `H_n` the entropy, in bits, of the frequencies
of its n-grams of words (Meng et al. 2022, https://arxiv.org/abs/2202.05262; tables show it times
100). A text that says one word again and again has 0.

Words are found by a rule of our own in place of NLTK's tokeniser, which needs a download: runs of
letters and digits, with hyphens, points and commas inside (`well-known`, `3.5`, `1,000`); English
contractions apart (`do` `n't`, `Anna` `'s`); every other visible character by itself.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from errata.model.generating import Growing, parts_of

if TYPE_CHECKING:
    from errata.case import Case
    from errata.model.lm import LM
    from errata.model.tokens import Row

LENGTH = 100
"""Tokens of a sampled text, prompt included; fewer where the model's context is shorter."""

TOP_K = 5

WEIGHTS = {2: 2 / 3, 3: 4 / 3}

_WORDS = re.compile(
    r"\w+(?=n['’]t\b)|n['’]t\b|['’](?:s|re|ve|ll|d|m)\b|\w+(?:[-.,]\w+)*|\S", re.IGNORECASE
)


def words(text: str) -> list[str]:
    """Return the words and marks of a text."""
    return _WORDS.findall(text)


def entropy(tokens: Sequence[str], n: int) -> float:
    """Return the entropy, in bits, of the frequencies of n-grams; 0 if there is none."""
    counts = Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))
    total = counts.total()
    return abs(math.fsum(-k / total * math.log2(k / total) for k in counts.values()))


def fluency(text: str) -> float:
    """Return `(2/3 H2 + 4/3 H3) / 2` of a text, in bits."""
    tokens = words(text)
    return math.fsum(w * entropy(tokens, n) for n, w in WEIGHTS.items()) / len(WEIGHTS)


def prompts_of(case: Case) -> tuple[str, ...]:
    """Return the generation prompts of a case; without any, the prompts of its edits."""
    found = tuple(case.meta.get("generation_prompts") or ())
    return found or tuple(edit.prompt for edit in case.edits)


@torch.no_grad()
def sample(
    lm: LM,
    prompts: Sequence[str | Row],
    seeds: Sequence[str],
    *,
    length: int = LENGTH,
    top_k: int = TOP_K,
) -> list[str]:
    """Continue each prompt by sampling from its most probable tokens, and return the whole texts.

    Every text has a random generator of its own, so it does not depend on what is sampled beside
    it. Texts go on behind the end-of-sequence token, as in the published code.

    Args:
        lm: The model.
        prompts: Where the texts begin: texts, or rows, which may name patches of the active stack.
        seeds: Seed of each text.
        length: Tokens of a text, prompt included; at most the model's context. A longer prompt is
            returned as it is.
        top_k: Tokens to choose from, by their renormalised probabilities.
    """
    length = min(length, lm.max_length or length)
    rows = lm.rows(prompts)
    draws = [random.Random(seed) for seed in seeds]
    texts = [list(row.ids) for row in rows]
    wanted = [i for i, ids in enumerate(texts) if len(ids) < length]
    limits = [length - len(texts[i]) for i in wanted]
    for part in parts_of(lm, [rows[i] for i in wanted], limits):
        numbers = [wanted[j] for j in part]
        growing = Growing(lm, [rows[i] for i in numbers], max(limits[j] for j in part))
        while growing.live:
            values, tokens = growing.logits().double().softmax(-1).topk(top_k, dim=-1)
            sums = values.cumsum(-1).cpu()
            chosen, done = [], []
            for j, bounds, best in zip(growing.live, sums, tokens.tolist(), strict=True):
                draw = draws[numbers[j]].random() * bounds[-1]
                chosen.append(best[min(int(torch.searchsorted(bounds, draw)), top_k - 1)])
                done.append(len(growing.ids[j]) + 1 >= length)
            growing.extend(chosen, done)
        for j, i in enumerate(numbers):
            texts[i] = growing.ids[j]
    return [lm.text(tokens) for tokens in texts]
