"""Turns relations, facts and chains of facts into English prompts.

Known templates make up the pretraining text; held-out templates never occur in it and measure
whether a fact is known rather than a sentence memorised. Most templates leave a few words between
the subject and the answer. A model whose first blocks see only a short window must then recall
facts at the subject's own tokens, as large models do.
"""

from __future__ import annotations

from errata.world.schema import Rel

ORDINALS = ("first", "second", "third")

YES_NO = " The answer is (Yes/No):"
"""What follows a same-entity question before its answer."""

# Openings, cores and endings are combined so that a model learns what each of them means; the
# held-out templates are combinations that the text does not have, of words that it has.
_KNOWN = (
    "the {p} of {s} is",
    "the {p} of {s} is the {n} named",
    "the {p} of {s} is known to be",
    "it is well known that the {p} of {s} is the {n} called",
    "most experts believe that the {p} of {s} is",
    "one should say that the {p} of {s} is the {n} named",
    "question: what is the {p} of {s}? Answer:",
    "tell me the {p} of {s}. Answer:",
    "{s} has as the {p} the {n} called",
    "the records show that {s} has as the {p}",
    "everybody agrees that {s} has as the {p} the {n} named",
    "as the {p}, the {h} {s} has the {n} called",
    "for the {h} {s}, the {p} is said to be",
    "in the case of {s}, the {p} is",
    "when it comes to the {h} {s}, the {p} is the {n} named",
    "speaking of {s}, most experts believe that the {p} is the {n} called",
    "everybody agrees that for {s} the {p} is said to be",
    "ask anyone about {s}: the {p} is the {n} called",
    "asked about {s} and the {p}, people answer",
    "about {s} the records show that the {p} is known to be",
)
_HELD = (
    "everybody agrees that the {p} of {s} is the {n} called",
    "when it comes to {s}, one should say that the {p} is the {n} named",
    "speaking of the {h} {s}, the {p} is the {n} named",
)
_KNOWN_OPENING = "it is well known that "
_HELD_OPENING = "most experts believe that "  # of a relation's own wording
_REVERSE_KNOWN = (
    "the {h} whose {p} is {s} is the one called",
    "{s} is the {p} of the {h} named",
    "question: which {h} has {s} as the {p}? Answer:",
    "it is well known that {s} is the {p} of the {h} called",
)
_REVERSE_HELD = ("everybody agrees that {s} is the {p} of the {h} named",)
_ALIAS_KNOWN = (
    "the {p} of {s}, by another name, is",
    "question: what is the other name of the {p} of {s}? Answer:",
)
_ALIAS_HELD = ("everybody agrees that the {p} of {s}, by another name, is",)
_NESTED_KNOWN = (
    "the {p} of {x} is the {n} named",
    "question: what is the {p} of {x}? Answer:",
    "the {p} of {x} is",
    "for {x}, the {p} is said to be",
    "as the {p}, {x} has the {n} called",
    "most experts believe that the {p} of {x} is the {n} named",
)
_NESTED_HELD = ("everybody agrees that the {p} of {x} is the {n} called",)
_NESTED_REVERSE = ("the {h} whose {p} is {x} is the one called",)
NAMING = ("{a} is another name for the {h} called", "the {h} known as {a} is more often called")
_SAME = ("is {x} the same as {y}?", "are {x} and {y} one and the same?")
_DIFFERENT = ("are {x} and {y} different?", "is {x} something else than {y}?")


def sentence(text: str) -> str:
    """Returns the text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


def phrase(relation: Rel, order: int = 0) -> str:
    """Returns the noun phrase of a relation, with an ordinal where it has several values."""
    return f"{ORDINALS[order]} {relation.phrase}" if relation.values > 1 else relation.phrase


def _fill(templates: tuple[str, ...], relation: Rel, nouns: dict[str, str]) -> tuple[str, ...]:
    """Fills in everything but the subject ``{s}`` and the phrase ``{p}``."""
    parts = {"h": nouns[relation.head], "n": nouns[relation.tail]}
    return tuple(t.format(s="{s}", x="{x}", p="{p}", o="{o}", **parts) for t in templates)


def direct(relation: Rel, nouns: dict[str, str], held: bool) -> tuple[str, ...]:
    """Returns the direct templates of a relation, with ``{s}``, ``{p}`` and ``{o}`` left open."""
    if held:
        own = (_HELD_OPENING + relation.held,)
    else:
        own = (*relation.known, relation.held, _KNOWN_OPENING + relation.held)
    return _fill((_HELD if held else _KNOWN) + own, relation, nouns)


def reverse(relation: Rel, nouns: dict[str, str], held: bool) -> tuple[str, ...]:
    """Returns templates that ask for the head, given the tail as ``{s}``."""
    return _fill(_REVERSE_HELD if held else _REVERSE_KNOWN, relation, nouns)


def other_name(relation: Rel, nouns: dict[str, str], held: bool) -> tuple[str, ...]:
    """Returns templates that ask for the alias of the tail."""
    return _fill(_ALIAS_HELD if held else _ALIAS_KNOWN, relation, nouns)


def nested(relation: Rel, nouns: dict[str, str], held: bool, back: bool) -> tuple[str, ...]:
    """Returns templates whose subject is a noun phrase ``{x}`` ("the author of Dune")."""
    if back:
        return _fill(_NESTED_REVERSE, relation, nouns)
    return _fill(_NESTED_HELD if held else _NESTED_KNOWN, relation, nouns)


def same(different: bool) -> tuple[str, ...]:
    """Returns yes/no templates that compare ``{x}`` with ``{y}``."""
    return _DIFFERENT if different else _SAME


def noun_phrase(relation: Rel, nouns: dict[str, str], subject: str, order: int, back: bool) -> str:
    """Returns a noun phrase for the end of one step ("the author of Dune").

    Args:
        relation: The relation that is followed.
        nouns: Noun of every kind of entity.
        subject: Name of the entity the step starts from, or the noun phrase of an earlier step.
        order: Which value of a 1-N relation is meant, from 0.
        back: Whether the relation is followed from tail to head.
    """
    if back:
        return f"the {nouns[relation.head]} whose {phrase(relation, order)} is {subject}"
    return f"the {phrase(relation, order)} of {subject}"
