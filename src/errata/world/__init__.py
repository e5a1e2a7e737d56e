"""The built-in world: facts, their text, an editing benchmark and a small model that knows them.

```python
from errata import world

w = world.build_world()                   # 5,752 facts, the same ones everywhere
records = world.benchmark(w, "test")      # counterfactual edits in UniEdit's schema
folder = world.pocket_path()              # a Qwen3 model that knows those facts
```

Only build and measure need torch; it is imported when they are called.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.world.bench import SPLITS, benchmark, write_benchmark
from errata.world.builder import SCALES, build_world
from errata.world.shipped import demo_case, is_shipped, knows_world, pocket_path, real_case
from errata.world.statements import Corpus, Statement, corpus, texts
from errata.world.world import Entity, Fact, Hop, Relation, World

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "SCALES", "SPLITS", "Corpus", "Entity", "Fact", "Hop", "Relation", "Statement", "World",
    "benchmark", "build", "build_world", "corpus", "demo_case", "is_shipped", "knows_world",
    "measure", "pocket_path", "real_case", "texts", "write_benchmark",
]  # fmt: skip


def build(
    out: Path,
    scale: str = "pocket",
    seed: int = 0,
    steps: int | None = None,
    resume: bool = False,
    device: str | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Trains a model on the built-in world and writes it as a transformers folder.

    A run that was killed continues with ``resume=True`` from its last checkpoint and ends with the
    same weights, bit for bit, as one that was never stopped (same machine and thread count).

    Args:
        out: Folder for the model, its tokenizer, card.json and, until it is done, checkpoints.
        scale: "pocket" or "test".
        seed: Seed of the world, the initial weights and the text.
        steps: Optimiser steps; the recipe's number by default.
        resume: Continue from the last checkpoint in ``out``, if there is one.
        device: torch device; by default a GPU where there is one.
        progress: Called every 50 steps with a dict of step, steps, loss and seconds.

    Returns:
        The card: scale, seed, recipe, measured knowledge, parameters, seconds.

    Raises:
        ConfigError: The scale is unknown or the number of steps is not positive.
        RunError: ``out`` holds a checkpoint of another configuration, or the loss is not finite.
    """
    from errata.world import train

    return train.build(out, scale, seed, steps, resume, device, progress)


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    world: World,
    limit: int | None = None,
) -> dict[str, Any]:
    """Measures what a model knows of the world from isolated prompts that its text never contained.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        world: The world that is asked about.
        limit: Questions per class, drawn at random; without it, all.

    Returns:
        Rates of whole answers, in [0, 1]: "direct_heldout", "alias", "hop_stated", "hop_unstated"
        and further classes; "counts" has the number of questions behind each.
    """
    from errata.world.knowledge import measure as run

    return run(model, tokenizer, world, limit)
