"""What the built-in world consists of: entities, relations, facts, two-hop questions, splits."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from errata.world import schema
from errata.world.schema import Rel

HELD_HOPS = 0.15  # share of two-hop questions that the text never states
SUPPORT = {"pocket": 5, "test": 3}  # two-hop questions that share their second fact, at least
TEST_SHARE = 0.08  # share of heads whose facts are only edited in the test split
VAL_SHARE = 0.04


@dataclass(frozen=True)
class Entity:
    """A thing in the world.

    Attributes:
        id: "Q" and a number, unique in the world.
        label: The usual name.
        aliases: Other names.
        type: Key of its kind ("city").
        noun: What one calls such a thing ("city").
        domain: Domain of its kind ("geoscience").
        real: Whether it exists outside this world.
    """

    id: str
    label: str
    aliases: tuple[str, ...]
    type: str
    noun: str
    domain: str
    real: bool

    @property
    def description(self) -> str:
        """A short gloss, as in Wikidata."""
        return f"{self.noun} in {self.domain}"


@dataclass(frozen=True)
class Relation:
    """A property that links entities of one kind to entities of another.

    Attributes:
        id: "P" and a number.
        label: Noun phrase ("capital").
        domain: Domain of the heads.
        head_type: Kind of the heads.
        tail_type: Kind of the tails.
        templates: Prompts of the text; ``{s}`` is the subject, ``{p}`` the phrase with its
            ordinal, ``{o}`` the ordinal alone.
        heldout: Prompts that never occur in the text.
        inverse: Whether tails are one to one with heads and the text also states it backwards.
        single_value: Whether a head has one tail only.
        datatype: "wikibase-item", or "quantity" for numbers.
        spec: The row of the schema that it was made from.
    """

    id: str
    label: str
    domain: str
    head_type: str
    tail_type: str
    templates: tuple[str, ...]
    heldout: tuple[str, ...]
    inverse: bool
    single_value: bool
    datatype: str
    spec: Rel = field(repr=False)


@dataclass(frozen=True)
class Fact:
    """One statement: the ``order``-th value (from 0) of ``relation`` for ``head`` is ``tail``."""

    head: str
    relation: str
    tail: str
    order: int = 0


@dataclass(frozen=True)
class Hop:
    """A two-hop question: ``second`` starts where ``first`` ends.

    ``back`` tells that the first fact is followed from its tail to its head.
    """

    first: Fact
    second: Fact
    back: bool = False


@dataclass(frozen=True)
class World:
    """Everything that is true in the world, with look-ups that are computed once.

    Attributes:
        scale: "pocket" or "test".
        seed: Seed that the world was drawn from.
        entities: Entity by id.
        relations: Relation by id.
        facts: All direct facts, in a fixed order.
    """

    scale: str
    seed: int
    entities: dict[str, Entity] = field(repr=False)
    relations: dict[str, Relation] = field(repr=False)
    facts: tuple[Fact, ...] = field(repr=False)

    @cached_property
    def nouns(self) -> dict[str, str]:
        """Noun by kind of entity."""
        return {kind.key: kind.noun for kind in schema.KINDS}

    @cached_property
    def by_type(self) -> dict[str, tuple[Entity, ...]]:
        """Entities by kind."""
        groups: dict[str, list[Entity]] = {}
        for entity in self.entities.values():
            groups.setdefault(entity.type, []).append(entity)
        return {key: tuple(group) for key, group in groups.items()}

    @cached_property
    def by_head(self) -> dict[str, tuple[Fact, ...]]:
        """Facts by the id of their head."""
        return _grouped(self.facts, "head")

    @cached_property
    def by_tail(self) -> dict[str, tuple[Fact, ...]]:
        """Facts by the id of their tail."""
        return _grouped(self.facts, "tail")

    @cached_property
    def by_relation(self) -> dict[str, tuple[Fact, ...]]:
        """Facts by the id of their relation."""
        return _grouped(self.facts, "relation")

    @cached_property
    def hops(self) -> tuple[Hop, ...]:
        """Two-hop questions with one answer, whether stated in the text or not.

        Their second fact is the second fact of several of them (SUPPORT). A model cannot compose
        over a fact that it has hardly ever met at the end of a chain.
        """
        chains = list(self._iter_hops())
        support = Counter(hop.second for hop in chains)
        return tuple(hop for hop in chains if support[hop.second] >= SUPPORT[self.scale])

    @cached_property
    def unstated_hops(self) -> frozenset[Hop]:
        """Two-hop questions that no sentence of the text answers."""
        rng = random.Random(f"hops/{self.seed}")
        return frozenset(hop for hop in self.hops if rng.random() < HELD_HOPS)

    def _iter_hops(self) -> Iterator[Hop]:
        for first in self.facts:
            for second in self.by_head.get(first.tail, ()):
                if second.tail != first.head:
                    yield Hop(first, second)
            if self.relations[first.relation].inverse:
                for second in self.by_head[first.head]:
                    if second != first and second.tail != first.tail:
                        yield Hop(first, second, back=True)

    def relation(self, key: str) -> Relation:
        """Returns the relation with the given key of the schema ("capital").

        Raises:
            KeyError: The world has no such relation.
        """
        return next(r for r in self.relations.values() if r.spec.key == key)

    @cached_property
    def split_of(self) -> dict[str, str]:
        """Split ("train", "val", "test", "test_domains") by the id of a fact's head."""
        rng = random.Random(f"split/{self.seed}")
        splits: dict[str, str] = {}
        for group in self.by_type.values():  # every kind has heads in every split
            heads = [entity.id for entity in group if entity.id in self.by_head]
            rng.shuffle(heads)
            if not heads:
                continue
            if group[0].domain in schema.HELD_OUT_DOMAINS:
                splits.update(dict.fromkeys(heads, "test_domains"))
                continue
            test = max(1, round(TEST_SHARE * len(heads)))
            val = test + max(1, round(VAL_SHARE * len(heads)))
            for place, head in enumerate(heads):
                splits[head] = "test" if place < test else "val" if place < val else "train"
        return splits


def _grouped(facts: tuple[Fact, ...], key: str) -> dict[str, tuple[Fact, ...]]:
    groups: dict[str, list[Fact]] = {}
    for fact in facts:
        groups.setdefault(getattr(fact, key), []).append(fact)
    return {name: tuple(group) for name, group in groups.items()}
