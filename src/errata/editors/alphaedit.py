"""AlphaEdit: updates confined to directions that ordinary keys do not use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from pydantic import Field

from errata.editors.base import Cost
from errata.editors.base_joint import Factors, JointConfig, JointEditor, Write
from errata.editors.base_located import counted_on
from errata.editors.memit import EASYEDIT, POCKET, PUBLISHED
from errata.locate.joint import KeyMemory, null_space, null_space_as_published
from errata.locate.moments import get_moments
from errata.locate.spectrum import PUBLISHED_THRESHOLD, NullSpace, get_null_space
from errata.model.lm import LM
from errata.patch import Change, Dense


class AlphaEditConfig(JointConfig):
    """Settings of AlphaEdit; the defaults are those published for GPT-2 XL."""

    nullspace_threshold: float = Field(
        default=PUBLISHED_THRESHOLD,
        gt=0,
        description="Eigenvalues of the second moment below this span the null space",
    )
    nullspace_scale: Literal["absolute", "relative"] = Field(
        default="absolute",
        description="Whether the threshold is meant as published, or times the mean eigenvalue",
    )
    l2: float = Field(default=10.0, ge=0, description="Weight of the size of the update")
    compat: bool = Field(
        default=False, description="Solve the general system in float32, as released"
    )


def _like_memit(backbone: str, **more: object) -> dict[str, object]:
    found = {key: value for key, value in PUBLISHED[backbone].items() if key != "mom2_weight"}
    return {**found, **more}


class AlphaEdit(JointEditor):
    """AlphaEdit: a null-space projection, and a memory of all earlier edits' keys."""

    name = "alphaedit"
    title = "AlphaEdit"
    paper = (
        "Fang et al., AlphaEdit: Null-Space Constrained Knowledge Editing for Language Models, "
        "ICLR 2025, arXiv:2410.02355"
    )
    needs = ("subject", "moments")
    weights = True
    batch = "joint"
    sequence = "adds"
    exports = ("lora", "merged")
    Config = AlphaEditConfig
    published: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "gpt2-xl": _like_memit("gpt2-xl"),
        "gpt-j-6b": _like_memit("gpt-j-6b"),
        "llama-3-8b": _like_memit("llama-3-8b"),
        "llama-3.1-8b": _like_memit("llama-3-8b"),
        "qwen2.5-7b": _like_memit("qwen2.5-7b", l2=1.0, **EASYEDIT),
    }
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # the published threshold and l2 are good here, too
        "pocket": {**POCKET, "l2": 10.0},
    }
    config: AlphaEditConfig

    def cost(self, lm: LM) -> Cost:
        """As for others that write keys and values; a moment and a projection per block."""
        layers = self.edited_layers(lm)
        held = 2 * 8.0 * len(layers) * lm.site(layers[0]).d_in ** 2
        return replace(super().cost(lm), held=held)

    @property
    def whitens(self) -> bool:
        """The second moment enters through its null space only."""
        return False

    @property
    def remembers(self) -> bool:
        """Keys of earlier edits are always spared."""
        return True

    def prepare(self, lm: LM) -> None:
        """Find the null spaces of the edited blocks, and sample the contexts."""
        super().prepare(lm)
        self.null_spaces(lm)

    def null_spaces(self, lm: LM) -> dict[int, NullSpace]:
        """Return the null space of each edited block."""
        return lm.once("null spaces", lambda: self._made_spaces(lm), owner=self)

    def text_of(self, lm: LM) -> str:
        """Return what the second moments behind the null spaces were counted on."""
        self.null_spaces(lm)
        return lm.once("text of null spaces", str, owner=self)

    def _made_spaces(self, lm: LM) -> dict[int, NullSpace]:
        settings, layers = self.config, self.prepared(lm).layers
        moments = get_moments(lm, layers, settings)
        lm.once("text of null spaces", lambda: counted_on(moments[layers[0]]), owner=self)
        return {
            layer: get_null_space(
                lm, layer, moment, settings.nullspace_threshold,
                relative=settings.nullspace_scale == "relative",
            )
            for layer, moment in moments.items()
        }  # fmt: skip

    def facts(self, lm: LM) -> dict[str, int]:
        """Return the rank of each block's null space, for the patch."""
        return {f"null_space_rank.{n}": s.rank for n, s in self.null_spaces(lm).items()}

    def factors(self, lm: LM, write: Write) -> Factors:
        """Solve `D = R K^T P (K K^T P + S P + L2 I)^{-1}` (Fang et al. 2025, eq. 13)."""
        space = self.null_spaces(lm)[write.layer]
        return null_space(write.residual, write.keys, space, self.config.l2, write.memory)

    def change(self, lm: LM, write: Write) -> Change:
        """Return the change of one block; as released, a dense one from a float32 system."""
        if not self.config.compat:
            return super().change(lm, write)
        space = self.null_spaces(lm)[write.layer]
        total = (write.memory or KeyMemory.empty()).total()
        P = space.projector().float()
        gram = torch.zeros_like(P) if total is None else total.float()
        delta = null_space_as_published(write.residual, write.keys, P, self.config.l2, gram)
        delta = delta.to(write.residual.dtype)
        return Dense(write.site.weight, (delta.T if write.site.transposed else delta).contiguous())
