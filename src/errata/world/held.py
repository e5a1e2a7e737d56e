"""Sentences of the world that no text of its models holds."""

from __future__ import annotations

import random
from collections.abc import Iterator

SENTENCES = 200
"""Sentences of the built-in world that perplexity is measured on."""


def world_sentences() -> Iterator[str]:
    """Yield held-out sentences of the pocket model's world."""
    from errata.world import build_world
    from errata.world.statements import direct

    world = build_world()
    facts = [fact for fact in world.facts if world.split_of[fact.head] in {"train", "val"}]
    rng = random.Random("perplexity")
    for fact in rng.sample(facts, SENTENCES):
        yield direct(world, fact, rng, held=True).text
