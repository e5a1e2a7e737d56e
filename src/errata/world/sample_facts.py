"""Facts of the built-in world for sample records, and the words in which they are asked."""

from __future__ import annotations

import random

from errata.world import statements as text
from errata.world import templates
from errata.world.bench import alternatives
from errata.world.world import Fact, Relation, World

RECORDS = 24
"""Records per file; MQuAKE's, which are longer, and UniEdit's are half as many."""

NEIGHBOURS = 5
"""Other subjects with the same true answer, and prompts per record that must not move."""


def eligible(world: World) -> list[Fact]:
    """Facts with one true answer, an entity, about heads that no shipped network was trained on."""
    return [
        fact
        for fact in world.facts
        if world.split_of[fact.head] != "train"
        and world.relations[fact.relation].single_value
        and world.relations[fact.relation].datatype == "wikibase-item"
    ]


def spread(world: World, facts: list[Fact], count: int) -> list[Fact]:
    """Takes facts from all relations in turn: those about real things first, one per head."""
    groups: dict[str, list[Fact]] = {}
    for fact in facts:
        groups.setdefault(fact.relation, []).append(fact)
    for group in groups.values():
        group.sort(key=lambda fact: not world.entities[fact.head].real)  # stable
    chosen: list[Fact] = []
    heads: set[str] = set()
    while len(chosen) < count and any(groups.values()):
        for group in groups.values():
            fact = next((f for f in group if f.head not in heads), None)
            if fact is None:
                group.clear()
                continue
            group.remove(fact)
            heads.add(fact.head)
            chosen.append(fact)
    return chosen[:count]


def others(world: World, fact: Fact) -> list[Fact]:
    """The same answer for other subjects: CounterFact's neighbourhood."""
    return [
        other
        for other in world.by_tail[fact.tail]
        if other.relation == fact.relation and other.head != fact.head
    ]


def drawn(kind: str, number: int) -> random.Random:
    """Returns what a record of a format is drawn from."""
    return random.Random(f"samples/{kind}/{number}")


def new_object(world: World, fact: Fact, number: int) -> str:
    """The object that a fact is edited to, by its id; the same in all formats."""
    return drawn("target", number).choice(alternatives(world, fact))


def open_templates(relation: Relation) -> list[str]:
    """Templates of the text in which the subject stands inside, so that it keeps its spelling."""
    return [t for t in relation.templates if not t.startswith("{s}") and "question:" not in t]


def prompts(world: World, fact: Fact, count: int, draw: random.Random) -> list[str]:
    """Prompts for a fact in different words that the text has."""
    label = world.entities[fact.head].label
    forms = draw.sample(open_templates(world.relations[fact.relation]), count)
    return [text.fill(form, world, fact, label) for form in forms]


def relation_phrase(world: World, fact: Fact) -> str:
    """Returns the words for a relation, as in "the capital of X"."""
    return templates.phrase(world.relations[fact.relation].spec, fact.order)


def still(world: World, fact: Fact, draw: random.Random) -> tuple[str, str]:
    """A prompt and its answer about another subject, which no edit should move."""
    pool = [f for f in world.facts if world.split_of[f.head] == "train" and f.tail != fact.tail]
    other = draw.choice(pool)
    return prompts(world, other, 1, draw)[0], world.entities[other.tail].label


def onward(world: World, fact: Fact, number: int, draw: random.Random) -> tuple[str, str] | None:
    """Returns a question in two steps that follows from the edit, and its answer; None: no step."""
    first = Fact(fact.head, fact.relation, new_object(world, fact, number))
    seconds = [
        second
        for second in world.by_head.get(first.tail, ())
        if world.relations[second.relation].single_value and second.tail != fact.head
    ]
    if not seconds:
        return None
    second = draw.choice(seconds)
    spec = world.relations[second.relation].spec
    form = draw.choice(templates.nested(spec, world.nouns, False, False))
    inner = text.step(world, first, world.entities[fact.head].label)
    asked = templates.sentence(form.format(x=inner, p=relation_phrase(world, second)))
    return asked, world.entities[second.tail].label


def leading_on(world: World, facts: list[Fact], count: int) -> list[Fact]:
    """Takes facts of which half have an `onward` question under their number in the file."""
    chosen: list[Fact] = []
    rest: list[Fact] = []
    for fact in spread(world, facts, len(facts)):
        if len(chosen) < count // 2 and onward(world, fact, len(chosen), random.Random(0)):
            chosen.append(fact)
        else:
            rest.append(fact)
    return (chosen + rest)[:count]
