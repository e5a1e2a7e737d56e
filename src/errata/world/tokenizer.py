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
    """Returns text that contains every word and template of the world, twice each.

    Held-out templates belong to the vocabulary (their words do, not their sentences), so that
    they are not split into pieces that the model has never seen.
    """
    rng = random.Random("lexicon")
    lines: list[str] = []
    for entity in world.entities.values():
        lines += [f" {name} ." for name in (entity.label, *entity.aliases)]
    for relation in world.relations.values():
        fact = world.by_relation[relation.id][0]
        for template in relation.templates + relation.heldout:
            lines.append(text.fill(template, world, fact, "x"))
        for held in (False, True):
            for make in (templates.reverse, templates.other_name):
                for template in make(relation.spec, world.nouns, held):
                    lines.append(text.fill(template, world, fact, "x"))
            lines += templates.nested(relation.spec, world.nouns, held, False)
    lines += templates.NAMING
    lines += [text.compare("x", "y", d, d, rng).text for d in (True, False) for _ in range(4)]
    lines += [templates.YES_NO + " Yes. No."]
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
