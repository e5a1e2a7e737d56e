"""Sample records of QAEdit, WikiBigEdit, LocFT, KnowEdit and UltraEditBench."""

from __future__ import annotations

from typing import Any

from errata.world import rephrase
from errata.world.sample_facts import (
    NEIGHBOURS,
    drawn,
    new_object,
    onward,
    open_templates,
    others,
    prompts,
    relation_phrase,
    still,
)
from errata.world.statements import fill
from errata.world.world import Fact, World

Json = dict[str, Any]


def _labels(world: World, number: int, fact: Fact) -> tuple[str, str, str]:
    """Subject, new and true answer."""
    new = new_object(world, fact, number)
    entities = world.entities
    return entities[fact.head].label, entities[new].label, entities[fact.tail].label


def _question(world: World, fact: Fact, subject: str) -> str:
    return f"Question: what is the {relation_phrase(world, fact)} of {subject}? Answer:"


def qaedit(world: World, number: int, fact: Fact) -> Json:
    """A record of QAEdit."""
    draw = drawn("qaedit", number)
    subject, new, _ = _labels(world, number, fact)
    kept = [still(world, fact, draw) for _ in range(NEIGHBOURS)]
    return {
        "id": number,
        "source": "world",
        "prompt": _question(world, fact, subject),
        "target": new,
        "subject": subject,
        "rephrase": f"Tell me the {relation_phrase(world, fact)} of {subject}. Answer:",
        "locality": [{"loc": prompt, "loc_ans": answer} for prompt, answer in kept],
    }


def wikibigedit(world: World, number: int, fact: Fact) -> Json:
    """A record of WikiBigEdit; a second hop where the new answer leads on."""
    draw = drawn("wikibigedit", number)
    subject, new, _ = _labels(world, number, fact)
    kept, answer = still(world, fact, draw)
    hop = onward(world, fact, number, draw)
    return {
        "tag": "update",
        "subject": subject,
        "update": _question(world, fact, subject),
        "rephrase": f"Tell me the {relation_phrase(world, fact)} of {subject}. Answer:",
        "personas": prompts(world, fact, 1, draw)[0],
        "ans": new,
        "loc": kept,
        "loc_ans": answer,
        "mhop": hop and hop[0],
        "mhop_ans": hop and hop[1],
    }


def locft(world: World, number: int, fact: Fact) -> Json:
    """A record of LocFT's flat form."""
    draw = drawn("locft", number)
    subject, new, _ = _labels(world, number, fact)
    first, second = prompts(world, fact, 2, draw)
    kept, answer = still(world, fact, draw)
    return {
        "prompt": first,
        "target_new": new,
        "subject": subject,
        "rephrase_prompt": second,
        "locality_prompt": kept,
        "locality_ground_truth": answer,
    }


def knowedit(world: World, number: int, fact: Fact) -> Json:
    """A record of KnowEdit's form of ZsRE, with answers as texts, lists and lists of aliases."""
    draw = drawn("knowedit", number)
    subject, new, true = _labels(world, number, fact)
    first, second = prompts(world, fact, 2, draw)
    portability: dict[str, list[Json]] = {}
    hop = onward(world, fact, number, draw)
    if hop is not None:
        portability["Reasoning"] = [{"prompt": hop[0], "ground_truth": [hop[1]]}]
    names = world.entities[fact.head].aliases
    if names:
        form = draw.choice(open_templates(world.relations[fact.relation]))
        asked = fill(form, world, fact, draw.choice(names))
        portability["Subject_Aliasing"] = [{"prompt": asked, "ground_truth": new}]
    same = draw.choice(others(world, fact))
    locality = {
        "Relation_Specificity": [
            {"prompt": prompt, "ground_truth": [[answer]]}
            for prompt, answer in rephrase.of_subject(world, fact)[:1]
        ],
        "Forgetfulness": [{"prompt": prompts(world, same, 1, draw)[0], "ground_truth": [true]}],
    }
    return {
        "subject": subject,
        "prompt": first,
        "target_new": new,
        "ground_truth": [true],
        "rephrase_prompt": second,
        "portability": portability,
        "locality": {name: asked for name, asked in locality.items() if asked},
    }


def ultraeditbench(world: World, number: int, fact: Fact) -> Json:
    """A record of UltraEditBench."""
    draw = drawn("ultraeditbench", number)
    subject, new, _ = _labels(world, number, fact)
    kept, answer = still(world, fact, draw)
    return {
        "case_id": number,
        "prompt": _question(world, fact, subject),
        "subject": subject,
        "ans": new,
        "rephrase_prompt": f"Tell me the {relation_phrase(world, fact)} of {subject}. Answer:",
        "loc": kept,
        "loc_ans": answer,
    }
