"""ROME: one fact, one layer, one rank-one update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from errata.apply import Stack
from errata.case import Edit
from errata.editors._base import (
    Editor,
    EditorConfig,
    Layer,
    recall_layer,
    resolve_layer,
    under,
)
from errata.lm import LM
from errata.locate import solve
from errata.locate.contexts import Contexts, ContextSettings, get_contexts
from errata.locate.keys import edit_keys
from errata.locate.moments import MomentSettings, get_moments
from errata.locate.rows import Economy
from errata.locate.values import ValueSettings, optimise_values
from errata.patch import LowRank, Patch


class RomeConfig(EditorConfig, ValueSettings, ContextSettings, MomentSettings, Economy):
    """Settings of ROME; the defaults are those published for GPT-2 XL."""

    layer: Layer = Field(
        default="auto",
        description="Block to edit; auto: as published for this model, else by depth",
    )
    mom2_adjustment: bool = Field(
        default=True,
        description="Spare ordinary keys (their second moment C); false: C is the identity",
    )


def _settings(layer: int, **more: object) -> dict[str, object]:
    return {"layer": layer, "moments_samples": 100_000, **more}


_LLAMA = _settings(5, steps=25, weight_decay=1e-3)


@dataclass(frozen=True)
class Prepared:
    """What is made once per model: the contexts and the factor of the layer's second moment."""

    layer: int
    contexts: Contexts
    moment: solve.Factor | None


class Rome(Editor):
    """Rank-One Model Editing: write one key-value pair into one FFN output matrix."""

    name = "rome"
    title = "ROME"
    paper = (
        "Meng et al., Locating and Editing Factual Associations in GPT, NeurIPS 2022, "
        "arXiv:2202.05262"
    )
    needs = ("subject", "moments")
    weights = True
    Config = RomeConfig
    published: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "gpt2-medium": _settings(8, clamp=3),
        "gpt2-large": _settings(12),
        "gpt2-xl": _settings(17),
        "gpt-j-6b": _settings(5),
        "gpt-neox-20b": _settings(15),
        "llama-2-7b": _LLAMA,
        "llama-3-8b": _LLAMA,
        "mistral-7b": _LLAMA,
        "qwen2-7b": _LLAMA,
        "qwen2.5-7b": _LLAMA,
        "llama-3.2-3b": _LLAMA,
        "qwen-7b": _settings(5),
        # measured in docs/world.md: the middle block works once the clamp is out of the way
        "pocket": {
            "layer": 3,
            "contexts": "bare",
            "lr": 0.1,
            "steps": 80,
            "clamp": 100,
            "weight_decay": 0.1,
            "kl_factor": 1.0,
        },
    }
    config: RomeConfig

    def __init__(self, config: EditorConfig | None = None) -> None:
        super().__init__(config)
        self._prepared: WeakKeyDictionary[LM, Prepared] = WeakKeyDictionary()

    def prepare(self, lm: LM) -> None:
        """Sample the contexts and count the second moment of the layer's keys."""
        if lm in self._prepared:
            return
        layer = resolve_layer(lm, self.config.layer, self._automatic(lm, "layer", recall_layer(lm)))
        moment = None
        if self.config.mom2_adjustment:
            matrix = get_moments(lm, [layer], self.config)[layer].matrix
            moment = solve.factor(matrix.to(lm.device), ridge=self.config.ridge)
        self._prepared[lm] = Prepared(layer, get_contexts(lm, self.config), moment)

    def _edit(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        path = lm.site(self._prepared[lm].layer).path
        factors: list[list[tuple[Tensor, Tensor]]] = [[] for _ in groups]

        def change(group: int) -> list[LowRank]:
            if not factors[group]:
                return []
            B, A = zip(*factors[group], strict=True)
            return [LowRank(path, torch.stack(B, 1), torch.stack(A, 0))]

        # within a group edits follow one another, each on the model its predecessors left;
        # across groups, all edits of one position are found together
        for position in range(max(map(len, groups))):
            members = [g for g, group in enumerate(groups) if len(group) > position]
            patches = [before[g] + Patch(tuple(change(g))) for g in members]
            for numbers, stack, routes in under(lm, patches):
                edits = [groups[members[i]][position] for i in numbers]
                B, A = self._update(lm, edits, stack, routes)
                for row, i in enumerate(numbers):
                    factors[members[i]].append((B[row], A[row]))
        return [self._patch(lm, change(g), group) for g, group in enumerate(groups)]

    def _update(
        self, lm: LM, edits: Sequence[Edit], stack: Stack | None, routes: Sequence[int] | None
    ) -> tuple[Float[Tensor, "e d"], Float[Tensor, "e f"]]:
        """Factors of each edit's rank-one update, on the model its patch in the stack makes."""
        at = self._prepared[lm]
        keys = edit_keys(lm, edits, at.contexts, [at.layer], stack=stack, groups=routes)[at.layer]
        values = optimise_values(
            lm, edits, at.contexts, at.layer, self.config,
            places=("ffn",), economy=self.config, stack=stack, groups=routes,
        )  # fmt: skip
        target = values.target("ffn")
        B, A = solve.rome(target, keys.value, keys.mean_key, keys.key, at.moment)
        return B.to(target.dtype), A.to(target.dtype)
