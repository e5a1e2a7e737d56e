"""EMMET: ROME for batches, by equality constraints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from errata.editors.base import resolve_layer
from errata.editors.base_joint import Factors, JointConfig, JointEditor, Write
from errata.editors.memit import EASYEDIT, POCKET
from errata.editors.recall import recall_layer
from errata.locate.joint import equality
from errata.model.lm import LM


class EmmetConfig(JointConfig):
    """Settings of EMMET; the defaults are those of the released code for GPT-2 XL."""

    mom2_weight: float = Field(
        default=10_000.0, gt=0, description="Scale of the second moment C (w)"
    )
    slack: float = Field(
        default=0.1,
        ge=0,
        description="How soft the equalities are (mu); 0: exact. MEMIT with lambda = w mu",
    )


def _settings(layer: int, weight: float, **more: object) -> dict[str, object]:
    found = {"layers": (layer,), "mom2_weight": weight, "moments_samples": 100_000}
    return {**found, **more}


_LLAMA = _settings(5, 100_000.0, **EASYEDIT)


class Emmet(JointEditor):
    """Equality-constrained Mass Editing in a Transformer: a batch written exactly, in one block."""

    name = "emmet"
    title = "EMMET"
    paper = "Gupta et al., A Unified Framework for Model Editing, 2024, arXiv:2403.14236"
    needs = ("subject", "moments")
    weights = True
    batch = "joint"
    sequence = "adds"
    exports = ("lora", "merged")
    Config = EmmetConfig
    published: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "gpt2-xl": _settings(17, 10_000.0),
        "gpt-j-6b": _settings(5, 100_000.0, steps=25),
        "llama-2-7b": _LLAMA,
        "llama-3-8b": _LLAMA,
        "mistral-7b": _LLAMA,
        "qwen2-7b": _LLAMA,
        "qwen2.5-7b": _LLAMA,
        "llama-3.2-3b": _LLAMA,
    }
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "pocket": {**POCKET, "layers": (1,), "mom2_weight": 1000.0, "ridge": 0.01},
    }
    config: EmmetConfig

    def automatic_layers(self, lm: LM) -> tuple[int, ...]:
        """Return one block, the one that ROME edits."""
        published = self._automatic_layers(lm)
        return published or (resolve_layer(lm, "auto", recall_layer(lm)),)

    def factors(self, lm: LM, write: Write) -> Factors:
        """Solve `D = R (K^T C'^{-1} K + mu I)^{-1} K^T C'^{-1}` with `C' = w C`."""
        moment = self.prepared(lm).moments[write.layer]
        assert moment is not None
        return equality(
            write.residual, write.keys, moment,
            weight=self.config.mom2_weight, slack=self.config.slack,
        )  # fmt: skip
