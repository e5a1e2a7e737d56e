"""Sizes of a recipe's models: its own, else those of the backbones that are known."""

from __future__ import annotations

from dataclasses import replace

from errata.config import backbone_of
from errata.model.backbones import BACKBONES, Backbone, identify
from errata.sweeping.recipe import ModelEntry

__all__ = ["FLOAT_BYTES", "KNOWN", "Backbone", "backbone", "float_bytes"]

FLOAT_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}

KNOWN = BACKBONES
"""By name, from their published configurations."""


def backbone(entry: ModelEntry) -> Backbone | None:
    """Return the sizes of a model: those in the recipe, else the known ones; None if unknown."""
    given = {
        name: value
        for name in ("parameters", "layers", "hidden", "inner")
        if (value := getattr(entry, name)) is not None
    }
    known = identify(entry.id)
    if known is not None:
        return replace(known.model, **given)
    if len(given) < 4:
        return None
    return Backbone(backbone_of(entry.id.rstrip("/")), gated=True, **given)


def float_bytes(entry: ModelEntry) -> int:
    """Return the bytes of one parameter; float32 where the recipe names no type."""
    return FLOAT_BYTES.get(entry.dtype or "float32", 4)
