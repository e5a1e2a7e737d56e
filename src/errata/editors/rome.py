"""ROME: one fact, one layer, one rank-one update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from errata.case import Edit
from errata.editors.base import under
from errata.editors.base_located import LocateEditor, OneLayerConfig, one_layer
from errata.locate import solve
from errata.locate.keys import EditKeys, edit_keys
from errata.locate.solve import Factor
from errata.locate.values import optimise_values
from errata.model.lm import LM
from errata.patch import LowRank, Patch


class RomeConfig(OneLayerConfig):
    """Settings of ROME; the defaults are those published for GPT-2 XL."""

    mom2_adjustment: bool = Field(
        default=True,
        description="Spare ordinary keys (their second moment C); false: C is the identity",
    )


def _settings(layer: int, **more: object) -> dict[str, object]:
    return {"layer": layer, "moments_samples": 100_000, **more}


_LLAMA = _settings(5, steps=25, weight_decay=1e-3)


class Rome(LocateEditor):
    """Rank-One Model Editing: write one key-value pair into one FFN output matrix."""

    name = "rome"
    title = "ROME"
    paper = (
        "Meng et al., Locating and Editing Factual Associations in GPT, NeurIPS 2022, "
        "arXiv:2202.05262"
    )
    needs = ("subject", "moments")
    weights = True
    batch = "in turn"
    sequence = "adds"
    exports = ("lora", "merged")
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
    }
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
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

    def edited_layers(self, lm: LM) -> tuple[int]:
        """Return the one block that is edited."""
        return one_layer(self, lm, self.config.layer)

    @property
    def whitens(self) -> bool:
        """Whether ordinary keys are spared."""
        return self.config.mom2_adjustment

    def solve(
        self, target: Float[Tensor, "e d"], keys: EditKeys, moment: Factor | None
    ) -> tuple[Float[Tensor, "e d"], Float[Tensor, "e f"]]:
        """Return factors of each edit's update from its target value and its keys."""
        return solve.rome(target, keys.value, keys.mean_key, keys.key, moment)

    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Find one key and one value per edit and write them, all groups side by side."""
        (layer,) = self.prepared(lm).layers
        path = lm.site(layer).path
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
            for numbers, places in under(lm, patches):
                edits = [groups[members[i]][position] for i in numbers]
                B, A = self._update(lm, edits, places)
                for row, i in enumerate(numbers):
                    solved = LowRank(path, B[row][:, None], A[row][None])
                    done = self.finished(lm, layer, solved, patches[i])
                    assert isinstance(done, LowRank)
                    factors[members[i]].append((done.B[:, 0], done.A[0]))
        return [self.make_patch(lm, change(g), group) for g, group in enumerate(groups)]

    def _update(
        self, lm: LM, edits: Sequence[Edit], patches: Sequence[int]
    ) -> tuple[Float[Tensor, "e d"], Float[Tensor, "e f"]]:
        """Factors of each edit's rank-one update, on the model its patch in the stack makes."""
        prepared = self.prepared(lm)
        (layer,) = prepared.layers
        keys = edit_keys(lm, edits, prepared.contexts, [layer], patches=patches)[layer]
        target = optimise_values(
            lm, edits, prepared.contexts, layer, self.config,
            places=("ffn",), savings=self.config, patches=patches,
        ).target("ffn")  # fmt: skip
        target = self.aimed(lm, edits, layer, target, "ffn", patches)
        B, A = self.solve(target, keys, prepared.moments[layer])
        return B.to(target.dtype), A.to(target.dtype)
