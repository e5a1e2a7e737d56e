"""What a model knows of the world: whole answers, generated greedily from isolated prompts."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from errata.world import statements as text
from errata.world.statements import Statement
from errata.world.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def questions(world: World, seed: int = 0) -> dict[str, list[Statement]]:
    """Returns the questions of every class of knowledge, none of which occurs in the text.

    "direct_known" and "hop_stated" state known facts with known templates and may occur in it;
    they are there for comparison.

    Args:
        world: The world that is asked about.
        seed: Seed for the choice of templates.
    """
    rng = random.Random(f"questions/{seed}")
    made: dict[str, list[Statement]] = {"direct_heldout": [], "direct_known": [], "alias": []}
    for fact in world.facts:
        head = world.entities[fact.head]
        made["direct_heldout"].append(text.direct(world, fact, rng, True, head.label))
        made["direct_known"].append(text.direct(world, fact, rng, False, head.label))
        if head.aliases:
            alias = rng.choice(head.aliases)
            made["alias"].append(text.direct(world, fact, rng, True, alias))
    hops = [hop for hop in world.hops if hop in world.unstated_hops]
    made["hop_unstated"] = [text.hop(world, hop, rng) for hop in hops]
    stated = [hop for hop in world.hops if hop not in world.unstated_hops]
    made["hop_stated"] = [text.hop(world, hop, rng) for hop in rng.sample(stated, len(hops))]
    inverse = [f for f in world.facts if world.relations[f.relation].inverse]
    made["reverse"] = [text.reverse(world, fact, rng, held=True) for fact in inverse]
    named = [f for f in world.facts if world.entities[f.tail].aliases]
    made["other_name"] = [text.other_name(world, fact, rng, held=True) for fact in named]
    source = text.Corpus(world, seed=seed + 1_000_003)
    block = text.MIX["compare"]
    made["compare"] = [
        s for s in (source[n] for n in range(100 * (400 // block))) if s.answer in ("Yes", "No")
    ]
    return made


def correct(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    statements: list[Statement],
    batch: int = 64,
) -> list[bool]:
    """Tells for each prompt whether greedy generation gives the whole answer and then stops.

    Greedy decoding yields the answer exactly if every token of it, and of the full stop behind
    it, is the arg max given those before: one forward pass per batch tells that.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        statements: Prompts and answers.
        batch: Prompts per forward pass.

    Returns:
        One truth value per statement, in the order given.
    """
    import torch

    prompts = tokenizer([s.prompt for s in statements])["input_ids"]
    wholes = tokenizer([s.text for s in statements])["input_ids"]
    order = sorted(range(len(statements)), key=lambda i: len(wholes[i]))
    results = [False] * len(statements)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        width = max(len(wholes[i]) for i in chosen)
        ids = torch.zeros(len(chosen), width, dtype=torch.long)
        target = torch.full((len(chosen), width), -100)
        for row, i in enumerate(chosen):
            whole, begin = torch.tensor(wholes[i]), len(prompts[i])
            ids[row, : len(whole)] = whole
            target[row, begin - 1 : len(whole) - 1] = whole[begin:]
        rows, places = (target >= 0).nonzero(as_tuple=True)
        with torch.no_grad():
            # Causal attention: padding on the right changes nothing before it.
            hidden = model.model(ids.to(model.device)).last_hidden_state
            logits = model.lm_head(hidden[rows.to(model.device), places.to(model.device)])
        wrong = logits.argmax(-1).cpu() != target[rows, places]
        missed = set(rows[wrong].tolist())
        for row, i in enumerate(chosen):
            results[i] = row not in missed
    return results


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    world: World,
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Measures what a model knows, as rates of whole answers in [0, 1].

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer.
        world: The world that is asked about.
        limit: Questions per class, drawn at random; without it, all.
        seed: Seed for templates and the draw.

    Returns:
        "direct_heldout", "alias", "hop_stated", "hop_unstated" and other classes (see questions);
        "counts" has the number of questions behind each.
    """
    scores: dict[str, Any] = {}
    counts: dict[str, int] = {}
    for kind, asked in questions(world, seed).items():
        if limit is not None and len(asked) > limit:
            asked = random.Random(f"limit/{kind}/{seed}").sample(asked, limit)
        hits = correct(model, tokenizer, asked)
        scores[kind] = sum(hits) / max(1, len(hits))
        counts[kind] = len(hits)
    return {**scores, "counts": counts}
