"""One record of the benchmark: an edit with the samples that test its generality and locality."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from errata.world import statements as text
from errata.world import templates
from errata.world.world import Entity, Fact, World

HELD_RATE = 0.5  # share of generality prompts that come from held-out templates

Sample = dict[str, Any]
Path5 = list[str]
Maker = Callable[[], Sample | None]


class Record:
    """Builds the record of one edit."""

    def __init__(self, world: World, fact: Fact, tail: str, rng: random.Random) -> None:
        self.world, self.rng = world, rng
        self.true = fact
        self.edit = Fact(fact.head, fact.relation, tail, fact.order)
        self.relation = world.relations[fact.relation]
        self.head, self.tail = world.entities[fact.head], world.entities[tail]
        self.symbols: dict[str, str] = {}

    # Pieces -----------------------------------------------------------------------------------

    def build(self) -> Sample:
        """Returns the record: edit, generality, locality."""
        self.prompt = prompt = self._ask(self.edit, self.head.label, held=False)
        edit = {"prompt": prompt, "target": self.tail.label, "subject": self.head.label}
        return {
            "edit": {**edit, **self._triple(self.edit)},
            "generality": {"0": self._choose(self._generality)},
            "locality": {"0": self._choose(self._locality)},
        }

    def _choose(self, makers: Callable[[], list[tuple[float, Maker]]]) -> Sample:
        """Draws a kind of sample by weight; kinds that this edit cannot have return None."""
        options = makers()
        while True:
            chosen = self.rng.choices(options, [weight for weight, _ in options])[0]
            self.symbols = {}
            sample = chosen[1]()
            if sample is not None:
                return sample
            options.remove(chosen)

    def _ask(self, fact: Fact, subject: str, held: bool) -> str:
        relation = self.world.relations[fact.relation]
        template = self.rng.choice(relation.heldout if held else relation.templates)
        return text.fill(template, self.world, fact, subject)

    def _held(self) -> bool:
        return self.rng.random() < HELD_RATE

    def _name(self, entity: Entity, rate: float = 0.35) -> str:
        if entity.aliases and self.rng.random() < rate:
            return self.rng.choice(entity.aliases)
        return entity.label

    def _entity(self, entity: Entity) -> Sample:
        return {
            "id": entity.id,
            "label": entity.label,
            "description": entity.description,
            "aliases": list(entity.aliases),
        }

    def _single_inverse(self, fact: Fact) -> bool:
        others = {f.head for f in self.world.by_tail.get(fact.tail, ()) if f != self.true
                  and f.relation == fact.relation}  # fmt: skip
        if fact.relation == self.edit.relation and fact.tail == self.edit.tail:
            others.add(self.edit.head)
        return len(others) <= 1

    def _triple(self, fact: Fact) -> Sample:
        relation, tail = self.world.relations[fact.relation], self.world.entities[fact.tail]
        item = relation.datatype == "wikibase-item"
        value = self._entity(tail) if item else {"amount": f"+{tail.label}", "unit": "1"}
        return {
            "head_entity": self._entity(self.world.entities[fact.head]),
            "property": {
                "id": relation.id,
                "label": relation.label,
                "description": f"{relation.label} of a {relation.spec.head}",
                "aliases": [],
                "single_value": relation.single_value,
            },
            "tail_entity": {
                "order_in_property": fact.order,
                "datatype": relation.datatype,
                "value": value,
            },
            "single_inverse": self._single_inverse(fact),
        }

    # Paths ------------------------------------------------------------------------------------

    def _symbol(self, key: str, prefix: str) -> str:
        """Returns h_e, r_e, t_e or e_k, r_k for an id or a relation."""
        fixed = {self.edit.head: "h_e", self.edit.tail: "t_e", self.edit.relation: "r_e"}
        if key in fixed:
            return fixed[key]
        taken = sum(name.startswith(prefix) for name in self.symbols.values())
        return self.symbols.setdefault(key, f"{prefix}_{taken + 1}")

    def _code(self, fact: Fact, back: bool) -> Path5:
        ends = [self._symbol(fact.head, "e"), self._symbol(fact.tail, "e")]
        if back:
            ends.reverse()
            many = not self._single_inverse(fact)
        else:
            many = not self.world.relations[fact.relation].single_value
        step = [ends[0], self._symbol(fact.relation, "r"), ends[1]]
        return [*step, "b" if back else "f", "m" if many else "s"]

    def _one_hop(self, fact: Fact, back: bool, prompt: str, subject: str, target: str) -> Sample:
        """A hop in its forward wording, with the question backwards where the chain needs it."""
        path = [self._symbol(k, p) for k, p in
                ((fact.head, "e"), (fact.relation, "r"), (fact.tail, "e"))]  # fmt: skip
        hop = {"path": path, "prompt": prompt, "subject": subject, "target": target}
        hop["reverse_in_multi_hop"] = back
        if back:
            stated = text.reverse(self.world, fact, self.rng)
            hop["reversed"] = {"prompt": stated.prompt, "target": stated.answer}
        return {**hop, **self._triple(fact)}

    def _single(
        self, steps: list[tuple[Fact, bool]], held: bool | None = None, alias_target: bool = False
    ) -> Sample | None:
        """Makes a single-path sample of one or two steps; the names in it may be aliases.

        Args:
            steps: Facts in reasoning order and whether each is followed backwards.
            held: Whether the final prompt comes from a held-out template; by default, sometimes.
            alias_target: Whether to ask for another name of the answer (one forward step only).
        """
        world, held = self.world, self._held() if held is None else held
        codes = [self._code(fact, back) for fact, back in steps]
        if any(code[4] == "m" for code in codes[:-1]):
            return None  # several answers are allowed only where a chain ends
        fact, back = steps[0]
        start = world.entities[fact.tail if back else fact.head]
        name = self._name(start)
        hops = []
        for place, (each, turned) in enumerate(steps):
            head, tail = world.entities[each.head], world.entities[each.tail]
            subject = name if place == 0 and not turned else head.label
            prompt = self._ask(each, subject, held=False)
            hops.append(self._one_hop(each, turned, prompt, subject, tail.label))
        if len(steps) == 1:
            prompt, target = self._question(fact, back, name, held, alias_target)
            if not back:
                hops[0].update(prompt=prompt, target=target)
            else:
                hops[0]["reversed"] = {"prompt": prompt, "target": target}
        else:
            last, turned = steps[-1]
            inner = text.step(world, fact, name, back)
            stated = text.nested(world, last, inner, self.rng, held, turned)
            prompt, target = stated
        return {
            "path_type": "single",
            "prompt": prompt,
            "target": target,
            "paths": codes,
            "one_hops": hops,
        }

    def _question(
        self, fact: Fact, back: bool, name: str, held: bool, alias_target: bool
    ) -> tuple[str, str]:
        world, spec = self.world, self.world.relations[fact.relation].spec
        if back:
            template = self.rng.choice(templates.reverse(spec, world.nouns, held))
            return text.fill(template, world, fact, name), world.entities[fact.head].label
        if alias_target:
            template = self.rng.choice(templates.other_name(spec, world.nouns, held))
            answer = self.rng.choice(world.entities[fact.tail].aliases)
            return text.fill(template, world, fact, name), answer
        return self._ask(fact, name, held), world.entities[fact.tail].label

    def _double(
        self, first: list[tuple[Fact, bool]], second: list[tuple[Fact, bool]]
    ) -> Sample | None:
        """Makes a yes/no sample of two chains that end in the same node."""
        one, two = self._single(first, held=False), self._single(second, held=False)
        if one is None or two is None:
            return None
        paths = [one, two]
        phrases: list[str] = []
        for steps, path in zip((first, second), paths, strict=True):
            back = steps[0][1]
            hop = path["one_hops"][0]
            inner = hop["target"] if back else hop["subject"]
            for each, turned in steps:
                inner = text.step(self.world, each, inner, turned)
            phrases.append(inner)
        different = self.rng.random() < 0.5
        stated = text.compare(phrases[0], phrases[1], different, not different, self.rng)
        return {
            "path_type": "double",
            "prompt": stated.prompt.removesuffix(templates.YES_NO),
            "target": stated.answer,
            "paths": paths[0]["paths"] + paths[1]["paths"],
            "single_path1": paths[0],
            "single_path2": paths[1],
        }

    # Generality -------------------------------------------------------------------------------

    def _generality(self) -> list[tuple[float, Maker]]:
        return [
            (0.22, self._rephrased),
            (0.10, self._called_otherwise),
            (0.14, self._other_name),
            (0.15, self._reversed),
            (0.19, self._onward),
            (0.10, self._inward),
            (0.06, self._sideways),
            (0.11, self._same_entity),
        ]

    def _rephrased(self) -> Sample:
        while True:  # until it is not the very prompt of the edit
            sample = self._single([(self.edit, False)])
            if sample and sample["prompt"] != self.prompt:
                return sample

    def _called_otherwise(self) -> Sample | None:
        if not self.head.aliases:
            return None
        while True:
            sample = self._single([(self.edit, False)])
            if sample and sample["one_hops"][0]["subject"] != self.head.label:
                return sample

    def _other_name(self) -> Sample | None:
        if not self.tail.aliases or self.relation.datatype != "wikibase-item":
            return None
        return self._single([(self.edit, False)], alias_target=True)

    def _reversed(self) -> Sample | None:
        return self._single([(self.edit, True)]) if self.relation.inverse else None

    def _far(self, facts: tuple[Fact, ...], *avoid: str) -> list[Fact]:
        """Facts that are true before and after the edit and lead to none of the given nodes."""
        return [f for f in facts if f != self.true and f.tail not in avoid and f.head not in avoid]

    def _onward(self) -> Sample | None:
        facts = [f for f in self.world.by_head.get(self.edit.tail, ()) if f.tail != self.head.id]
        if not facts:
            return None
        return self._single([(self.edit, False), (self.rng.choice(facts), False)])

    def _inward(self) -> Sample | None:
        facts = self._far(self.world.by_tail.get(self.edit.head, ()), self.edit.tail)
        if not facts:
            return None
        return self._single([(self.rng.choice(facts), False), (self.edit, False)])

    def _sideways(self) -> Sample | None:
        facts = self._far(self.world.by_head[self.edit.head], self.edit.tail)
        facts = [f for f in facts if f.relation != self.edit.relation]
        if not (self.relation.inverse and facts):
            return None
        return self._single([(self.edit, True), (self.rng.choice(facts), False)])

    def _same_entity(self) -> Sample | None:
        if self.relation.datatype != "wikibase-item":
            return None
        others = self._far(self.world.by_tail.get(self.edit.tail, ()), self.edit.head)
        incoming = self._far(self.world.by_tail.get(self.edit.head, ()), self.edit.tail)
        if incoming and self.relation.inverse and self.rng.random() < 0.3:
            return self._double([(self.edit, True)], [(self.rng.choice(incoming), False)])
        if not others:
            return None
        return self._double([(self.edit, False)], [(self.rng.choice(others), False)])

    # Locality ---------------------------------------------------------------------------------

    def _locality(self) -> list[tuple[float, Maker]]:
        return [
            (0.12, lambda: self._probe("none", self._elsewhere())),
            (0.17, lambda: self._probe("head of edit", self._of_head())),
            (0.19, lambda: self._probe("property of edit", self._of_relation())),
            (0.16, lambda: self._probe("tail of edit", self._of_tail())),
            (0.50, lambda: self._probe("head of edit", self._other_values(), chain=False)),
            (0.06, self._same_elsewhere),
        ]

    def _probe(self, kind: str, facts: list[Fact], chain: bool = True) -> Sample | None:
        """Makes a locality sample from one of the facts, now and then as part of two hops."""
        if not facts:
            return None
        fact = self.rng.choice(facts)
        sample = None
        if chain and self.rng.random() < 0.3:
            onward = self._untouched(self.world.by_head.get(fact.tail, ()))
            onward = [f for f in onward if f.tail != fact.head]
            if onward:
                sample = self._single([(fact, False), (self.rng.choice(onward), False)], held=False)
        sample = sample or self._single([(fact, False)], held=False)
        return sample and {"loc_type": kind, **sample}

    def _untouched(self, facts: tuple[Fact, ...]) -> list[Fact]:
        edited = (self.edit.head, self.edit.relation, self.edit.order)
        return [f for f in facts if (f.head, f.relation, f.order) != edited
                and {f.head, f.tail} != {self.edit.head, self.edit.tail}]  # fmt: skip

    def _elsewhere(self) -> list[Fact]:
        found: list[Fact] = []
        for _ in range(20):
            fact = self.rng.choice(self.world.facts)
            ends = {fact.head, fact.tail}
            if fact.relation != self.edit.relation and not ends & {self.head.id, self.tail.id}:
                found.append(fact)
        return found

    def _of_head(self) -> list[Fact]:
        world, head = self.world, self.edit.head
        facts = self._untouched(world.by_head[head] + world.by_tail.get(head, ()))
        return [f for f in facts if f.relation != self.edit.relation]

    def _of_relation(self) -> list[Fact]:
        facts = self._untouched(self.world.by_relation[self.edit.relation])
        return [f for f in facts if f.head != self.edit.head]

    def _of_tail(self) -> list[Fact]:
        if self.relation.datatype != "wikibase-item":
            return []
        world, tail = self.world, self.edit.tail
        return self._untouched(world.by_head.get(tail, ()) + world.by_tail.get(tail, ()))

    def _other_values(self) -> list[Fact]:
        return [f for f in self._untouched(self.world.by_head[self.edit.head])
                if f.relation == self.edit.relation]  # fmt: skip

    def _same_elsewhere(self) -> Sample | None:
        pools = [self._elsewhere(), self._of_head(), self._of_relation()]
        kinds = ("none", "head of edit", "property of edit")
        place = self.rng.randrange(3)
        for fact in self.rng.sample(pools[place], min(8, len(pools[place]))):
            if self.world.relations[fact.relation].datatype != "wikibase-item":
                continue
            others = self._untouched(self.world.by_tail[fact.tail])
            others = [f for f in others if f.head != fact.head]
            if others:
                sample = self._double([(fact, False)], [(self.rng.choice(others), False)])
                return sample and {"loc_type": kinds[place], **sample}
        return None
