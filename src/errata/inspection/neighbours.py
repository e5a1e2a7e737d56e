"""Neighbours of an edit: other subjects of its kind, put into its own prompt.

The kind is that of the list which holds the subject; else the one that the words of the prompt
speak of ("mother tongue": people). Where neither says anything, what the model itself would put in
the subject's place is asked about, and subjects of all kinds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from errata.case import Edit, how_asked

if TYPE_CHECKING:
    from errata.model.lm import LM

T = TypeVar("T")

EACH = 12
"""Neighbours of one edit."""

MOST = 96
"""Neighbours of all edits of a call."""

TOP = 40
"""Most probable tokens among which the model's own subjects are looked for."""

SUBJECTS = Path(__file__).parent / "subjects.txt"

CUES: tuple[tuple[str, str], ...] = (
    ("work", r"author of|directed|director of|written by|original language|premiered|genre|plot of"
             r"|protagonist|main character|published in|broadcast|aired|debuted on|first shown"),
    ("person", r"mother tongue|native language|native tongue|was born|died in|passed away|wife"
               r"|husband|married|spouse|father of|mother of|son of|daughter of|profession"
               r"|occupation|works as|citizen|religion of|position of|plays the|playing the"
               r"|field of|studied|nationality|speaks|employed by|instrument|is known for"),
    ("company", r"\bCEO\b|headquarter|founded|founder|subsidiary|shares of|employees of|owned by"
                r"|chief executive"),
    ("product", r"produced by|developed by|created by|made by|manufactured|maker of|product of"
                r"|developer of|released by"),
    ("language", r"language family|spoken in|dialect|grammar"),
    ("river", r"flows|tributary|mouth of"),
    ("team", r"coach of|plays in the league|stadium|goalkeeper|home ground"),
    ("element", r"chemical symbol|atomic|melting point"),
    ("country", r"capital|president of|prime minister|currency|official language|population of"
                r"|flag of|continent|national|anthem|seat of government"),
    ("city", r"mayor|twin city|airport|metro|skyline"),
    ("landmark", r"located|situated|stands in|can be found|is found in|built in|visited|is in"),
)  # fmt: skip
"""What a prompt speaks of, in the order in which it is looked for."""


@dataclass(frozen=True)
class Asked:
    """A question about a neighbour.

    Attributes:
        prompt: The question.
        subject: Who it is about.
        like: The edit whose neighbour it is; it says how it is asked.
    """

    prompt: str
    subject: str
    like: Edit | None = None

    @property
    def question(self) -> str | Edit:
        """What is asked: as the edit is, in the chat or as plain text."""
        if self.like is None:
            return self.prompt
        return Edit(self.prompt, self.like.target, **how_asked(self.like))


@cache
def kinds() -> Mapping[str, tuple[str, ...]]:
    """Return the shipped subjects by kind."""
    found = {}
    for line in SUBJECTS.read_text(encoding="utf-8").splitlines():
        kind, colon, names = line.partition(":")
        if colon and not line.startswith("#"):
            found[kind] = tuple(name.strip() for name in names.split("|"))
    return found


def kind_of(subject: str, prompt: str) -> str | None:
    """Return what kind of thing a subject is; None if nothing tells.

    Args:
        subject: The subject.
        prompt: The prompt it stands in.
    """
    wanted = _bare(subject)
    for kind, names in kinds().items():
        if any(_bare(name) == wanted for name in names):
            return kind
    rest = prompt.replace(subject, " ")
    for kind, cue in CUES:
        if re.search(cue, rest, re.IGNORECASE):
            return kind
    return None


def neighbours_of(lm: LM, edits: Sequence[Edit], avoid: Iterable[Edit] = ()) -> list[Asked]:
    """Return questions about other subjects of the same relations, each once.

    Of many edits some, evenly spread, are asked about: MOST questions in all.

    Args:
        lm: The unedited model, asked where the kind of a subject is not known.
        edits: The edits.
        avoid: More edits, whose questions are no neighbours.
    """
    named = [(edit, subject) for edit in edits if (subject := subject_of(edit)) is not None]
    named = _spread(named, MOST)
    each = max(1, min(EACH, MOST // max(1, len(named))))
    taken = {edit.prompt.rstrip() for edit in chain(edits, avoid)}
    found: dict[str, Asked] = {}
    for edit, subject in named:
        own = 0
        for name in _others(lm, edit.prompt, subject):
            prompt = _replaced(edit.prompt, subject, name)
            if own == each:
                break
            if prompt in taken or _bare(name) == _bare(subject):
                continue
            own += prompt not in found
            found.setdefault(prompt, Asked(prompt, name, edit))
    return list(found.values())


def bare_subjects(edits: Sequence[Edit]) -> list[Asked]:
    """Return the subjects of some edits as questions: nothing but the name."""
    names = dict.fromkeys(subject for edit in edits if (subject := subject_of(edit)) is not None)
    return [Asked(name, name) for name in _spread(list(names), MOST)]


def subject_of(edit: Edit) -> str | None:
    """Return the subject of an edit; where none is given, a known one that its prompt holds."""
    if edit.subject is not None:
        return edit.subject.strip()
    held = [
        name
        for names in kinds().values()
        for name in names
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", edit.prompt)
    ]
    return max(held, key=len, default=None)


def _others(lm: LM, prompt: str, subject: str) -> Iterable[str]:
    kind = kind_of(subject, prompt)
    if kind is not None:
        return _fitting(kinds()[kind], subject)
    own = _models_own(lm, prompt, subject)
    mixed = (name for turn in zip_longest(*kinds().values()) for name in turn if name)
    return dict.fromkeys(chain(own, mixed))


def _fitting(names: Sequence[str], subject: str) -> list[str]:
    """Return names with an article if the subject has one, without one if it has none, first."""

    def article(name: str) -> bool:
        return name.lower().startswith("the ")

    return sorted(names, key=lambda name: article(name) != article(subject))


def _models_own(lm: LM, prompt: str, subject: str) -> list[str]:
    """Return names that the model would put where the subject stands, by their first token."""
    front = prompt[: prompt.find(subject)].rstrip() if subject in prompt else ""
    if not front:
        return []
    (words,) = lm.top([front], TOP)
    return [w.strip() for w, _ in words if w[:1].isspace() and re.fullmatch(r"\s[A-Z]\w{3,}", w)]


def _replaced(prompt: str, subject: str, name: str) -> str:
    """Put another subject where the subject stands, at every place; no space is left at the end."""
    pattern = rf"(?<!\w){re.escape(subject)}(?!\w)"
    text, count = re.subn(pattern, lambda _: name, prompt)
    text = (text if count else prompt.replace(subject, name)).rstrip()
    return text[:1].upper() + text[1:] if prompt[:1].isupper() else text


def _bare(name: str) -> str:
    return name.casefold().removeprefix("the ").strip()


def _spread(items: Sequence[T], most: int) -> list[T]:
    if len(items) <= most:
        return list(items)
    return [items[i * (len(items) - 1) // (most - 1)] for i in range(most)]
