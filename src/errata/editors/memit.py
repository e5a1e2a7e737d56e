"""MEMIT: many facts at once, spread over several blocks by least squares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from errata.editors.base_joint import Factors, JointConfig, JointEditor, Write
from errata.locate.joint import least_squares
from errata.model.lm import LM


class MemitConfig(JointConfig):
    """Settings of MEMIT; the defaults are those published for GPT-2 XL."""

    mom2_weight: float = Field(
        default=20_000.0,
        gt=0,
        description="Weight of the second moment C against one edit's key (lambda)",
    )
    memory: bool = Field(
        default=False, description="Remember the keys of edits and spare them in later batches"
    )


def settings(layers: range, weight: float, **more: object) -> dict[str, object]:
    """Return one row of the published tables."""
    found = {"layers": tuple(layers), "mom2_weight": weight, "moments_samples": 100_000}
    return {**found, **more}


EASYEDIT: dict[str, object] = {"steps": 25, "weight_decay": 1e-3, "clamp": 4.0}
"""What EasyEdit and its descendants use for Llama-like backbones."""

_LLAMA = settings(range(4, 9), 15_000.0, **EASYEDIT)

POCKET: dict[str, object] = {
    "layers": (0, 1, 2, 3, 4),
    "contexts": "bare",
    "lr": 0.2,
    "steps": 20,
    "clamp": 4.0,
    "weight_decay": 0.1,
    "kl_factor": 0.0625,
}
"""What the editors of several blocks share on the pocket model; measured in
docs/results-locate.md."""

NARROW = 1024
"""Width of the residual stream below which a model counts as small."""

SMALL: dict[str, object] = {"clamp": 4.0, "mom2_weight": 1000.0}
"""Strength for small models that nothing was published for; measured in docs/methods.md."""

PUBLISHED: dict[str, dict[str, object]] = {
    "gpt2-xl": settings(range(13, 18), 20_000.0),
    "gpt-j-6b": settings(range(3, 9), 15_000.0, steps=25),
    "llama-3-8b": settings(range(4, 9), 15_000.0, steps=25, lr=0.1),
    "llama-2-7b": _LLAMA,
    "mistral-7b": _LLAMA,
    "qwen2-7b": _LLAMA,
    "qwen2.5-7b": _LLAMA,
    "llama-3.2-3b": _LLAMA,
    "qwen-7b": settings(range(4, 9), 15_000.0, steps=25),
}


class Memit(JointEditor):
    """Mass-Editing Memory in a Transformer: least squares against ordinary keys, block by block."""

    name = "memit"
    title = "MEMIT"
    paper = "Meng et al., Mass-Editing Memory in a Transformer, ICLR 2023, arXiv:2210.07229"
    needs = ("subject", "moments")
    weights = True
    batch = "joint"
    sequence = "adds"
    exports = ("lora", "merged")
    Config = MemitConfig
    published: ClassVar[Mapping[str, Mapping[str, object]]] = PUBLISHED
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # a compromise: single edits gain from a smaller weight, long sequences from a larger one
        "pocket": {**POCKET, "mom2_weight": 1000.0, "ridge": 0.01},
    }
    small: ClassVar[Mapping[str, object]] = SMALL
    config: MemitConfig

    def rule_by_shape(self, lm: LM) -> tuple[str, Mapping[str, object]]:
        """Return a greater strength for small models, on which the published one hardly writes."""
        origin, settings = super().rule_by_shape(lm)
        if not self.small or lm.site(0, "attn_out").d_out >= NARROW:
            return origin, settings
        if settings:  # one block has to do what five do elsewhere, and does
            return origin, {**self.small, "mom2_weight": 10_000.0, **settings}
        return f"rule for models narrower than {NARROW:,}", self.small

    @property
    def remembers(self) -> bool:
        """Whether keys of earlier edits are kept in the patch and spared."""
        return self.config.memory

    def factors(self, lm: LM, write: Write) -> Factors:
        """Solve `D = R K^T (lambda C + S + K K^T)^{-1}` (Meng et al. 2023, eq. 14)."""
        moment = self.prepared(lm).moments[write.layer]
        assert moment is not None
        return least_squares(
            write.residual, write.keys, moment, self.config.mom2_weight, write.memory
        )
