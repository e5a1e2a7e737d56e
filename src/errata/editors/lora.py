"""LoRA: low-rank factors trained on the edits; what is trained is what is exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator

from errata.case import Edit
from errata.editors.base import (
    TOGETHER,
    Conflicts,
    Cost,
    Editor,
    EditorConfig,
    resolve_layer,
    under,
)
from errata.model.lm import LM
from errata.model.spec import Site
from errata.model.tokens import Row, patched
from errata.patch import LowRank, Patch
from errata.tuning.descent import Descent, descend
from errata.tuning.factors import TunedFactors
from errata.tuning.places import Matrices, matrices_of, with_end

STATE_COPIES = 7
"""Copies of the factors one group needs: themselves, gradient, two moments and temporaries."""


class LoraConfig(EditorConfig, Conflicts):
    """Settings of LoRA; the defaults are errata's, which published code has none of."""

    layers: tuple[int, ...] | Literal["auto"] = Field(
        default="auto", description="Blocks to adapt; auto: the middle third"
    )
    matrices: Matrices = Field(
        default="ffn",
        description="ffn: all matrices of the FFN; out: its output matrix; block: all of the block",
    )
    rank: int = Field(default=8, ge=1, description="Rank of every change (r)")
    alpha: float = Field(default=16.0, gt=0, description="Scale of a change, over the rank")
    lr: float = Field(default=5e-4, gt=0, description="Learning rate of Adam")
    steps: int = Field(default=25, ge=1, description="Passes over the edits of a group")
    batch_size: int | None = Field(
        default=8, ge=1, description="Edits per update; none: all edits of a group together"
    )
    stop_loss: float = Field(
        default=1e-2, ge=0, description="No update, and the end, when the loss is below this"
    )
    stop: Literal["none", "eos"] = Field(
        default="eos",
        description="eos: the target ends with the token that ends a text, so that an answer does",
    )
    shuffle: bool = Field(
        default=True, description="Another order of the edits, and other batches, in every pass"
    )
    seed: int = Field(default=0, description="Seed of the first factor and of the orders")
    memory_gb: float = Field(
        default=4.0, gt=0, description="Memory for groups trained at once; more groups run in turn"
    )

    @field_validator("layers", mode="before")
    @classmethod
    def _one_layer(cls, value: object) -> object:
        return (value,) if isinstance(value, int) else value


class Lora(Editor):
    """Low-rank adapters on the FFN, trained breadth-first on the edits, exported as they are."""

    name = "lora"
    title = "LoRA"
    paper = "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685"
    needs = ()
    weights = True
    batch = "joint"
    sequence = "adds"
    exports = ("lora", "merged")
    Config = LoraConfig
    published: ClassVar[Mapping[str, Mapping[str, object]]] = {}
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {}
    config: LoraConfig

    def edited_layers(self, lm: LM) -> tuple[int, ...]:
        """Return the blocks that are adapted, ascending."""
        chosen = self.config.layers
        if chosen == "auto":
            first, last = lm.n_layers // 3, max(lm.n_layers // 3 + 1, 2 * lm.n_layers // 3)
            return tuple(range(first, min(lm.n_layers, last)))
        return tuple(sorted({resolve_layer(lm, layer, 0) for layer in chosen}))

    def rule_of(self, lm: LM) -> str:
        """Say which blocks these are."""
        return "rule: the middle third"

    def _sites(self, lm: LM) -> list[tuple[int, Site]]:
        return matrices_of(lm, self.edited_layers(lm), self.config.matrices)

    def _size(self, lm: LM) -> int:
        """Numbers that one group trains."""
        return sum(self.config.rank * (site.d_in + site.d_out) for _, site in self._sites(lm))

    def cost(self, lm: LM) -> Cost:
        """A pass forward and one back in every step."""
        size = STATE_COPIES * 4.0 * self._size(lm)
        held = max(size, min(self.config.memory_gb * 1e9, TOGETHER * size))
        return Cost(passes=2.0 * self.config.steps, held=held)

    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Train the factors of all groups side by side, each on its own edits."""
        config, sites = self.config, self._sites(lm)
        rows = [[self._row(lm, edit) for edit in group] for group in groups]
        width = 8 if lm.dtype == torch.float64 else 4
        at_once = max(1, int(config.memory_gb * 1e9 / (STATE_COPIES * self._size(lm) * width)))
        how = Descent(
            config.lr, config.steps, batch_size=config.batch_size, stop_loss=config.stop_loss,
            shuffle=config.shuffle, seed=config.seed,
        )  # fmt: skip
        found: list[list[LowRank]] = [[] for _ in groups]
        for start in range(0, len(groups), at_once):
            chunk = range(start, min(start + at_once, len(groups)))
            for numbers, places in under(lm, [before[g] for g in chunk]):
                members = [chunk[i] for i in numbers]
                placed = [
                    patched(rows[g], [patch] * len(rows[g]))
                    for g, patch in zip(members, places, strict=True)
                ]
                tuned = TunedFactors(
                    lm, sites, len(members), config.rank, config.alpha / config.rank, config.seed
                )
                moved = descend(tuned, placed, how).tolist()
                for line, group in enumerate(members):
                    if moved[line]:
                        found[group] = [LowRank(*parts) for parts in tuned.factors(line)]
        return [
            self.make_patch(lm, changes, group)
            for changes, group in zip(found, groups, strict=True)
        ]

    def _row(self, lm: LM, edit: Edit) -> Row:
        row = lm.row_of(edit)
        return with_end(lm, row) if self.config.stop == "eos" else row
