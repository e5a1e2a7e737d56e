"""Perturbed forms of an edit's subject and prompt, for robustness tests and for training on them.

The robustness suite asks an edited model about a fact in other forms, and REP trains on some of
those forms. Both draw them here, with the same seed from the same strings, so that what counts as
seen and as unseen is the same on both sides:

* [`halves`][errata.locate.perturb.halves]: the first half of a list (rounded up) is seen in
  training ("id"), the second is not ("od");
* [`subject_shuffles`][errata.locate.perturb.subject_shuffles]: permutations of subject tokens;
* [`long_contexts`][errata.locate.perturb.long_contexts]: stretches of ordinary text, some of which
  are held for training;
* random prefixes are [`errata.locate.contexts.sample_prefixes`][].

Source: Yan et al., "Keys to Robust Edits: from Theoretical Insights to Practical Advances", and
its released code (data of the tests and of the training).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any, TypeVar

from errata.errors import DataError
from errata.model.tokens import encode_row, find_subject

if TYPE_CHECKING:
    from errata.case import Edit, SubjectAt
    from errata.model.lm import LM

T = TypeVar("T")

SHUFFLES = 10
"""Most permutations of one subject."""

LONG_WORDS = 300
"""White-space words of a long context."""

LONG_HELD = 5
"""Long contexts per edit that are meant for training."""

_LISTED = 7  # tokens up to which all permutations are listed: 7! = 5,040


def halves(items: Sequence[T]) -> tuple[tuple[T, ...], tuple[T, ...]]:
    """Return the half that is seen in training and the half that is not; the first is not smaller.

    Args:
        items: In an order that both sides share.
    """
    middle = math.ceil(len(items) / 2)
    return tuple(items[:middle]), tuple(items[middle:])


def subject_pieces(lm: LM, subject: str) -> list[str]:
    """Return the subject as the texts of its tokens, each with the space in front of it.

    The subject is tokenised as it stands inside a sentence, behind a space. Tokens that are parts
    of one character stay together.
    """
    text = f" {subject.strip()}"
    encoded = lm.tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
    pieces: list[str] = []
    done = 0
    for start, end in encoded["offset_mapping"]:
        if end <= done or end <= start:
            continue  # a further byte of a character that is there already
        # Offsets may leave out the space in front of a word: it belongs to the word.
        start = done if not text[done:start].strip() else start
        pieces.append(text[start:end])
        done = end
    spaces = ""
    joined: list[str] = []
    for piece in pieces:  # a token that is only space goes with what follows it
        if piece.strip():
            joined.append(spaces + piece)
            spaces = ""
        else:
            spaces += piece
    return joined


def subject_shuffles(lm: LM, subject: str, limit: int = SHUFFLES, seed: int = 0) -> list[str]:
    """Return distinct random permutations of the subject's tokens, without the subject itself.

    Each token keeps the space in front of it and nothing else is put between tokens: of ` Young`
    and ` Zephyr` the only permutation is `Zephyr Young`. A subject of `n` tokens has at most
    `min(limit, n! - 1)`, and none if it is one token.

    Args:
        lm: Its tokenizer decides what a token is.
        subject: The subject.
        limit: Most permutations.
        seed: Seed; the result depends on it, the subject and the tokenizer alone.

    Source: REP's released evaluation, which samples `min(11, n!)` permutations and removes the
        original.
    """
    pieces = subject_pieces(lm, subject)
    if len(pieces) < 2 or limit < 1:
        return []
    rng = random.Random(f"shuffle/{seed}/{subject}")
    original = subject.strip()
    if len(pieces) <= _LISTED:
        there = dict.fromkeys("".join(order).strip() for order in permutations(pieces))
        there.pop(original, None)
        found = list(there)
        return rng.sample(found, min(limit, len(found)))
    chosen: dict[str, None] = {}
    for _ in range(100 * limit):  # tokens that repeat can leave fewer than `limit` permutations
        if len(chosen) == limit:
            break
        text = "".join(rng.sample(pieces, len(pieces))).strip()
        if text != original:
            chosen[text] = None
    return list(chosen)


def seen_subjects(lm: LM, edit: Edit, seed: int = 0) -> list[str]:
    """Return the forms of the subject that training may use, besides the subject itself.

    They are the edit's own `subject_rephrases` (whoever made the edit keeps the unseen half to
    itself) and the seen half of the shuffles.

    Args:
        lm: Its tokenizer.
        edit: The edit; without a subject it has no such forms.
        seed: Seed of the shuffles.
    """
    if edit.subject is None:
        return []
    shuffles, _ = halves(subject_shuffles(lm, edit.subject, seed=seed))
    return list(dict.fromkeys((*edit.subject_rephrases, *shuffles)))


def with_subject(prompt: str, subject: str, form: str, at: SubjectAt = "last") -> str:
    """Return the prompt with another form in place of its subject.

    Spliced rather than formatted, so braces are plain text. Where the subject begins the prompt
    with a capital letter, the form does so too.

    Raises:
        EditError: If the subject does not occur in the prompt.
    """
    start, end = find_subject(prompt, subject, at)
    if start == 0 and prompt[:1].isupper():
        form = form[:1].upper() + form[1:]
    return prompt[:start] + form + prompt[end:]


@dataclass(frozen=True)
class LongContexts:
    """Stretches of ordinary text to put in front of the prompt of one edit.

    Attributes:
        unseen: For the test alone.
        held: For training; the test asks them too, apart from the unseen one.
    """

    unseen: str
    held: tuple[str, ...]


def long_contexts(
    texts: Sequence[str],
    key: str,
    *,
    words: int = LONG_WORDS,
    held: int = LONG_HELD,
    seed: int = 0,
) -> LongContexts:
    """Draw the long contexts of one edit.

    Args:
        texts: Documents in order, for example those of [`errata.data.corpus.load_corpus`][].
        key: What they are drawn for: the prompt of the edit.
        words: White-space words of each.
        held: How many are meant for training.
        seed: Seed; the result depends on it, the key and the texts.

    Raises:
        DataError: If all texts together have fewer than `words` words.
    """
    found = long_texts(texts, held + 1, words=words, seed=seed, key=key)
    return LongContexts(found[0], tuple(found[1:]))


def long_texts(
    texts: Sequence[str], count: int, *, words: int = LONG_WORDS, seed: int = 0, key: str = ""
) -> list[str]:
    """Return stretches of `words` white-space words that start at a random text.

    A stretch goes on with the texts that follow (after the last one comes the first) until it is
    long enough; braces are left out, as in the published code.

    Args:
        texts: Documents in order.
        count: How many stretches.
        words: White-space words of each.
        seed: Seed.
        key: Draws other stretches for another key.

    Raises:
        DataError: If all texts together have fewer than `words` words.
    """
    rng = random.Random(f"long/{seed}/{key}")
    found: list[str] = []
    for _ in range(count):
        place = rng.randrange(len(texts)) if texts else 0
        taken: list[str] = []
        for step in range(len(texts)):
            if len(taken) >= words:
                break
            taken += strip_braces(texts[(place + step) % len(texts)]).split()
        if len(taken) < words:
            raise DataError(
                f"the texts for long contexts have {len(taken)} words; expected at least {words}",
                "Give more text, or ask for fewer words.",
            )
        found.append(" ".join(taken[:words]))
    return found


def fit_context(lm: LM, context: str, prompt: str, targets: Sequence[str] = (), **how: Any) -> str:
    """Return the last words of a context, as many as the model has room for before the prompt.

    Args:
        lm: Its tokenizer and number of positions.
        context: Text to put in front of the prompt.
        prompt: The prompt; one space stands between.
        targets: Answers that have to fit behind it, each by itself.
        how: How it is asked, as `errata.model.tokens.encode_row` takes it.

    Returns:
        The whole context if it fits; empty if not one word does.
    """
    words = context.split(" ")

    def fits(count: int) -> bool:
        prefix = "".join(f"{word} " for word in words[len(words) - count :])
        rows = [
            encode_row(lm.tokenizer, prompt, target, prefix=prefix, **how)
            for target in targets or [None]
        ]
        return max(len(row.ids) for row in rows) <= (lm.max_length or math.inf)

    if fits(len(words)):
        return context
    low, high = 0, len(words)  # none fits always, all do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return " ".join(words[len(words) - low :])


def strip_braces(text: str) -> str:
    """Return the text without braces, which published code takes for the subject's place."""
    return text.replace("{", "").replace("}", "")
