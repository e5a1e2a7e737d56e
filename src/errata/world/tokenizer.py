"""The pocket model's tokenizer: byte-level BPE in which every word of the world is one token."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

from errata.world import statements as text
from errata.world import templates
from errata.world.world import World

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

EOS = "<|endoftext|>"
VOCABULARY = 6000  # never reached: merging stops when every word is whole


def lexicon(world: World) -> list[str]:
    """Returns text that contains every word of the pretraining text, twice each.

    Held-out templates are made of the same words, so that none of them is ever split into pieces
    that the model has not met.
    """
    rng = random.Random("lexicon")
    lines = [templates.YES_NO + " Yes. No."]
    for entity in world.entities.values():
        lines += [f" {name} ." for name in (entity.label, *entity.aliases)]
        if entity.id in world.by_head:  # may begin a sentence
            lines.append(f" {templates.sentence(entity.label)} .")
    for relation in world.relations.values():
        fact = world.by_relation[relation.id][0]
        spec = relation.spec
        lines += [text.fill(template, world, fact, "x") for template in relation.templates]
        for make in (templates.reverse, templates.other_name):
            lines += [text.fill(t, world, fact, "x") for t in make(spec, world.nouns, False)]
        lines += [t.format(x="x", p="y") for t in templates.nested(spec, world.nouns, False, False)]
        lines += [t.format(a="x", h=world.nouns[spec.head]) for t in templates.NAMING]
    lines += [text.compare("x", "y", d, d, rng).text for d in (True, False) for _ in range(8)]
    return [line for line in lines for _ in range(2)]


def train(world: World) -> PreTrainedTokenizerFast:
    """Trains the tokenizer.

    Args:
        world: The world whose words it should know.

    Returns:
        A fast tokenizer without BOS, with one special token for end of text and padding.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    # A prefix space makes "France" at the start of a prompt the token it is elsewhere; the decoder
    # takes that space away again.
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    core.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        special_tokens=[EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(lexicon(world), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token=EOS, pad_token=EOS, model_max_length=256
    )


def save(tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json."""
    tokenizer.save_pretrained(out)
