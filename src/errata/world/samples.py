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
from errata.world.sample_facts import (
    NEIGHBOURS,
    RECORDS,
    drawn,
    eligible,
    leading_on,
    new_object,
    open_templates,
    others,
    prompts,
    relation_phrase,
    spread,
    still,
)
from errata.world.sample_questions import (
    knowedit,
    locft,
    qaedit,
    ultraeditbench,
    wikibigedit,
)
from errata.world.sample_texts import akew, rippleedits
from errata.world.world import Fact, World

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
    shared = [fact for fact in eligible(world) if len(others(world, fact)) >= NEIGHBOURS]
    chosen = spread(world, shared, RECORDS)
    formats: dict[str, Callable[[World, int, Fact], Json]] = {
        "counterfact.json": _counterfact,
        "zsre.json": _zsre,
        "rep.json": _rep,
        "qaedit.json": qaedit,
        "wikibigedit.json": wikibigedit,
        "locft.json": locft,
        "knowedit.json": knowedit,
        "ultraeditbench.json": ultraeditbench,
        "rippleedits.json": rippleedits,
        "akew.json": akew,
    }
    files: dict[str, tuple[str, int]] = {}
    for name, make in formats.items():
        facts = chosen
        if name == "rep.json":  # rephrased subjects are mostly other names
            facts = spread(world, [f for f in shared if world.entities[f.head].aliases], RECORDS)
        if name in ("knowedit.json", "wikibigedit.json", "rippleedits.json"):
            facts = leading_on(world, [f for f in eligible(world) if others(world, f)], RECORDS)
        if name == "rippleedits.json":  # its records are longer
            facts = facts[: RECORDS // 2]
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


# ---------------------------------------------------------------------- formats


def _counterfact(world: World, number: int, fact: Fact) -> Json:
    """ROME's nested form."""
    draw = drawn("counterfact", number)
    new, true = world.entities[new_object(world, fact, number)], world.entities[fact.tail]
    first, *rest = draw.sample(open_templates(world.relations[fact.relation]), 3)
    label = world.entities[fact.head].label
    same = draw.sample(others(world, fact), NEIGHBOURS)
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
        "neighborhood_prompts": [prompts(world, f, 1, draw)[0] for f in same],
        "attribute_prompts": [prompts(world, f, 1, draw)[0] for f in become[:NEIGHBOURS]],
        "generation_prompts": prompts(world, fact, 2, draw),
    }


def _zsre(world: World, number: int, fact: Fact) -> Json:
    """MEND's form in words of the text, to which the usual suffix does not belong (`suffix=`)."""
    draw = drawn("zsre", number)
    subject, phrase = world.entities[fact.head].label, relation_phrase(world, fact)
    new, true = (
        world.entities[new_object(world, fact, number)].label,
        world.entities[fact.tail].label,
    )
    kept, answer = still(world, fact, draw)
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
    draw = drawn("rep", number)
    form = draw.choice(open_templates(world.relations[fact.relation]))
    same = draw.sample(others(world, fact), NEIGHBOURS)
    head = world.entities[fact.head]
    before = text.fill(form, world, fact, "{}").partition("{}")[0]
    true = world.entities[fact.tail].label
    return {
        "case_id": number,
        "prompt": text.fill(form, world, fact, head.label),
        "subject": head.label,
        "target_new": world.entities[new_object(world, fact, number)].label,
        "target_true": true,
        "rephrase_prompt": list(rephrase.paraphrases(world, fact)),
        "locality_prompt": [prompts(world, f, 1, draw)[0] for f in same],
        "locality_ground_truth": true,
        "subject_rephrase": list(rephrase.subject_forms(head, before)),
    }


def _edit(world: World, number: int, fact: Fact) -> Json:
    """A line of errata's edits."""
    return {
        "prompt": prompts(world, fact, 1, drawn("jsonl", number))[0],
        "target": world.entities[new_object(world, fact, number)].label,
        "subject": world.entities[fact.head].label,
        "target_true": world.entities[fact.tail].label,
        "id": str(number),
    }


def _case(world: World, number: int, fact: Fact) -> Json:
    """A line of errata's cases: the edit, two other wordings, what else is known of the subject."""
    draw = drawn("probes", number)
    edit = _edit(world, number, fact)
    told = [p for p in rephrase.paraphrases(world, fact) if p != edit["prompt"]]
    kept = [*rephrase.of_subject(world, fact)[:1], still(world, fact, draw)]
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
    firsts = [fact for fact in eligible(world) if fact in pairs]
    chosen = spread(world, firsts, RECORDS // 2)
    return [_chain(world, number, f, pairs[f]) for number, f in enumerate(chosen)]


def _ends(world: World, first: Fact, second: Fact) -> list[Fact]:
    """Second hops from the objects that the first hop could be edited to, with other answers."""
    heads = set(alternatives(world, first))
    others = world.by_relation[second.relation]
    return [f for f in others if f.head in heads and f.tail not in (second.tail, first.head)]


def _chain(world: World, number: int, first: Fact, second: Fact) -> Json:
    draw = drawn("mquake", number)
    onward = draw.choice(_ends(world, first, second))
    edited = Fact(first.head, first.relation, onward.head)
    relation, entities = world.relations[first.relation], world.entities
    new, true = entities[onward.head], entities[first.tail]
    label = entities[first.head].label
    form = draw.choice(open_templates(relation))
    inner = text.step(world, first, label)
    spec = world.relations[second.relation].spec
    asked = draw.sample(templates.nested(spec, world.nouns, False, False), 3)
    phrase = relation_phrase(world, second)
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
                "question": f"What is the {relation_phrase(world, first)} of {label}?",
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
        "question": f"What is the {relation_phrase(world, fact)} of {label}?",
        "cloze": prompts(world, fact, 1, draw)[0],
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
