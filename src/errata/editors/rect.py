"""RECT: MEMIT that keeps only the entries which change a weight most in proportion."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from errata.editors.base_joint import Write
from errata.editors.memit import Memit, MemitConfig
from errata.locate.joint import keep_largest
from errata.model.lm import LM
from errata.model.stored import read
from errata.patch import Change, Dense
from errata.patch.deltas import weight_deltas


class RectConfig(MemitConfig):
    """Settings of RECT."""

    keep: float = Field(
        default=0.4, gt=0, le=1, description="Share of the entries of an update that are kept"
    )


class Rect(Memit):
    """RECT: an update is regularised by dropping its relatively smallest entries."""

    name = "rect"
    title = "RECT"
    paper = (
        "Gu et al., Model Editing Harms General Abilities of Large Language Models: "
        "Regularization to the Rescue, EMNLP 2024, arXiv:2401.04700"
    )
    needs = ("subject", "moments")
    weights = True
    batch = "joint"
    sequence = "adds"
    exports = ("lora", "merged")
    Config = RectConfig
    published: ClassVar[Mapping[str, Mapping[str, object]]] = Memit.published
    config: RectConfig

    def change(self, lm: LM, write: Write) -> Change:
        """Return the largest entries relative to the weights as they are, as a dense change."""
        B, A = self.factors(lm, write)
        name = write.site.weight
        weight = read(lm.model, name).detach().to(B)
        earlier = weight_deltas(lm, write.now.changes).get(name)
        if earlier is not None:
            weight = weight + earlier.to(B)
        turned = write.site.transposed
        kept = keep_largest(B.T @ A, weight.T if turned else weight, self.config.keep)
        kept = kept.to(write.residual.dtype)
        return Dense(name, (kept.T if turned else kept).contiguous())
