"""How an answer continues a prompt: what stands between the two.

The one place that decides it. `auto` asks what a writer would put there: a space between words of
scripts that use spaces, nothing in Chinese or Thai, nothing behind a line break, an opening quote
or the header of a chat, nothing before a full stop. A text instead of `auto` is put there as it is.
Published data sets say `" "`, the rule of the code they were published with.
"""

from __future__ import annotations

import re
import unicodedata

AUTO = "auto"
PUBLISHED = " "
"""A space between prompt and target, unless the target begins with white space."""

_SPACELESS = (
    (0x0E00, 0x0FFF),  # Thai, Lao, Tibetan
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19FF),  # Tai Le, New Tai Lue, Khmer symbols
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x1B00, 0x1B7F),  # Balinese
    (0x2E80, 0x312F),  # radicals, CJK punctuation, Hiragana, Katakana, Bopomofo
    (0x3190, 0x4DBF),  # Kanbun … CJK extension A; not the Korean letters before
    (0x4E00, 0xA4CF),  # CJK, Yi
    (0xA980, 0xA9FF),  # Javanese, Burmese extension B
    (0xAA60, 0xAADF),  # Burmese extension A, Tai Viet
    (0xF900, 0xFAFF),  # CJK compatibility
    (0xFE30, 0xFE4F),
    (0xFF00, 0xFF9F),  # full and half width; not the Korean letters behind
    (0x1AFF0, 0x1B16F),
    (0x20000, 0x3FFFF),
)
_CLITIC = re.compile(r"['’](?:s|t|re|ve|d|ll|m)\b", re.IGNORECASE)
_HEADER = re.compile(r"(?:<[^<>\s]+>|\[/?[A-Z_]+\])$")
"""A tag at the end: `<|assistant|>`, `<b>`, `[/INST]`."""
_MARKER = re.compile(r"(?:^|[\s(\[{])(?:['`]|\*{1,3}|_{1,2})$")
"""An opening quote or mark of emphasis at the end: white space stands before it, a word follows."""
_ATTACHED = frozenset("°™®%‰")
_OPENS_WORD = frozenset("#@&*\"'`¿¡§†")
"""Other punctuation (Po) that a word follows, so that a space goes before it."""


def continued(prompt: str, target: str, joiner: str = AUTO) -> tuple[str, str]:
    """Return the text up to the answer, and the answer as it continues it.

    Together they are the text that a model reads. By `auto` one space at the end of the prompt
    goes to the answer, where a tokenizer has it: `"It is "` and `"Rome"` are `"It is"`, `" Rome"`.
    An answer that brings white space is put behind the prompt as it is.
    """
    if joiner != AUTO:
        between = "" if joiner.isspace() and target[:1].isspace() else joiner
        return prompt, between + target
    if target[0].isspace():
        return prompt, target
    text = asked(prompt)
    if text != prompt:
        return text, target if _ends_spaceless(text) and _is_spaceless(target[0]) else " " + target
    return prompt, _between(prompt, target) + target


def join(prompt: str, target: str, joiner: str = AUTO) -> str:
    """Return prompt and answer as one text."""
    return "".join(continued(prompt, target, joiner))


def asked(prompt: str, joiner: str = AUTO) -> str:
    """Return a prompt as it is put without an answer: by `auto` without a space at its end.

    A model that reads that space as a token by itself cannot begin a word with it.
    """
    return prompt[:-1] if joiner == AUTO and prompt.endswith(" ") and prompt.strip() else prompt


def _between(prompt: str, target: str) -> str:
    """Return what stands between a prompt that does not end in a space and a target."""
    if not prompt or prompt[-1].isspace():
        return ""
    if _attaches(target) or _opens(prompt):
        return ""
    return "" if _ends_spaceless(prompt) or _is_spaceless(target[0]) else " "


def _is_spaceless(char: str) -> bool:
    code = ord(char)
    return any(first <= code <= last for first, last in _SPACELESS)


def _ends_spaceless(text: str) -> bool:
    """Say whether the last letter belongs to a script without spaces between words."""
    for char in reversed(text):
        if _is_spaceless(char):
            return True
        if char.isalpha():
            return False
    return False


def _attaches(target: str) -> bool:
    """Say whether a target begins with what follows a word without a space: `,` `)` `'s` `%`."""
    char, kind = target[0], unicodedata.category(target[0])
    if char in _ATTACHED or _CLITIC.match(target):
        return True
    if kind == "Pd":  # a hyphen within a word; not a minus or a dash between words
        return target[1:2].isalpha()
    if kind == "Po":
        return char not in _OPENS_WORD
    return kind in ("Pe", "Pf", "Pc", "Mn", "Mc", "Me")


def _opens(prompt: str) -> bool:
    """Say whether a prompt ends in what a word follows without a space: `(` `“` `$` a tag."""
    char, kind = prompt[-1], unicodedata.category(prompt[-1])
    if kind in ("Ps", "Pi") or char in "¿¡":
        return True
    if char == '"':
        return prompt.count('"') % 2 == 1
    before = prompt[-2:-1]
    if kind in ("Pd", "Sc") or char in "#@/\\":
        # `Franco-`, `and/`: within a word; `$`, `#`: in front of one
        return before.isalnum() if kind == "Pd" or char in "/\\" else not before.isalnum()
    return bool(_HEADER.search(prompt) or _MARKER.search(prompt))
