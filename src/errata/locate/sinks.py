"""Attention sinks: first positions whose keys say little of the token that stands there.

In many models the first tokens of a text gather attention that is not needed elsewhere. A block
near the bottom writes a vast activation there, the same for every token, and all keys above it are
about alike:

```
 SmolLM2, norm of the key        block 0     1      2     5     9     11
   position 0                        9.7  20.9   97.5   0.9  95.9   2935
   the same token in a context       8.3   2.5    3.2   4.2   5.8    4.1
```

A value written for such a key is read by every prompt that begins with any token. So an edit whose
subject stands there is computed behind a neutral text instead. Which positions they are is measured
on the model that is edited: nothing here knows its name.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from errata.locate.contexts import Contexts, ContextSettings
from errata.model.hooks import bare
from errata.model.passes import capture, module_at, wide
from errata.model.tokens import Row

if TYPE_CHECKING:
    from errata.model.lm import LM

log = logging.getLogger(__name__)

FIRST = 4
"""Positions that may be sinks; those behind them say what is usual."""

FACTOR = 4.0
"""A position is a sink if its keys are so many times larger than usual, at any block below."""

NEUTRAL = 2.5
"""A text is neutral if keys behind it are within this factor of the usual norm, either way."""

TEXTS = (
    "France was known to them as a land in the far north",
    "Anna Schmidt said that the weather would be fine again soon",
    "Water is found in most places where people live and work",
    "Toyota has built a new house for all of its workers there",
    "Physics was what she had read about in the old library",
    "London and the towns around it were quiet in that year",
    "Music can be heard in the street when the windows are open",
    "Seven of the children went down to the river to swim",
)
"""Ordinary sentences that begin with different words."""


@dataclass(frozen=True)
class Sinks:
    """Which of the first positions hold sink keys.

    Attributes:
        ratios: Norm of the keys at each of the first positions over the usual one: the largest of
            the blocks up to the edited one.
        block: Block of the largest ratio.
    """

    ratios: tuple[float, ...]
    block: int

    @property
    def positions(self) -> frozenset[int]:
        """The positions that are sinks."""
        return frozenset(p for p, ratio in enumerate(self.ratios) if ratio > FACTOR)


def find_sinks(lm: LM, layer: int) -> Sinks:
    """Measure the keys at the first positions of ordinary sentences, once per model and block.

    Args:
        lm: The model; patches that are active do not count.
        layer: Block whose keys are asked for: what a block below has written, it sees as well.
    """
    return lm.once(("attention sinks", layer), lambda: _measured(lm, layer))


def _measured(lm: LM, layer: int) -> Sinks:
    norms = _norms(lm, [lm.row(text) for text in TEXTS], layer)
    ratios = norms[:, :, :FIRST].median(1).values / _usual(norms)[:, None]
    best = ratios.max(0)
    return Sinks(tuple(best.values.tolist()), int(best.indices[best.values.argmax()]))


def _usual(norms: Float[Tensor, "l n p"]) -> Float[Tensor, " l"]:
    """Return what norm keys have behind the first positions, per block."""
    return norms[:, :, FIRST:].flatten(1).median(1).values.clamp_min(1e-12)


@torch.no_grad()
def _norms(lm: LM, rows: Sequence[Row], layer: int) -> Float[Tensor, "l n p"]:
    """Return the norm of the keys of blocks 0 to `layer`, at the positions that all rows have."""
    length = min(len(row.ids) for row in rows)
    cut = [Row(row.ids[:length], (length - 1,), (), length) for row in rows]
    projections = [module_at(lm, block, "ffn") for block in range(layer + 1)]
    with bare(lm.model):
        keys, _ = capture(lm, lm.batch(cut, range(len(cut))), projections)
    shape = (len(cut), length, -1)
    return torch.stack([wide(key.view(shape)).norm(dim=-1).cpu() for key in keys])


def behind_sinks(
    lm: LM, contexts: Contexts, layers: Sequence[int], settings: ContextSettings
) -> Contexts:
    """Return the contexts, with a neutral text for prompts whose subject stands at a sink.

    The text is the start-of-text token where that leaves keys as they usually are, else the first
    sampled context. Where neither does, or the settings forbid it, edits are warned of.

    Args:
        lm: The model.
        contexts: Texts in front of the prompts; the first is the bare prompt.
        layers: Blocks that are edited.
        settings: Whether a text may be put in front.
    """
    sinks = find_sinks(lm, max(layers))
    if not sinks.positions:
        return contexts
    neutral = ""
    if settings.sink_prefix == "auto":
        neutral = _neutral(lm, max(layers), contexts)
    return replace(contexts, sinks=sinks.positions, neutral=neutral)


def _neutral(lm: LM, layer: int, contexts: Contexts) -> str:
    """Return a text behind which keys are as usual; empty if there is none."""
    start = lm.tokenizer.bos_token
    candidates = [start] if isinstance(start, str) else []
    for text in (*candidates, *contexts.prefixes[1:2]):
        rows = [lm.row(sentence, prefix=text) for sentence in TEXTS]
        begins = [lm.row(sentence, None, sentence.split()[0], prefix=text) for sentence in TEXTS]
        norms = _norms(lm, rows, layer)
        usual = _usual(norms)
        first = [row.subject_last for row in begins]
        if max(first) >= norms.shape[2]:
            continue
        there = torch.stack([norms[:, n, p] for n, p in enumerate(first)], 1).median(1).values
        ratio = there / usual
        if float(torch.maximum(ratio, 1 / ratio.clamp_min(1e-12)).max()) < NEUTRAL:
            return text
    return ""


def warn_of_sinks(lm: LM, rows: Sequence[Row], at: Sequence[int], layer: int) -> None:
    """Warn of keys that are taken at a sink, where nothing may stand in front of them.

    Args:
        lm: The model.
        rows: Tokenised prompts.
        at: For each row, the position of its key.
        layer: Block whose key it is.
    """
    if min(at, default=FIRST) >= FIRST:
        return
    sinks = find_sinks(lm, layer)
    for row, position in zip(rows, at, strict=True):
        if position in sinks.positions:
            log.warning(
                "the key of %r is taken at position %d, where keys of %s are attention-sink keys "
                "(%.0f times the usual norm at block %d): other prompts that begin so are moved "
                "as well; put some words in front of the prompt",
                lm.text(row.ids[: row.prompt_length]), position, lm.name,
                sinks.ratios[position], sinks.block,
            )  # fmt: skip
