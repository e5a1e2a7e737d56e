"""Draws the built-in world from a seed: real facts first, then invented ones for volume."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

from errata.errors import ConfigError
from errata.world import facts as real
from errata.world import names, schema, templates
from errata.world.world import Entity, Fact, Relation, World

SCALES = ("pocket", "test")
ALIASED = 0.35  # share of invented entities with a second name


def build_world(scale: str = "pocket", seed: int = 0) -> World:
    """Builds the world: the same one for the same scale and seed, on every machine.

    Args:
        scale: "pocket" (what the shipped model knows) or "test" (small enough for a test suite).
        seed: Seed of everything invented and of the splits.

    Returns:
        The world; one object as often as it is asked for, so write to nothing in it.

    Raises:
        ConfigError: The scale is unknown.
    """
    if scale not in SCALES:
        raise ConfigError(f"unknown scale {scale!r}", hint=f"use one of {', '.join(SCALES)}")
    return _built(scale, seed)


@lru_cache(maxsize=2)
def _built(scale: str, seed: int) -> World:
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
        for name, alias, capital, currency, language in real.COUNTRIES[: 18 if small else None]:
            country, city = self.add("country", name, alias), self.add("city", capital)
            self.state("capital", country, city)
            self.state("country", city, country)
            self.state("currency", country, self.add("currency", currency))
            self.state("language", country, self.add("language", language))
        for name, symbol, number in real.ELEMENTS[: 10 if small else None]:
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
            for title, maker in rows[: 6 if small else None]:
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

        grids: dict[str, tuple[Sequence[str], Sequence[str], str]] = {
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
