"""The pretraining text: statements about the world, in an order that a seed determines.

A statement is a prompt and its answer. Statements come in six classes (direct facts, two-hop
facts, reversed facts, other names of answers, naming of aliases, yes/no comparisons). Each class
is dealt out epoch by epoch without replacement, so every fact is met equally often, and statement
``n`` depends only on the world and ``n``: training can resume anywhere.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from errata.world import templates
from errata.world.world import Fact, Hop, World

MIX = {"direct": 46, "hop": 38, "reverse": 6, "other_name": 5, "naming": 2, "compare": 3}
"""Statements of each class in a block of one hundred."""

ALIAS_RATE = 0.25  # how often a subject with an alias is called by it


class Statement(NamedTuple):
    """A prompt and the answer that completes it (without the space between and the full stop)."""

    prompt: str
    answer: str

    @property
    def text(self) -> str:
        """The sentence."""
        return f"{self.prompt} {self.answer}."


class Corpus:
    """Statement number n of the endless pretraining text of a world.

    Args:
        world: The world that is described.
        seed: Seed of the order and of the choice of templates.
    """

    def __init__(self, world: World, seed: int = 0) -> None:
        self.world = world
        self.seed = seed
        self._orders: dict[str, tuple[int, list[int]]] = {}
        self._slots = self._layout()

    def __getitem__(self, number: int) -> Statement:
        block, place = divmod(number, 100)
        kind, rank = self._slots[place]
        index = block * MIX[kind] + rank
        rng = random.Random(f"{self.seed}/{number}")
        return self._make(kind, self._draw(kind, index), rng)

    def __iter__(self) -> Iterator[Statement]:
        return (self[number] for number in itertools.count())

    def _layout(self) -> list[tuple[str, int]]:
        """Spreads the classes over a block of one hundred statements."""
        kinds = [kind for kind, count in MIX.items() for _ in range(count)]
        random.Random("layout").shuffle(kinds)
        seen = dict.fromkeys(MIX, 0)
        slots = []
        for kind in kinds:
            slots.append((kind, seen[kind]))
            seen[kind] += 1
        return slots

    @cached_property
    def _pools(self) -> dict[str, tuple]:
        world = self.world
        aliased = {i for i, e in world.entities.items() if e.aliases}
        stated = tuple(h for h in world.hops if h not in world.unstated_hops)
        return {
            "direct": world.facts,
            "hop": stated,
            "reverse": tuple(f for f in world.facts if world.relations[f.relation].inverse),
            "other_name": tuple(f for f in world.facts if f.tail in aliased),
            "naming": tuple(sorted(aliased, key=lambda i: int(i[1:]))),
            "compare": tuple(f for f in world.facts if len(world.by_tail[f.tail]) > 1),
        }

    def _draw(self, kind: str, index: int):
        """Returns item ``index`` of the class's endless reshuffled sequence."""
        pool = self._pools[kind]
        epoch, place = divmod(index, len(pool))
        if self._orders.get(kind, (-1,))[0] != epoch:
            order = list(range(len(pool)))
            random.Random(f"{self.seed}/{kind}/{epoch}").shuffle(order)
            self._orders[kind] = (epoch, order)
        return pool[self._orders[kind][1][place]]

    def _make(self, kind: str, item, rng: random.Random) -> Statement:
        if kind == "direct":
            return direct(self.world, item, rng)
        if kind == "hop":
            return hop(self.world, item, rng)
        if kind == "reverse":
            return reverse(self.world, item, rng)
        if kind == "other_name":
            return other_name(self.world, item, rng)
        if kind == "naming":
            return naming(self.world, item, rng)
        return self._compare(item, rng)

    def _compare(self, fact: Fact, rng: random.Random) -> Statement:
        """A yes/no statement; equal and unequal pairs, "same" and "different" are balanced."""
        world = self.world
        equal, different = rng.random() < 0.5, rng.random() < 0.5
        if equal:
            others = [f for f in world.by_tail[fact.tail] if f.head != fact.head]
        else:
            others = [f for f in world.by_relation[fact.relation] if f.tail != fact.tail]
        if not others:
            return direct(world, fact, rng)
        other = rng.choice(others)
        x, y = (step(world, f, name(world, f.head, rng)) for f in (fact, other))
        return compare(x, y, different, equal != different, rng)


