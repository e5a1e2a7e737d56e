"""PMET: values of FFN and attention found together, only the FFN is written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from errata.editors.base_joint import Rule
from errata.editors.memit import POCKET, Memit, MemitConfig, settings
from errata.locate.values import Adaptive
from errata.model.passes import Place


class PmetConfig(MemitConfig):
    """Settings of PMET; the defaults are those of the BLUE repository for GPT-2 XL."""

    mom2_weight: float = Field(
        default=10_000.0,
        gt=0,
        description="Weight of the second moment C against one edit's key (lambda)",
    )
    clamp: float = Field(
        default=2.0, gt=0, description="Largest ||delta|| relative to ||v0||, of FFN and attention"
    )
    nll_factor: float = Field(default=1.0, gt=0, description="Weight of the likelihood")
    easy_factor: float = Field(
        default=0.1,
        gt=0,
        description="What that weight is multiplied by while the target is the model's answer "
        "everywhere; 1: nothing changes",
    )
    stop_kl: float = Field(
        default=0.01, ge=0, description="An edit whose target is the answer everywhere stops below"
    )
    compat: bool = Field(
        default=False, description="Compare kl_factor times the KL with stop_kl, as released"
    )


class Pmet(Memit):
    """Precise Model Editing: the attention takes its share of the value, the FFN keeps its own."""

    name = "pmet"
    title = "PMET"
    paper = "Li et al., PMET: Precise Model Editing in a Transformer, AAAI 2024, arXiv:2308.08742"
    needs = ("subject", "moments")
    weights = True
    batch = "joint"
    sequence = "adds"
    exports = ("lora", "merged")
    Config = PmetConfig
    rule: ClassVar[Rule] = "sqrt"
    places: ClassVar[tuple[Place, ...]] = ("ffn", "attn")
    published: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "gpt2-xl": settings(range(13, 18), 10_000.0),
        "gpt-j-6b": settings(range(3, 9), 15_000.0, steps=25, clamp=0.75),
        "llama-3-8b": settings(range(4, 9), 15_000.0, steps=25, lr=0.1, clamp=0.75),
        "llama-2-7b": settings(range(4, 9), 15_000.0, clamp=1.0),
        "llama-3.2-3b": settings(range(4, 9), 15_000.0, steps=25, clamp=1.0),
    }
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "pocket": {**POCKET, "mom2_weight": 1000.0, "ridge": 0.01},
    }
    small: ClassVar[Mapping[str, object]] = {}  # its clamp is another one, and was not measured
    config: PmetConfig

    @property
    def adaptive(self) -> Adaptive:
        """How the likelihood's weight follows the optimisation of values."""
        own = self.config
        return Adaptive(own.nll_factor, own.easy_factor, own.stop_kl, scaled_kl=own.compat)
