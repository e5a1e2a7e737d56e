"""A counterfactual editing benchmark over the world, in UniEdit's schema.

Every record edits one fact to an object of the same kind that the model does not believe, and
carries one generality sample, whose answer follows from the edit, and one locality sample, whose
answer must stay. Schema and criteria: Q. Chen et al., "UniEdit: A Unified Knowledge Editing
Benchmark for Large Language Models", https://arxiv.org/abs/2505.12345
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from errata.errors import ConfigError
from errata.world.record import Record, Sample
from errata.world.world import Fact, World

SPLITS = ("train", "val", "test", "test_domains")


def benchmark(
    world: World, split: str, variants: int | None = None, seed: int = 0
) -> dict[str, dict[str, Sample]]:
    """Builds one split of the benchmark.

    Args:
        world: The world whose facts are edited.
        split: "train", "val" and "test" (no head in common), or "test_domains" (domains that occur
            in none of the others).
        variants: Records per fact, each with another counterfactual object, generality and
            locality sample; fewer where a fact has not as many alternative objects. Default: 1,
            and 4 in the small splits of the scale "test", so that they show every criterion.
        seed: Seed of objects, prompts and samples; the facts in a split do not depend on it.

    Returns:
        Domain to record id to record.

    Raises:
        ConfigError: The split is unknown, or variants is not positive.
    """
    if split not in SPLITS:
        raise ConfigError(f"unknown split {split!r}", hint=f"use one of {', '.join(SPLITS)}")
    if variants is None:
        variants = 4 if world.scale == "test" and split != "train" else 1
    if variants < 1:
        raise ConfigError(f"variants must be positive, not {variants}")
    found: dict[str, dict[str, Sample]] = {}
    for number, fact in enumerate(world.facts):
        if world.split_of[fact.head] != split:
            continue
        objects = alternatives(world, fact)
        random.Random(f"objects/{seed}/{number}").shuffle(objects)
        records = found.setdefault(world.entities[fact.head].domain, {})
        for variant, tail in enumerate(objects[:variants]):
            rng = random.Random(f"record/{seed}/{number}/{variant}")
            records[f"{number}-{variant}"] = Record(world, fact, tail, rng).build()
    return found


def write_benchmark(
    world: World, out: Path, variants: int | None = None, seed: int = 0
) -> dict[str, int]:
    """Writes ``<split>/<domain>.json`` for every split, as UniEdit's own files are laid out.

    Args:
        world: The world whose facts are edited.
        out: Folder to write to.
        variants: Records per fact in the split "train"; the others have the default of benchmark.
        seed: Seed of objects, prompts and samples.

    Returns:
        Number of records by split.
    """
    counts: dict[str, int] = {}
    for split in SPLITS:
        folder = Path(out) / split
        folder.mkdir(parents=True, exist_ok=True)
        built = benchmark(world, split, variants if split == "train" else None, seed)
        for domain, records in built.items():
            path = folder / f"{domain.replace(' ', '_')}.json"
            path.write_text(json.dumps(records, ensure_ascii=False, indent=1) + "\n")
        counts[split] = sum(map(len, built.values()))
    return counts


def alternatives(world: World, fact: Fact) -> list[str]:
    """Returns ids of objects that the fact could plausibly be edited to, in a fixed order.

    They are of the same kind and none of them is true. For one-to-one relations they are objects
    that nothing else has, as far as there are enough of them.
    """
    relation = world.relations[fact.relation]
    true = {f.tail for f in world.by_head[fact.head] if f.relation == fact.relation}
    used = {f.tail for f in world.by_relation[fact.relation]}
    pool = [e for e in world.by_type[relation.tail_type] if e.id not in true and e.id != fact.head]
    # Named in some statement as an answer: the model has learned to say it.
    pool = [e for e in pool if e.id in world.by_tail]
    if relation.inverse:
        free = [e for e in pool if e.id not in used]
        if len(free) >= 8:
            return [e.id for e in free]
    likely = [e.id for e in pool if e.id in used]
    return likely if len(likely) >= 8 else [e.id for e in pool]
