"""Which matrices of a block are tuned, and on which tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from errata.errors import ConfigError
from errata.model.spec import Site
from errata.model.stored import matrix_shape
from errata.model.tokens import Row

if TYPE_CHECKING:
    from errata.model.lm import LM

Matrices = Literal["out", "ffn", "block"]
"""The FFN's output matrix, all of the FFN, or all matrices of the block."""


def matrices_of(lm: LM, layers: Sequence[int], which: Matrices) -> list[tuple[int, Site]]:
    """Return block number and projection of every matrix, lowest block first.

    Norms are left out of a block: they are no matrices, a LoRA cannot carry them, and they cannot
    differ from row to row.
    """
    found: list[tuple[int, Site]] = []
    for layer in layers:
        if which == "block":
            block = lm.spec.blocks[layer]
            for name, module in lm.module(block).named_modules():
                shape = matrix_shape(module)
                if shape is not None and name:
                    has_bias = getattr(module, "bias", None) is not None
                    found.append((layer, Site(f"{block}.{name}", *shape, bias=has_bias)))
            continue
        if which == "ffn":
            found += [(layer, site) for site in lm.spec.ffn_in[layer]]
        found.append((layer, lm.site(layer)))
    return found


def with_end(lm: LM, row: Row) -> Row:
    """Return a row whose target goes on with the token that ends a text.

    Raises:
        ConfigError: If the tokenizer has none.
    """
    end = lm.tokenizer.eos_token_id
    if not isinstance(end, int):
        raise ConfigError(
            f"the tokenizer of {lm.name} has no token that ends a text", "Leave out stop=eos."
        )
    if row.labels[-1] == end:
        return row
    return replace(
        row,
        ids=(*row.ids, row.labels[-1]),
        positions=(*row.positions, len(row.ids)),
        labels=(*row.labels, end),
    )
