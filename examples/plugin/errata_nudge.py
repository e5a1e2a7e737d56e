"""Nudge: a whole editor in one file, the smallest that really edits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from errata import LM, Edit, Editor, EditorConfig, LowRank, Patch
from errata.model.passes import capture


class NudgeConfig(EditorConfig):
    """Settings of Nudge."""

    strength: float = Field(
        default=2.0, gt=0, description="Length of what is added, in lengths of the hidden state"
    )


class Nudge(Editor):
    """Let the last FFN answer the prompt's hidden state with the target's row of the head."""

    name = "nudge"
    title = "Nudge"
    paper = "the example of docs/plugins.md"
    needs = ()
    weights = True
    batch = "joint"
    sequence = "adds"
    exports = ("lora", "merged")
    Config = NudgeConfig
    config: NudgeConfig

    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Return what each group adds to its earlier patch."""
        return [self._nudged(lm, group, patch) for group, patch in zip(groups, before, strict=True)]

    @torch.no_grad()
    def _nudged(self, lm: LM, group: Sequence[Edit], before: Patch) -> Patch:
        """Find `W += B A` that maps every key, the FFN's inner state, exactly to its value."""
        layer = lm.n_layers - 1
        site = lm.site(layer)  # the second matrix of the last block's FFN
        block, matrix = lm.module(lm.spec.blocks[layer]), lm.module(site.path)
        head = lm.model.get_parameter(f"{lm.spec.head}.weight").double()
        keys: list[Tensor] = []
        values: list[Tensor] = []
        with before.applied(lm):  # as the model is after the earlier edits
            for edit in group:
                row = lm.row_of(edit)
                (inner,), (hidden,) = capture(lm, lm.batch([row], [0]), [matrix], [block])
                for position, token in zip(row.positions, row.labels, strict=True):
                    length = self.config.strength * hidden[0, position].double().norm()
                    keys.append(inner[0, position].double())
                    values.append(length * head[token] / head[token].norm())
        A, V = torch.stack(keys), torch.stack(values)
        gram = A @ A.T
        # two edits of one prompt have one key: a little ridge keeps the system solvable
        ridge = 1e-6 * gram.diagonal().mean() * torch.eye(len(gram), dtype=A.dtype, device=A.device)
        B = torch.linalg.solve(gram + ridge, V).T
        dtype = torch.promote_types(lm.dtype, torch.float32)
        return self.make_patch(lm, [LowRank(site.path, B.to(dtype), A.to(dtype))], group)
