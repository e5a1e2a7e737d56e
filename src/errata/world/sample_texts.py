"""Sample records of RippleEdits and AKEW: facts with what follows from them, and as paragraphs."""

from __future__ import annotations

import random
from typing import Any

from errata.world import statements as text
from errata.world.sample_facts import (
    drawn,
    new_object,
    onward,
    open_templates,
    others,
    prompts,
    relation_phrase,
)
from errata.world.world import Fact, World

Json = dict[str, Any]


def rippleedits(world: World, number: int, fact: Fact) -> Json:
    """A record of RippleEdits; conditions are facts that pocket was taught."""
    draw = drawn("rippleedits", number)
    subject = world.entities[fact.head]
    edited = Fact(fact.head, fact.relation, new_object(world, fact, number))
    prompt = _statement(world, fact, subject.label, draw)
    tests: dict[str, list[Json]] = {
        name: []
        for name in (
            "Relation_Specificity", "Logical_Generalization", "Subject_Aliasing",
            "Compositionality_I", "Compositionality_II", "Forgetfulness",
        )
    }  # fmt: skip
    for other in [f for f in world.by_head[fact.head] if f != fact][:2]:
        query = _query(world, other, _statement(world, other, subject.label, draw))
        tests["Relation_Specificity"].append(_test([query], [query]))
    if subject.aliases:
        alias = draw.choice(subject.aliases)
        asked = _query(world, edited, _statement(world, fact, alias, draw), phrase=True)
        tests["Subject_Aliasing"].append(_test([asked], []))
    hop = onward(world, fact, number, draw)
    if hop is not None:
        second = next(f for f in world.by_head[edited.tail]
                      if world.entities[f.tail].label == hop[1])  # fmt: skip
        known = _query(world, second, prompts(world, second, 1, draw)[0])
        asked = _query(world, second, hop[0], phrase=True) | {"subject_id": fact.head}
        tests["Compositionality_I"].append(_test([asked], [known]))
    same = draw.choice(others(world, fact))
    query = _query(world, same, prompts(world, same, 1, draw)[0])
    tests["Forgetfulness"].append(_test([query], [query]))
    return {
        "example_type": "popular",
        "edit": {
            **_told(world, edited, prompt),
            "previous_fact": _told(world, fact, prompt),
        },
        **tests,
    }


def _statement(world: World, fact: Fact, name: str, draw: random.Random) -> str:
    """A prompt for a fact that ends in its verb, as RippleEdits' do."""
    forms = open_templates(world.relations[fact.relation])
    ending = [form for form in forms if form.endswith(" of {s} is")] or forms
    return text.fill(draw.choice(ending), world, fact, name)


def _told(world: World, fact: Fact, prompt: str) -> Json:
    return {
        "prompt": f"{prompt} {world.entities[fact.tail].label}.",
        "subject_id": fact.head,
        "relation": _relation(world, fact),
        "target_id": fact.tail,
    }


def _relation(world: World, fact: Fact) -> str:
    return relation_phrase(world, fact).upper().replace(" ", "_")


def _query(world: World, fact: Fact, prompt: str, phrase: bool = False) -> Json:
    tail = world.entities[fact.tail]
    return {
        "prompt": prompt,
        "answers": [{"value": tail.label, "aliases": list(tail.aliases)}],
        "query_type": "regular",
        "subject_id": fact.head,
        "relation": _relation(world, fact),
        "target_ids": [fact.tail],
        "phrase": prompt if phrase else None,
    }


def _test(queries: list[Json], conditions: list[Json]) -> Json:
    return {"test_queries": queries, "test_condition": "OR", "condition_queries": conditions}


def akew(world: World, number: int, fact: Fact) -> Json:
    """A record of AKEW's CounterFact: the edited fact, and a paragraph about its subject."""
    draw = drawn("akew", number)
    edited = Fact(fact.head, fact.relation, new_object(world, fact, number))
    relation, entities = world.relations[fact.relation], world.entities
    label, new, true = entities[fact.head].label, entities[edited.tail], entities[fact.tail]
    first, second, third = draw.sample(open_templates(relation), 3)
    beside = [f for f in world.by_head[fact.head] if f.relation != fact.relation][:2]
    told = [(text.fill(first, world, fact, label), new.label)]
    told += [(prompts(world, f, 1, draw)[0], entities[f.tail].label) for f in beside]
    return {
        "case_id": number,
        "requested_rewrite": {
            "prompt": text.fill(first, world, fact, "{}"),
            "prompt_full": text.fill(second, world, fact, label),
            "subject": label,
            "relation_id": fact.relation,
            "target_new": {"str": new.label, "id": new.id},
            "target_true": {"str": true.label, "id": true.id},
            "fact_new": f"{text.fill(first, world, fact, label)} {new.label}.",
            "fact_new_uns": " ".join(f"{prompt} {answer}." for prompt, answer in told),
            "unsfact_triplets_GPT": [
                {"subject": label, "prompt": prompt.replace(label, "{}", 1), "target": answer}
                for prompt, answer in told
            ],
        },
        "paraphrase_prompts": [text.fill(third, world, fact, label)],
        "neighborhood_prompts": [
            prompts(world, f, 1, draw)[0] for f in draw.sample(others(world, fact), 2)
        ],
    }
