"""Fine-tuning of FFN output matrices: unconstrained, or held in a box around the old weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

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
from errata.patch import Dense, Patch
from errata.progress import tracked
from errata.tuning.adam import RowAdam
from errata.tuning.rows import Tuned, TuningRows

STATE_COPIES = 7
"""Copies of the tuned weights one group needs: delta, gradient, two moments and temporaries."""


class FtConfig(EditorConfig, Conflicts):
    """Settings of fine-tuning; the defaults are those published for LLaMA and GPT-J."""

    layers: tuple[int, ...] | Literal["auto"] = Field(
        default="auto",
        description="Blocks to tune; auto: as published for this model, else at three quarters of "
        "the depth",
    )
    objective: Literal["target_new", "prompt_last"] = Field(
        default="target_new",
        description="target_new: teacher-forced cross-entropy of the target; prompt_last: all its "
        "tokens scored at the last token of the prompt, as in the first publications",
    )
    optimizer: Literal["adam", "adamw"] = Field(default="adam", description="Optimiser")
    lr: float = Field(default=5e-4, gt=0, description="Learning rate")
    steps: int = Field(default=25, ge=1, description="Passes over the edits of a group")
    weight_decay: float = Field(default=0.0, ge=0, description="Weight decay of the optimiser")
    norm_constraint: float | None = Field(
        default=None, gt=0, description="Largest change of any weight (FT-L); none: unbounded"
    )
    bias: bool = Field(default=False, description="Tune the bias of the matrix too")
    batch_size: int | None = Field(
        default=None, ge=1, description="Edits per update; none: all edits of a group together"
    )
    stop_loss: float = Field(
        default=1e-2, ge=0, description="No update, and the end, when the loss is below this"
    )
    memory_gb: float = Field(
        default=4.0, gt=0, description="Memory for groups tuned at once; more groups run in turn"
    )

    @field_validator("layers", mode="before")
    @classmethod
    def _one_layer(cls, value: object) -> object:
        return (value,) if isinstance(value, int) else value


_EASYEDIT: dict[str, object] = {"objective": "prompt_last", "batch_size": 1}
_UNIEDIT: dict[str, object] = {"optimizer": "adamw", "batch_size": 1}


class FineTuning(Editor):
    """Fine-tune one FFN output matrix on the edits; with a norm constraint it is FT-L."""

    name = "ft"
    title = "FT"
    paper = (
        "Zhu et al., Modifying Memories in Transformer Models, 2020, arXiv:2012.00363; as baseline "
        "in Meng et al. 2022, arXiv:2202.05262"
    )
    needs = ()
    weights = True
    batch = "joint"
    sequence = "adds"
    exports = ("lora", "merged")
    Config = FtConfig
    published: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "gpt2-medium": {"layers": (0,), "norm_constraint": 2e-3, "objective": "prompt_last"},
        "gpt2-large": {"layers": (0,), "norm_constraint": 1e-3, "objective": "prompt_last"},
        "gpt2-xl": {"layers": (0,), "norm_constraint": 5e-4, "objective": "prompt_last"},
        "gpt-j-6b": {"layers": (21,), **_EASYEDIT},
        "llama-2-7b": {"layers": (21,), **_EASYEDIT},
        "llama-3-8b": {"layers": (21,), **_EASYEDIT},
        "mistral-7b": {"layers": (21,), "norm_constraint": 5e-5, **_EASYEDIT},
        "qwen-7b": {"layers": (31,), "norm_constraint": 5e-5, **_EASYEDIT},
        "qwen2-7b": {"layers": (27,), **_EASYEDIT},
        "qwen2.5-7b": {"layers": (27,), **_EASYEDIT},
        # UniEdit's baseline, the one in IBKE's table: teacher forcing and AdamW; its name filter
        # takes the bias of GPT-2's matrix along
        "uniedit-gpt2-xl": {"layers": (21,), "bias": True, **_UNIEDIT},
        "uniedit-gpt-j-6b": {"layers": (21,), **_UNIEDIT},
        "uniedit-llama-3-8b": {"layers": (21,), **_UNIEDIT},
    }
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        "pocket": {"layers": (5,), "lr": 5e-3},
    }
    config: FtConfig

    def edited_layers(self, lm: LM) -> tuple[int, ...]:
        """Return the blocks that are tuned, ascending."""
        if self.config.layers == "auto":
            published = self.known_settings(lm).get("layers")
            rule = (min(lm.n_layers - 1, round(0.75 * lm.n_layers)),)
            chosen = published if isinstance(published, tuple) else rule
        else:
            chosen = self.config.layers
        return tuple(sorted({resolve_layer(lm, layer, 0) for layer in chosen}))

    @property
    def edits_experts(self) -> bool:
        """The expert of the subject's last token is tuned, without a subject the prompt's."""
        return True

    def _sites(self, lm: LM) -> list[tuple[int, Site]]:
        return [(layer, lm.site(layer)) for layer in self.edited_layers(lm)]

    def cost(self, lm: LM) -> Cost:
        """A pass forward, one back and one for the gradient of the weights, in every step."""
        size = STATE_COPIES * 4.0 * sum(site.d_in * site.d_out for _, site in self._sites(lm))
        held = max(size, min(self.config.memory_gb * 1e9, TOGETHER * size))
        return Cost(passes=3.0 * self.config.steps, held=held)

    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Descend on the loss of every group's edits, all groups side by side."""
        sites = self._sites(lm)
        rows = [[self._row(lm, edit) for edit in group] for group in groups]
        size = sum(site.d_in * site.d_out for _, site in sites)
        width = 8 if lm.dtype == torch.float64 else 4
        at_once = max(1, int(self.config.memory_gb * 1e9 / (STATE_COPIES * size * width)))
        found: list[dict[str, Tensor]] = [{} for _ in groups]
        for first in range(0, len(groups), at_once):
            chunk = range(first, min(first + at_once, len(groups)))
            for numbers, places in under(lm, [before[g] for g in chunk]):
                members = [chunk[i] for i in numbers]
                placed = [
                    patched(rows[g], [patch] * len(rows[g]))
                    for g, patch in zip(members, places, strict=True)
                ]
                with lm.searching():
                    deltas = self._tune(lm, sites, placed, [before[g] for g in members])
                for group, delta in zip(members, deltas, strict=True):
                    found[group] = delta
        return [
            self.make_patch(lm, [Dense(path, delta) for path, delta in found[g].items()], group)
            for g, group in enumerate(groups)
        ]

    def _row(self, lm: LM, edit: Edit) -> Row:
        row = lm.row_of(edit)
        if self.config.objective == "prompt_last":
            last = row.prompt_length - 1
            return Row(
                row.ids[: row.prompt_length], (last,) * len(row.labels), row.labels,
                row.prompt_length,
            )  # fmt: skip
        return row

    def _batches(self, rows: Sequence[Sequence[Row]]) -> Iterator[list[list[Row]]]:
        """Yield the rows of every group for each update of a pass; a short group has none left."""
        size = self.config.batch_size or max(map(len, rows))
        for first in range(0, max(map(len, rows)), size):
            yield [list(group[first : first + size]) for group in rows]

    def _tune(
        self,
        lm: LM,
        sites: Sequence[tuple[int, Site]],
        rows: Sequence[Sequence[Row]],
        before: Sequence[Patch],
    ) -> list[dict[str, Tensor]]:
        """Tune all groups side by side, each on its own weights; return deltas as stored."""
        config = self.config
        tuned = Tuned(lm, sites, len(rows), config.bias)
        decayed = tuned.start(before) if config.weight_decay else None
        adam = RowAdam(tuned.values, config.lr, config.weight_decay, config.optimizer == "adamw")
        batches = [TuningRows(tuned, batch) for batch in self._batches(rows)]
        running = torch.ones(len(rows), dtype=torch.bool, device=lm.device)
        for _ in tracked(range(config.steps), "tuning, step"):
            total = torch.zeros(len(rows), dtype=torch.float64, device=lm.device)
            count = torch.zeros_like(total)
            for batch in batches:
                loss, grads = batch.losses(running, config.stop_loss)
                sizes = batch.sizes * running
                total += loss.double() * sizes
                count += sizes
                # "not <" lets a NaN loss through, so that the update is refused
                active = running & (batch.sizes > 0) & ~(loss < config.stop_loss)
                full = None
                if decayed is not None:
                    full = [w + v for w, v in zip(decayed, tuned.values, strict=True)]
                adam.step(tuned.values, grads, active, full)
                if config.norm_constraint is not None:
                    for value in tuned.values:
                        value.clamp_(-config.norm_constraint, config.norm_constraint)
            running = running & ~(total < config.stop_loss * count)
            if not bool(running.any()):
                break
        moved = (adam.count > 0).tolist()
        return [tuned.stored(g) if moved[g] else {} for g in range(len(rows))]
