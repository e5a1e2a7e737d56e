"""Sizes of the backbones of IBKE's paper, and of a recipe's own models."""

from __future__ import annotations

from dataclasses import dataclass

from errata.sweeping.recipe import ModelEntry

FLOAT_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Backbone:
    """Published sizes of a model.

    Attributes:
        parameters: All parameters.
        layers: Blocks.
        hidden: Width of the hidden state, the output of an FFN.
        inner: Width inside the FFN, the input of its output matrix.
        gated: Whether the FFN has a gate, and so two matrices that lead in.
        name: Last part of its name, in lower case.
    """

    parameters: float
    layers: int
    hidden: int
    inner: int
    gated: bool
    name: str = ""

    @property
    def signal(self) -> int:
        """Width of the signal of an FFN matrix: its input and its output together."""
        return self.hidden + self.inner


KNOWN = {
    model.name: model
    for model in (
        Backbone(1.558e9, 48, 1600, 6400, False, "gpt2-xl"),
        Backbone(6.051e9, 28, 4096, 16384, False, "gpt-j-6b"),
        Backbone(1.721e9, 28, 2048, 6144, True, "qwen3-1.7b"),
        Backbone(8.191e9, 36, 4096, 12288, True, "qwen3-8b"),
        Backbone(3.9e6, 7, 192, 512, True, "pocket"),
    )
}
"""By the last part of the model's name, in lower case; from their published configurations."""


def backbone(entry: ModelEntry) -> Backbone | None:
    """Return the sizes of a model: those in the recipe, else the known ones; None if unknown."""
    given = (entry.parameters, entry.layers, entry.hidden, entry.inner)
    name = entry.id.lower().rstrip("/").rpartition("/")[2]
    known = KNOWN.get(name)
    if known is not None:
        given = tuple(
            mine if mine is not None else theirs
            for mine, theirs in zip(
                given, (known.parameters, known.layers, known.hidden, known.inner), strict=True
            )
        )
    parameters, layers, hidden, inner = given
    if parameters is None or layers is None or hidden is None or inner is None:
        return None
    gated = known.gated if known is not None else True
    return Backbone(parameters, int(layers), int(hidden), int(inner), gated, name)


def float_bytes(entry: ModelEntry) -> int:
    """Return the bytes of one parameter; float32 where the recipe names no type."""
    return FLOAT_BYTES.get(entry.dtype or "float32", 4)
