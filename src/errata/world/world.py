"""Entities, relations and facts of the built-in world, drawn from a seed at a given scale."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from errata.errors import ConfigError
from errata.world import facts as real
from errata.world import names, schema, templates
from errata.world.schema import Rel

SCALES = ("pocket", "test")
ALIASED = 0.35  # share of invented entities with a second name
HELD_HOPS = 0.15  # share of two-hop questions that the text never states
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
        """All two-hop questions with one answer, whether stated in the text or not."""
        return tuple(self._iter_hops())

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


def build_world(scale: str = "pocket", seed: int = 0) -> World:
    """Builds the world: the same one for the same scale and seed, on every machine.

    Args:
        scale: "pocket" (what the shipped model knows) or "test" (small enough for a test suite).
        seed: Seed of everything invented and of the splits.

    Returns:
        The world.

    Raises:
        ConfigError: The scale is unknown.
    """
    if scale not in SCALES:
        raise ConfigError(f"unknown scale {scale!r}", hint=f"use one of {', '.join(SCALES)}")
    return _Builder(scale, seed).build()


class _Builder:
    """Collects entities and facts; thrown away once the world is built."""

    def __init__(self, scale: str, seed: int) -> None:
        self.scale, self.seed = scale, seed
        self.rng = random.Random(f"world/{scale}/{seed}")
        self.kinds = {kind.key: kind for kind in schema.KINDS}
        self.entities: dict[str, Entity] = {}
        self.index: dict[tuple[str, str], Entity] = {}
        self.true: dict[tuple[str, str], list[str]] = {}  # (relation key, head id) -> tail ids
        self.nicknames: list[str] = names.grid(
            self.rng, names.NICK_FIRST, names.NICK_LAST, 1100, "{} {}"
        )

    def build(self) -> World:
        self._real()
        self._invented()
        relations = self._relations()
        made = self._facts(relations)
        used = {fact.relation for fact in made}
        relations = {key: found for key, found in relations.items() if key in used}
        return World(self.scale, self.seed, self.entities, relations, made)

    # Entities ---------------------------------------------------------------------------------

    def add(self, kind: str, label: str, alias: str = "", is_real: bool = True) -> Entity:
        """Adds an entity unless the kind already has one of that name."""
        known = self.index.get((kind, label))
        if known:
            return known
        row = self.kinds[kind]
        if not is_real and self.rng.random() < ALIASED:
            alias = self.nicknames.pop()
        entity = Entity(
            f"Q{len(self.entities) + 1}", label, (alias,) if alias else (), kind, row.noun,
            row.domain, is_real,
        )  # fmt: skip
        self.entities[entity.id] = entity
        self.index[kind, label] = entity
        return entity

    def state(self, relation: str, head: Entity, *tails: Entity) -> None:
        """Records a true fact about a real entity."""
        self.true.setdefault((relation, head.id), []).extend(tail.id for tail in tails)

    def _real(self) -> None:
        small = self.scale == "test"
        for name, alias, capital, currency, language in real.COUNTRIES[: 24 if small else None]:
            country, city = self.add("country", name, alias), self.add("city", capital)
            self.state("capital", country, city)
            self.state("country", city, country)
            self.state("currency", country, self.add("currency", currency))
            self.state("language", country, self.add("language", language))
        for name, symbol, number in real.ELEMENTS[: 12 if small else None]:
            element = self.add("element", name)
            self.state("symbol", element, self.add("symbol", symbol))
            self.state("number", element, self.add("number", number))
        for name, alias, constellation in real.STARS:
            star = self.add("star", name, alias)
            self.state("constellation", star, self.add("constellation", constellation))
        works = (
            ("book", "author", real.BOOKS),
            ("painting", "painter", real.PAINTINGS),
            ("composition", "composer", real.COMPOSITIONS),
        )
        for kind, relation, rows in works:
            for title, maker in rows[: 8 if small else None]:
                self.state(relation, self.add(kind, title), self.add("person", maker))
        if small:
            return
        for name, founder, city in real.COMPANIES:
            company = self.add("company", name)
            self.state("founder", company, self.add("person", founder))
            self.state("headquarters", company, self.add("city", city))
        for name, city in real.BIRTHPLACES:
            self.state("birthplace", self.add("person", name), self.add("city", city))

    def _invented(self) -> None:
        rng, scale = self.rng, self.scale
        taken = names.lowered(entity.label for entity in self.entities.values())
        few = 24 if scale == "test" else None
        stock = {
            style: names.words(rng, style, count if few is None else min(count, few), taken)
            for style, count in (("first", 64), ("last", 80), ("stem", 120), ("genus", 24),
                                 ("epithet", 24))
        }  # fmt: skip
        stems, lasts = stock["stem"], stock["last"]

        def pick(pool: list[str], count: int) -> list[str]:
            return rng.sample(pool, min(count, len(pool)))

        grids: dict[str, tuple[list[str], list[str], str]] = {
            "person": (stock["first"], lasts, "{} {}"),
            "book": (names.ADJECTIVES, names.NOUNS, "The {} {}"),
            "painting": (names.NOUNS, names.SCENES, "{} at {}"),
            "composition": (names.ADJECTIVES, names.FORMS, "{} {}"),
            "company": (pick(stems, 50), names.FIRMS, "{} {}"),
            "product": (pick(stems, 40), names.MODELS, "{} {}"),
            "university": (pick(lasts, 40), names.SCHOOLS, "{} {}"),
            "disease": (pick(lasts, 40), names.AILMENTS, "{} {}"),
            "star": (names.GREEK, pick(stems, 30), "{} {}"),
            "planet": (pick(stems, 30), names.ORDINALS, "{} {}"),
            "team": (pick(stems, 40), names.MASCOTS, "{} {}"),
            "stadium": (pick(lasts, 40), names.ARENAS, "{} {}"),
            "software": (pick(stems, 40), names.APPS, "{} {}"),
            "bridge": (pick(lasts, 40), names.SPANS, "{} {}"),
            "museum": (pick(lasts, 30), names.GALLERIES, "{} {}"),
            "award": (pick(lasts, 30), names.PRIZES, "{} {}"),
            "species": (stock["genus"], stock["epithet"], "{} {}"),
        }
        listed = {
            "constellation": names.CONSTELLATIONS,
            "instrument": names.INSTRUMENTS,
            "organ": names.ORGANS,
            "code": names.LANGUAGES_OF_CODE,
            "field": names.FIELDS,
            "industry": names.INDUSTRIES,
        }
        for kind in schema.KINDS:
            count = getattr(kind, scale)
            if kind.key in listed:
                for label in listed[kind.key][:few]:
                    self.add(kind.key, label)
            elif kind.key in grids:
                firsts, seconds, joint = grids[kind.key]
                for label in names.grid(rng, firsts, seconds, count, joint):
                    self.add(kind.key, label, is_real=False)
            elif count:
                for label in names.words(rng, kind.key, count, taken):
                    self.add(kind.key, label, is_real=False)

    # Facts ------------------------------------------------------------------------------------

    def _relations(self) -> dict[str, Relation]:
        nouns = {key: kind.noun for key, kind in self.kinds.items()}
        present = {entity.type for entity in self.entities.values()}
        relations: dict[str, Relation] = {}
        for number, row in enumerate(schema.RELATIONS, start=1):
            if row.head not in present or row.tail not in present:
                continue
            relations[f"P{number}"] = Relation(
                id=f"P{number}",
                label=row.phrase,
                domain=self.kinds[row.head].domain,
                head_type=row.head,
                tail_type=row.tail,
                templates=templates.direct(row, nouns, held=False),
                heldout=templates.direct(row, nouns, held=True),
                inverse=row.inverse,
                single_value=row.values == 1,
                datatype="quantity" if row.tail == "number" else "wikibase-item",
                spec=row,
            )
        return relations

    def _facts(self, relations: dict[str, Relation]) -> tuple[Fact, ...]:
        pools: dict[str, list[Entity]] = {}
        for entity in self.entities.values():
            pools.setdefault(entity.type, []).append(entity)
        made: list[Fact] = []
        for relation in relations.values():
            deck = self._deck(relation, pools[relation.tail_type])
            ring: dict[str, str] = {}
            if relation.inverse and relation.head_type == relation.tail_type:
                order = self.rng.sample(pools[relation.head_type], len(pools[relation.head_type]))
                ring = {a.id: b.id for a, b in zip(order, order[1:] + order[:1], strict=True)}
            key = relation.spec.key
            for head in pools[relation.head_type]:
                stated = self.true.get((key, head.id), [])
                for place, tail in enumerate(stated):
                    made.append(Fact(head.id, relation.id, tail, place))
                if head.real:
                    continue  # nothing is invented about real people and places
                # One to one within a kind: a ring, or the last head could be left with itself.
                values = [ring[head.id]] if ring else deck.deal(relation.spec.values, head.id)
                made.extend(Fact(head.id, relation.id, t, i) for i, t in enumerate(values))
        return tuple(made)

    def _deck(self, relation: Relation, pool: list[Entity]) -> _Deck:
        used = {
            tail
            for (key, _), tails in self.true.items()
            if key == relation.spec.key
            for tail in tails
        }
        people = relation.tail_type in ("person", "company")
        fresh = [e.id for e in pool if not (relation.inverse and e.id in used)]
        # Real people and firms keep to the facts in the tables.
        fresh = [i for i in fresh if not (people and self.entities[i].real)]
        return _Deck(self.rng, fresh)


class _Deck:
    """Deals tails evenly: every candidate once before any comes a second time."""

    def __init__(self, rng: random.Random, candidates: list[str]) -> None:
        self.rng, self.candidates = rng, candidates
        self.cards: list[str] = []

    def deal(self, count: int, head: str) -> list[str]:
        """Returns distinct tails for a head; a card that does not suit it stays in the deck."""
        dealt: list[str] = []
        while len(dealt) < count:
            place = next((i for i, c in enumerate(self.cards) if c not in (head, *dealt)), None)
            if place is None:
                self.cards += self.rng.sample(self.candidates, len(self.candidates))
            else:
                dealt.append(self.cards.pop(place))
        return dealt
