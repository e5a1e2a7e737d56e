"""Small files in the formats of published data sets, about facts of the built-in world.

Every command that reads a data set can be tried on them without a download, on the shipped model,
which knows the facts. They edit heads of the splits `val`, `test` and `test_domains` only: no
network that errata ships was trained on them.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from errata.world import rephrase, templates
from errata.world import statements as text
from errata.world.bench import alternatives, benchmark
from errata.world.world import Fact, Relation, World

RECORDS = 24
"""Records per file; MQuAKE's, which are longer, and UniEdit's are half as many."""

NEIGHBOURS = 5
"""Other subjects with the same true answer, and prompts per record that must not move."""

Json = dict[str, Any]


def write_samples(world: World, out: Path) -> dict[str, int]:
    """Writes a sample file per format.

    Args:
        world: The world whose facts are edited.
        out: Folder to write to.

    Returns:
        Number of records by file, its name relative to `out`.
    """
    counts: dict[str, int] = {}
    for name, (content, count) in sample_files(world).items():
        path = Path(out) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8", newline="\n")
        counts[name] = count
    return counts


def sample_files(world: World) -> dict[str, tuple[str, int]]:
    """Returns content and number of records of every sample file by its name."""
    shared = [fact for fact in _facts(world) if len(_others(world, fact)) >= NEIGHBOURS]
    chosen = _spread(world, shared, RECORDS)
    formats: dict[str, Callable[[World, int, Fact], Json]] = {
        "counterfact.json": _counterfact,
        "zsre.json": _zsre,
        "rep.json": _rep,
    }
    files: dict[str, tuple[str, int]] = {}
    for name, make in formats.items():
        facts = chosen
        if name == "rep.json":  # rephrased subjects are mostly other names
            facts = _spread(world, [f for f in shared if world.entities[f.head].aliases], RECORDS)
        files[name] = _list([make(world, number, fact) for number, fact in enumerate(facts)])
    files["mquake.json"] = _list(_mquake(world))
    for domain, records in _uniedit(world).items():
        files[f"uniedit/test/{domain.replace(' ', '_')}.json"] = (
            json.dumps(records, ensure_ascii=False) + "\n",
            len(records),
        )
    files["cases.jsonl"] = _lines(_case(world, number, fact) for number, fact in enumerate(chosen))
    files["edits.jsonl"] = _lines(_edit(world, number, fact) for number, fact in enumerate(chosen))
    return files


def _list(records: list[Json]) -> tuple[str, int]:
    """A JSON list, one record per line."""
    lines = ",\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    return f"[\n{lines}\n]\n", len(records)


def _lines(records: Iterable[Json]) -> tuple[str, int]:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    return "".join(lines), len(lines)


# ---------------------------------------------------------------------- which facts


def _facts(world: World) -> list[Fact]:
    """Facts with one true answer, an entity, about heads that no shipped network was trained on."""
    return [
        fact
        for fact in world.facts
        if world.split_of[fact.head] != "train"
        and world.relations[fact.relation].single_value
        and world.relations[fact.relation].datatype == "wikibase-item"
    ]


def _spread(world: World, facts: list[Fact], count: int) -> list[Fact]:
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


def _others(world: World, fact: Fact) -> list[Fact]:
    """The same answer for other subjects: CounterFact's neighbourhood."""
    return [
        other
        for other in world.by_tail[fact.tail]
        if other.relation == fact.relation and other.head != fact.head
    ]


def _draw(kind: str, number: int) -> random.Random:
    return random.Random(f"samples/{kind}/{number}")


def _new(world: World, fact: Fact, number: int) -> str:
    """The object that a fact is edited to, by its id; the same in all formats."""
    return _draw("target", number).choice(alternatives(world, fact))


# ---------------------------------------------------------------------- wordings


def _open(relation: Relation) -> list[str]:
    """Templates of the text in which the subject stands inside, so that it keeps its spelling."""
    return [t for t in relation.templates if not t.startswith("{s}") and "question:" not in t]


def _prompts(world: World, fact: Fact, count: int, draw: random.Random) -> list[str]:
    """Prompts for a fact in different words that the text has."""
    label = world.entities[fact.head].label
    forms = draw.sample(_open(world.relations[fact.relation]), count)
    return [text.fill(form, world, fact, label) for form in forms]


def _phrase(world: World, fact: Fact) -> str:
    return templates.phrase(world.relations[fact.relation].spec, fact.order)


