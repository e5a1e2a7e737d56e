"""What T-Patcher's units must leave alone: the FFN's inputs at the tokens of ordinary text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from errata.locate.paragraphs import Paragraphs
from errata.model.passes import capture, wide
from errata.model.tokens import Row, bucket, patched

if TYPE_CHECKING:
    from errata.model.lm import LM
    from errata.patch import Patch


def base_memory(lm: LM, layer: int, text: Paragraphs) -> list[Float[Tensor, "T d"]]:
    """Return the FFN's inputs at the tokens of each paragraph, with no patch beside the weights.

    They are kept with the model for as long as no weight is written to: an editor needs them for
    every edit of a sequence. Under patches in place they are made anew.

    Args:
        lm: The model.
        layer: Block of the FFN.
        text: The paragraphs.
    """
    if lm.installed.applied:  # the weights are not the model's own: nothing to keep
        return inputs_of(lm, layer, text.rows(lm))
    known: dict[Any, list[Tensor]] = lm.once("T-Patcher's memory", dict)
    key = (layer, text)
    if key not in known:
        known.clear()  # large: of one text and block only
        known[key] = inputs_of(lm, layer, text.rows(lm))
    return known[key]


@torch.no_grad()
def inputs_of(lm: LM, layer: int, rows: Sequence[Row]) -> list[Float[Tensor, "T d"]]:
    """Return the input of a block's FFN at every token of each row, under the row's patch."""
    found: list[Tensor | None] = [None] * len(rows)
    module = lm.module(lm.spec.ffn_in[layer][0].path)
    for index in bucket(rows, lm.max_tokens):
        (inputs,), _ = capture(lm, lm.batch(rows, index), inputs=[module])
        inputs = wide(inputs).reshape(len(index), -1, inputs.shape[-1])  # some models join the rows
        for i, states in zip(index, inputs, strict=True):
            found[i] = states[: len(rows[i].ids)].clone()
    return [states for states in found if states is not None]


def memories(
    lm: LM,
    layer: int,
    text: Paragraphs,
    patches: Sequence[Patch],
    places: Sequence[int],
) -> tuple[list[list[Float[Tensor, "T d"]]], Int[Tensor, " G"] | None]:
    """Return the text's states in every different model that some groups have below a block's FFN.

    Args:
        lm: The model.
        layer: The block.
        text: The paragraphs.
        patches: What each group has at work; most change nothing below.
        places: For each group, its patch in the active stack; -1: it has none, or it is applied in
            place.

    Returns:
        For each model the states of every paragraph; for each group its model, None if there is
        only one.
    """
    inner = [site.path for site in lm.spec.ffn_in[layer]]
    known: dict[int, int] = {}
    found: list[list[Tensor]] = []
    which: list[int] = []
    for patch, place in zip(patches, places, strict=True):
        moved = any(change.moves_input(lm, layer, inner) for change in patch.changes)
        key = id(patch) if moved else 0
        if key not in known:
            known[key] = len(found)
            if moved:
                rows = text.rows(lm)
                found.append(inputs_of(lm, layer, patched(rows, [place] * len(rows))))
            else:
                found.append(base_memory(lm, layer, text))
        which.append(known[key])
    return found, torch.tensor(which, device=lm.device) if len(found) > 1 else None
