"""How a subject has to be written, judging by what the prompt holds."""

from __future__ import annotations

import difflib
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Sequence

Fold = Callable[[str], str]

_APOSTROPHES = "'’‘ʼ`´′＇"
_QUOTES = '"“”„«»″＂'
_DASHES = "-‐‑‒–—−－"
_INVISIBLE = "\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
_FOLDED = str.maketrans(
    {
        **dict.fromkeys(_APOSTROPHES, "'"),
        **dict.fromkeys(_QUOTES, '"'),
        **dict.fromkeys(_DASHES, "-"),
    }
)
_WITHOUT = str.maketrans(dict.fromkeys(_INVISIBLE))


def _spaced(text: str) -> str:
    return re.sub(r"\s+", " ", text)


def _cased(text: str) -> str:
    """Fold case; the Turkish letters i too, which differ by their dots alone."""
    return text.replace("İ", "i").replace("ı", "i").replace("I", "i").casefold()


def _width(text: str) -> str:
    """Return full-width and half-width letters in their ordinary width."""
    pairs = [(c, unicodedata.normalize("NFKC", c)) for c in text]
    kinds = ("<wide>", "<narrow>")
    text = "".join(
        plain if unicodedata.decomposition(char).startswith(kinds) else char
        for char, plain in pairs
    )
    return _composed(text)  # half-width letters and their marks are two characters


def _bare(text: str) -> str:
    """Return letters without accents."""
    parts = unicodedata.normalize("NFD", text)
    return "".join(char for char in parts if not unicodedata.combining(char))


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


# What two texts that look alike may differ by, the least first: its name, and what takes it away.
_DIFFERENCES: tuple[tuple[str, Fold], ...] = (
    ("Unicode form", _composed),
    ("white space", _spaced),
    ("invisible characters", lambda text: text.translate(_WITHOUT)),
    ("quotation marks, apostrophes or dashes", lambda text: text.translate(_FOLDED)),
    ("width of letters", _width),
    ("upper and lower case", _cased),
    ("accents", _bare),
)


def nearest(prompt: str, subject: str) -> str:
    """Say by what a subject differs from what the prompt holds, and offer the prompt's spelling."""
    found = _alike(prompt, subject)
    if found is not None:
        there, differences = found
        if differences == ["Unicode form"]:
            names = {"NFC": "composed (NFC)", "NFD": "decomposed (NFD)"}
            own, other = (
                names["NFC" if unicodedata.is_normalized("NFC", text) else "NFD"]
                for text in (subject, there)
            )
            if own != other:
                return (
                    "The prompt holds the same letters in another Unicode form: the subject is "
                    f"{own}, the prompt {other}. Copy the subject from the prompt."
                )
        return f"Did you mean {_shown(there)}? It differs in {_listed(differences)}."
    close = _close(prompt, subject)
    if close is not None:
        return f"Did you mean {_shown(close)}?"
    return "Write the subject exactly as it stands in the prompt."


def _alike(prompt: str, subject: str) -> tuple[str, list[str]] | None:
    """Return the part of the prompt that looks like the subject, and by what the two differ."""
    for count in range(1, len(_DIFFERENCES) + 1):
        part = _part(prompt, subject, [fold for _, fold in _DIFFERENCES[:count]])
        if part is not None:
            return part, _needed(part, subject, count)
    return None


def _folded(text: str, folds: Sequence[Fold]) -> str:
    for fold in folds:
        text = fold(text)
    return text.strip()


def _part(prompt: str, subject: str, folds: Sequence[Fold]) -> str | None:
    """Return the shortest part of the prompt that is the subject once both are folded.

    In scripts with spaces not a part of a longer word.
    """
    wanted = _folded(subject, folds)
    if not wanted or wanted not in _folded(prompt, folds):
        return None
    # cut from the right while it is still there, then from the left: what remains is the part
    size = len(prompt)
    end = bisect_left(range(size), True, key=lambda i: wanted in _folded(prompt[:i], folds))
    while end < size and unicodedata.combining(prompt[end]):
        end += 1
    start = bisect_left(range(end), True, key=lambda i: wanted not in _folded(prompt[i:end], folds))
    part = prompt[max(start - 1, 0) : end]
    inside = prompt[: max(start - 1, 0)][-1:].isalnum() or prompt[end : end + 1].isalnum()
    return None if inside and part.isascii() else part


def _needed(part: str, subject: str, count: int) -> list[str]:
    """Return the differences without whose folding the two would not be equal."""
    known = _DIFFERENCES[:count]
    needed = []
    for name, _ in known:
        others = [fold for other, fold in known if other != name]
        if _folded(part, others) != _folded(subject, others):
            needed.append(name)
    return needed or [known[-1][0]]


def _close(prompt: str, subject: str) -> str | None:
    """Return the words of the prompt that are spelled most alike."""
    folds = [fold for _, fold in _DIFFERENCES]
    count = len(subject.split())
    words = re.findall(r"\w+(?:['’.-]\w+)*", prompt)
    runs = [" ".join(words[i : i + count]) for i in range(len(words) - count + 1)]
    folded = {_folded(run, folds): run for run in reversed(runs)}
    close = difflib.get_close_matches(_folded(subject, folds), folded, n=1, cutoff=0.6)
    return folded[close[0]] if close else None


def _shown(text: str) -> str:
    """Return text in quotation marks, with names for what cannot be seen."""
    odd = [c for c in text if c in _INVISIBLE or (c.isspace() and c != " ")]
    shown = repr(text) if odd else f"{text!r}"
    names = dict.fromkeys(unicodedata.name(c, f"U+{ord(c):04X}").lower() for c in odd)
    return f"{shown} (with {', '.join(names)})" if names else shown


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