def name(world: World, entity: str, rng: random.Random) -> str:
    """Returns the label of an entity, or now and then an alias."""
    found = world.entities[entity]
    if found.aliases and rng.random() < ALIAS_RATE:
        return rng.choice(found.aliases)
    return found.label


def fill(template: str, world: World, fact: Fact, subject: str) -> str:
    """Completes a direct, reverse or other-name template with the subject and the phrase."""
    spec = world.relations[fact.relation].spec
    ordinal = f"{templates.ORDINALS[fact.order]} " if spec.values > 1 else ""
    text = template.format(s=subject, p=templates.phrase(spec, fact.order), o=ordinal)
    return templates.sentence(text)


def step(world: World, fact: Fact, subject: str, back: bool = False) -> str:
    """Returns a noun phrase for where a fact leads from the subject."""
    spec = world.relations[fact.relation].spec
    return templates.noun_phrase(spec, world.nouns, subject, fact.order, back)


def direct(
    world: World, fact: Fact, rng: random.Random, held: bool = False, subject: str = ""
) -> Statement:
    """States a fact with a random known (or held-out) template."""
    relation = world.relations[fact.relation]
    template = rng.choice(relation.heldout if held else relation.templates)
    prompt = fill(template, world, fact, subject or name(world, fact.head, rng))
    return Statement(prompt, world.entities[fact.tail].label)


def reverse(world: World, fact: Fact, rng: random.Random, held: bool = False) -> Statement:
    """States a fact backwards: from its tail to its head."""
    spec = world.relations[fact.relation].spec
    template = rng.choice(templates.reverse(spec, world.nouns, held))
    prompt = fill(template, world, fact, name(world, fact.tail, rng))
    return Statement(prompt, world.entities[fact.head].label)


def other_name(world: World, fact: Fact, rng: random.Random, held: bool = False) -> Statement:
    """Asks for an alias of the tail."""
    spec = world.relations[fact.relation].spec
    template = rng.choice(templates.other_name(spec, world.nouns, held))
    prompt = fill(template, world, fact, name(world, fact.head, rng))
    return Statement(prompt, rng.choice(world.entities[fact.tail].aliases))


def hop(world: World, item: Hop, rng: random.Random, held: bool = False) -> Statement:
    """Asks a two-hop question."""
    first, second = item.first, item.second
    start = first.tail if item.back else first.head
    inner = step(world, first, name(world, start, rng), item.back)
    return nested(world, second, inner, rng, held)


def nested(
    world: World, fact: Fact, inner: str, rng: random.Random, held: bool = False, back: bool = False
) -> Statement:
    """Asks for the end of a fact that starts from a noun phrase."""
    spec = world.relations[fact.relation].spec
    template = rng.choice(templates.nested(spec, world.nouns, held, back))
    prompt = template.format(x=inner, p=templates.phrase(spec, fact.order))
    answer = fact.head if back else fact.tail
    return Statement(templates.sentence(prompt), world.entities[answer].label)


def naming(world: World, entity: str, rng: random.Random) -> Statement:
    """Links an alias with the usual name."""
    found = world.entities[entity]
    template = rng.choice(templates.NAMING)
    prompt = template.format(a=rng.choice(found.aliases), h=found.noun)
    return Statement(templates.sentence(prompt), found.label)


def compare(x: str, y: str, different: bool, yes: bool, rng: random.Random) -> Statement:
    """Asks whether two noun phrases name the same (or different) things."""
    template = rng.choice(templates.same(different))
    prompt = templates.sentence(template.format(x=x, y=y)) + templates.YES_NO
    return Statement(prompt, "Yes" if yes else "No")


def corpus(world: World, seed: int = 0) -> Iterator[str]:
    """Yields the sentences of the pretraining text, without end; Corpus gives them by number."""
    return (statement.text for statement in Corpus(world, seed))


def texts(world: World, limit: int | None = None, seed: int = 0) -> list[str]:
    """Returns sentences of the pretraining text.

    Args:
        world: The world that is described.
        limit: How many; without it, as many as state every direct fact once.
        seed: Which stretch of the text: other seeds give other templates in another order.

    Returns:
        Sentences, each ending in a full stop.
    """
    if limit is None:
        limit = -(-len(world.facts) * 100 // MIX["direct"])
    source = Corpus(world, seed)
    return [source[number].text for number in range(limit)]