def _still(world: World, fact: Fact, draw: random.Random) -> tuple[str, str]:
    """A prompt and its answer about another subject, which no edit should move."""
    pool = [f for f in world.facts if world.split_of[f.head] == "train" and f.tail != fact.tail]
    other = draw.choice(pool)
    return _prompts(world, other, 1, draw)[0], world.entities[other.tail].label


# ---------------------------------------------------------------------- formats


def _counterfact(world: World, number: int, fact: Fact) -> Json:
    """ROME's nested form."""
    draw = _draw("counterfact", number)
    new, true = world.entities[_new(world, fact, number)], world.entities[fact.tail]
    first, *rest = draw.sample(_open(world.relations[fact.relation]), 3)
    label = world.entities[fact.head].label
    same = draw.sample(_others(world, fact), NEIGHBOURS)
    become = [f for f in world.by_tail[new.id] if f.relation == fact.relation]
    return {
        "case_id": number,
        "requested_rewrite": {
            "prompt": text.fill(first, world, fact, "{}"),
            "relation_id": fact.relation,
            "target_new": {"str": new.label, "id": new.id},
            "target_true": {"str": true.label, "id": true.id},
            "subject": label,
        },
        "paraphrase_prompts": [text.fill(form, world, fact, label) for form in rest],
        "neighborhood_prompts": [_prompts(world, f, 1, draw)[0] for f in same],
        "attribute_prompts": [_prompts(world, f, 1, draw)[0] for f in become[:NEIGHBOURS]],
        "generation_prompts": _prompts(world, fact, 2, draw),
    }


def _zsre(world: World, number: int, fact: Fact) -> Json:
    """MEND's form in words of the text, to which the usual suffix does not belong (`suffix=`)."""
    draw = _draw("zsre", number)
    subject, phrase = world.entities[fact.head].label, _phrase(world, fact)
    new, true = world.entities[_new(world, fact, number)].label, world.entities[fact.tail].label
    kept, answer = _still(world, fact, draw)
    question = f"Question: what is the {phrase} of {subject}? Answer:"
    return {
        "subject": subject,
        "src": question,
        "pred": true,
        "rephrase": f"Tell me the {phrase} of {subject}. Answer:",
        "alt": new,
        "answers": [true],
        "loc": kept,
        "loc_ans": answer,
        "cond": f"{true} >> {new} || {question}",
    }


def _rep(world: World, number: int, fact: Fact) -> Json:
    """REP's robustness data."""
    draw = _draw("rep", number)
    form = draw.choice(_open(world.relations[fact.relation]))
    same = draw.sample(_others(world, fact), NEIGHBOURS)
    head = world.entities[fact.head]
    before = text.fill(form, world, fact, "{}").partition("{}")[0]
    true = world.entities[fact.tail].label
    return {
        "case_id": number,
        "prompt": text.fill(form, world, fact, head.label),
        "subject": head.label,
        "target_new": world.entities[_new(world, fact, number)].label,
        "target_true": true,
        "rephrase_prompt": list(rephrase.paraphrases(world, fact)),
        "locality_prompt": [_prompts(world, f, 1, draw)[0] for f in same],
        "locality_ground_truth": true,
        "subject_rephrase": list(rephrase.subject_forms(head, before)),
    }


def _edit(world: World, number: int, fact: Fact) -> Json:
    """A line of errata's edits."""
    return {
        "prompt": _prompts(world, fact, 1, _draw("jsonl", number))[0],
        "target": world.entities[_new(world, fact, number)].label,
        "subject": world.entities[fact.head].label,
        "target_true": world.entities[fact.tail].label,
        "id": str(number),
    }


def _case(world: World, number: int, fact: Fact) -> Json:
    """A line of errata's cases: the edit, two other wordings, what else is known of the subject."""
    draw = _draw("probes", number)
    edit = _edit(world, number, fact)
    told = [p for p in rephrase.paraphrases(world, fact) if p != edit["prompt"]]
    kept = [*rephrase.of_subject(world, fact)[:1], _still(world, fact, draw)]
    asked: list[Json] = [
        {"prompt": prompt, "target": edit["target"], "kind": "generality", "name": "rephrase",
         "subject": edit["subject"]}
        for prompt in draw.sample(told, 2)
    ]  # fmt: skip
    asked += [
        {"prompt": prompt, "target": answer, "kind": "locality", "name": "other fact"}
        for prompt, answer in kept
    ]
    return {"id": str(number), "edits": [edit], "probes": asked}


