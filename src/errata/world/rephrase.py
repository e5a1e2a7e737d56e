"""Other ways to ask for a fact of the built-in world, all in words that its text has.

Names of a subject are its aliases and descriptions by its kind ("the country called France"). A
description by another fact ("the country whose capital is Paris") is left out: that would be a
two-hop question.
"""

from __future__ import annotations

import random

from errata.errors import DataError
from errata.world import statements as text
from errata.world.world import Entity, Fact, World

_BY_LABEL = ("the {h} called {s}", "{s}, the {h},", "the {h} {s}", "the {h} named {s}")
_BY_ALIAS = ("{s}", "the {h} called {s}", "the {h} {s}", "{s}, the {h},")


def fact_of(world: World, record: str, subject: str) -> Fact:
    """Return the fact that a record of the world's benchmark edits.

    Args:
        world: The world.
        record: Name of the record: the number of the fact, a hyphen, the number of the variant.
        subject: The subject of the edit, as a check.

    Raises:
        DataError: If the record is not one of this world.
    """
    number = record.rpartition("-")[0].rpartition("-")[2]
    if number.isdecimal() and int(number) < len(world.facts):
        fact = world.facts[int(number)]
        if world.entities[fact.head].label.lower() == subject.lower():
            return fact
    raise DataError(
        f"record {record!r} about {subject!r} is not one of the world of scale {world.scale},"
        f" seed {world.seed}",
        "Name the world that the records were made from: --data-set scale=… --data-set seed=…",
    )


def subject_forms(entity: Entity, before: str = "") -> tuple[str, ...]:
    """Return other names of an entity, those by its alias and those by its label in turn.

    Args:
        entity: The entity.
        before: What stands before the name. Words that end it and would begin the name as well are
            left out of the name: "called France" behind "the mayor of the country ", rather than
            "the country called France".
    """
    forms: list[str] = []
    for by_alias, by_label in zip(_BY_ALIAS, _BY_LABEL, strict=True):
        forms += [by_alias.format(s=alias, h=entity.noun) for alias in entity.aliases]
        forms.append(by_label.format(s=entity.label, h=entity.noun))
    fitting = dict.fromkeys(_once(before, form) for form in forms)
    return tuple(form for form in fitting if form.lower() != entity.label.lower())


def _once(before: str, form: str) -> str:
    """Return a name without the words at its beginning that stand before it already."""
    words = before.split(" ")
    for first in range(len(words) - 1):
        again = " ".join(words[first:])
        if again.strip() and form.lower().startswith(again.lower()):
            return form[len(again) :]
    return form


def paraphrases(world: World, fact: Fact) -> tuple[str, ...]:
    """Return the prompts of a fact in the templates that the text never has."""
    label = world.entities[fact.head].label
    templates = world.relations[fact.relation].heldout
    return tuple(text.fill(template, world, fact, label) for template in templates)


def neighbours(world: World, fact: Fact, count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return prompts and answers for the same relation of other subjects.

    The other subjects are ones that no record of the splits `val`, `test` and `test_domains`
    edits, as far as there are any.

    Args:
        world: The world.
        fact: The fact that is edited.
        count: How many, if there are as many.
        seed: Seed of the choice and of the wording.
    """
    rng = random.Random(f"neighbours/{seed}/{fact}")
    others = [f for f in world.by_relation[fact.relation] if f.head != fact.head]
    still = [f for f in others if world.split_of[f.head] == "train"]
    pool = still if len(still) >= count else others
    return [_asked(world, f, rng) for f in rng.sample(pool, min(count, len(pool)))]


def of_subject(world: World, fact: Fact, seed: int = 0) -> list[tuple[str, str]]:
    """Return prompts and answers for what else is known of the subject."""
    rng = random.Random(f"subject/{seed}/{fact}")
    return [_asked(world, other, rng) for other in world.by_head[fact.head] if other != fact]


def _asked(world: World, fact: Fact, rng: random.Random) -> tuple[str, str]:
    template = rng.choice(world.relations[fact.relation].templates)
    prompt = text.fill(template, world, fact, world.entities[fact.head].label)
    return prompt, world.entities[fact.tail].label
