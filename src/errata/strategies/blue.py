"""BLUE: update only the first and the last of the host's blocks, each towards a value of its own.

A host that spreads its residual aims every block at a value found for the last one, which is the
wrong target for all the others; the error grows with the distance, the batch and the length of a
sequence. BLUE finds the value at each of the two boundary blocks, on the weights as they are by
then, and does not divide the residual.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from errata.config import Settings
from errata.editors.base_joint import JointEditor, Rule
from errata.model.lm import LM
from errata.strategies.base import Strategy


class BlueSettings(Settings):
    """Settings of BLUE."""

    blue_layers: tuple[int, ...] | None = Field(
        default=None, description="Blocks to update; none: the first and the last of the host's"
    )


class Blue(Strategy, JointEditor):
    """Boundary-layer update: direct residuals at the first and the last critical block."""

    name = "blue"
    title = "BLUE"
    paper = (
        "Li et al., Rethinking Residual Distribution in Locate-then-Edit Model Editing, "
        "NeurIPS 2025, arXiv:2502.03748"
    )
    hosts = ("alphaedit", "memit", "memit_seq", "pmet", "prune", "rect")
    Settings = BlueSettings
    rule: ClassVar[Rule] = "direct"
    overrides: ClassVar[Mapping[str, Mapping[str, Mapping[str, object]]]] = {
        "pmet": {"gpt-j-6b": {"mom2_weight": 1000.0}},
        "alphaedit": {
            "gpt2-xl": {"l2": 80.0},
            "gpt-j-6b": {"l2": 95.0},
            "llama-3-8b": {"l2": 1.0},
        },
    }

    def edited_layers(self, lm: LM) -> tuple[int, ...]:
        """Return the two boundary blocks of the host (one, if the host has only one)."""
        settings = self.config
        chosen = settings.blue_layers if isinstance(settings, BlueSettings) else None
        if chosen is not None:
            return self.resolve_layers(lm, chosen)
        layers = super().edited_layers(lm)
        return tuple(dict.fromkeys((layers[0], layers[-1])))