def _mquake(world: World) -> list[Json]:
    """MQuAKE's counterfactual form: the first hop of two is edited."""
    pairs: dict[Fact, Fact] = {}
    for hop in world.hops:
        first, second = hop.first, hop.second
        if hop.back or second.tail == first.tail or first in pairs:
            continue
        if any(not world.relations[f.relation].single_value for f in (first, second)):
            continue
        if _ends(world, first, second):
            pairs[first] = second
    firsts = [fact for fact in _facts(world) if fact in pairs]
    chosen = _spread(world, firsts, RECORDS // 2)
    return [_chain(world, number, f, pairs[f]) for number, f in enumerate(chosen)]


def _ends(world: World, first: Fact, second: Fact) -> list[Fact]:
    """Second hops from the objects that the first hop could be edited to, with other answers."""
    heads = set(alternatives(world, first))
    others = world.by_relation[second.relation]
    return [f for f in others if f.head in heads and f.tail not in (second.tail, first.head)]


def _chain(world: World, number: int, first: Fact, second: Fact) -> Json:
    draw = _draw("mquake", number)
    onward = draw.choice(_ends(world, first, second))
    edited = Fact(first.head, first.relation, onward.head)
    relation, entities = world.relations[first.relation], world.entities
    new, true = entities[onward.head], entities[first.tail]
    label = entities[first.head].label
    form = draw.choice(_open(relation))
    inner = text.step(world, first, label)
    spec = world.relations[second.relation].spec
    asked = draw.sample(templates.nested(spec, world.nouns, False, False), 3)
    phrase = _phrase(world, second)
    old_chain, new_chain = (first, second), (edited, onward)
    answer, new_answer = entities[second.tail], entities[onward.tail]
    return {
        "case_id": number,
        "requested_rewrite": [
            {
                "prompt": text.fill(form, world, first, "{}"),
                "relation_id": first.relation,
                "target_new": {"str": new.label, "id": new.id},
                "target_true": {"str": true.label, "id": true.id},
                "subject": label,
                "question": f"What is the {_phrase(world, first)} of {label}?",
            }
        ],
        "questions": [templates.sentence(t.format(x=inner, p=phrase)) for t in asked],
        "answer": answer.label,
        "answer_alias": list(answer.aliases),
        "new_answer": new_answer.label,
        "new_answer_alias": list(new_answer.aliases),
        "single_hops": [_hop(world, fact, draw) for fact in old_chain],
        "new_single_hops": [_hop(world, fact, draw) for fact in new_chain],
        "orig": {
            "triples": [_ids(fact) for fact in old_chain],
            "triples_labeled": [_labels(world, fact) for fact in old_chain],
            "new_triples": [_ids(fact) for fact in new_chain],
            "new_triples_labeled": [_labels(world, fact) for fact in new_chain],
            "edit_triples": [_ids(edited)],
        },
    }


def _hop(world: World, fact: Fact, draw: random.Random) -> Json:
    label, tail = world.entities[fact.head].label, world.entities[fact.tail]
    return {
        "question": f"What is the {_phrase(world, fact)} of {label}?",
        "cloze": _prompts(world, fact, 1, draw)[0],
        "answer": tail.label,
        "answer_alias": list(tail.aliases),
    }


def _ids(fact: Fact) -> list[str]:
    return [fact.head, fact.relation, fact.tail]


def _labels(world: World, fact: Fact) -> list[str]:
    relation = world.relations[fact.relation].label
    return [world.entities[fact.head].label, relation, world.entities[fact.tail].label]


def _uniedit(world: World) -> Mapping[str, Mapping[str, Json]]:
    """Some records of the world's benchmark, of all domains of its split `test` in turn."""
    built = benchmark(world, "test")
    queues = {domain: list(records.items()) for domain, records in sorted(built.items())}
    taken: dict[str, dict[str, Json]] = {domain: {} for domain in queues}
    for turn in range(RECORDS // 2):
        for domain in queues:
            if sum(map(len, taken.values())) == RECORDS // 2:
                return {domain: records for domain, records in taken.items() if records}
            if turn < len(queues[domain]):
                key, record = queues[domain][turn]
                taken[domain][key] = record
    return {domain: records for domain, records in taken.items() if records}
