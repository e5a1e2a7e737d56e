"""Fine-tuning of FFN output matrices: unconstrained, or held in a box around the old weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from errata.tuning.adam import RowAdam
from errata.tuning.descent import Descent, descend
from errata.tuning.places import Matrices, matrices_of, with_end
from errata.tuning.rows import Tuned

STATE_COPIES = 7
"""Copies of the tuned weights one group needs: delta, gradient, two moments and temporaries."""

STATE = "ft.adam"
"""Where a patch keeps the optimiser's moments, if it does."""


class FtConfig(EditorConfig, Conflicts):
    """Settings of fine-tuning; the defaults are those published for LLaMA and GPT-J."""

    layers: tuple[int, ...] | Literal["auto"] = Field(
        default="auto",
        description="Blocks to tune; auto: as published for this model, else at three quarters of "
        "the depth",
    )
    matrices: Matrices = Field(
        default="out",
        description="out: the FFN's output matrix; ffn: all of the FFN; block: all matrices of the "
        "block",
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
    stop: Literal["none", "eos"] = Field(
        default="none",
        description="eos: the target ends with the token that ends a text, so that an answer does",
    )
    shuffle: bool = Field(
        default=False, description="Another order of the edits, and other batches, in every pass"
    )
    seed: int = Field(default=0, description="Seed of the orders and of what is replayed")
    state: Literal["new", "keep"] = Field(
        default="new",
        description="keep: the optimiser's moments go on from step to step of a sequence, in the "
        "patch, which they make three times as large",
    )
    replay: int = Field(
        default=0, ge=0, description="Edits of the earlier patch that are trained on again"
    )
    memory_gb: float = Field(
        default=4.0, gt=0, description="Memory for groups tuned at once; more groups run in turn"
    )

    @field_validator("layers", mode="before")
    @classmethod
    def _one_layer(cls, value: object) -> object:
        return (value,) if isinstance(value, int) else value


_EASYEDIT: dict[str, object] = {"objective": "prompt_last", "batch_size": 1}
_LOCFT: dict[str, object] = {
    "batch_size": 100, "steps": 25, "lr": 5e-4, "stop": "eos", "shuffle": True,
}  # fmt: skip
"""Breadth-first: ordinary mini-batch training over all edits."""
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
        # LocFT-BF (Yang et al. 2026): breadth-first over all edits, with an end token
        "locft": _LOCFT,
        "locft-llama-3-8b": {"layers": (22,), **_LOCFT},
        "locft-qwen2.5-7b": {"layers": (6,), **_LOCFT},
        "locft-mistral-7b": {"layers": (23,), **_LOCFT, "matrices": "block", "lr": 5e-5},
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
        return matrices_of(lm, self.edited_layers(lm), self.config.matrices)

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
        rows = [
            [self._row(lm, edit) for edit in (*group, *self._replayed(old))]
            for group, old in zip(groups, before, strict=True)
        ]
        size = sum(site.d_in * site.d_out for _, site in sites)
        width = 8 if lm.dtype == torch.float64 else 4
        at_once = max(1, int(self.config.memory_gb * 1e9 / (STATE_COPIES * size * width)))
        found: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = [({}, {}) for _ in groups]
        for first in range(0, len(groups), at_once):
            chunk = range(first, min(first + at_once, len(groups)))
            for numbers, places in under(lm, [before[g] for g in chunk]):
                members = [chunk[i] for i in numbers]
                placed = [
                    patched(rows[g], [patch] * len(rows[g]))
                    for g, patch in zip(members, places, strict=True)
                ]
                with lm.searching():
                    tuned = self._tune(lm, sites, placed, [before[g] for g in members])
                for group, own in zip(members, tuned, strict=True):
                    found[group] = own
        return [
            self.make_patch(
                lm, [Dense(path, delta) for path, delta in deltas.items()], group, **state
            )
            for group, (deltas, state) in zip(groups, found, strict=True)
        ]

    def _row(self, lm: LM, edit: Edit) -> Row:
        row = lm.row_of(edit)
        if self.config.stop == "eos":
            row = with_end(lm, row)
        if self.config.objective == "prompt_last":
            last = row.prompt_length - 1
            return Row(
                row.ids[: row.prompt_length], (last,) * len(row.labels), row.labels,
                row.prompt_length,
            )  # fmt: skip
        return row

    def _replayed(self, old: Patch) -> list[Edit]:
        """Return earlier edits that are trained on again; of one prompt the last answer."""
        if not self.config.replay or not old.edits:
            return []
        last = list({edit.question: edit for edit in old.edits}.values())
        generator = torch.Generator().manual_seed(self.config.seed + len(old.edits))
        chosen = torch.randperm(len(last), generator=generator)[: self.config.replay]
        return [last[i] for i in sorted(chosen.tolist())]

    def _tune(
        self,
        lm: LM,
        sites: Sequence[tuple[int, Site]],
        rows: Sequence[Sequence[Row]],
        before: Sequence[Patch],
    ) -> list[tuple[dict[str, Tensor], dict[str, Tensor]]]:
        """Tune all groups side by side, each on its own weights.

        Returns:
            Deltas as stored and what is kept for the next step, of each group.
        """
        config = self.config
        tuned = Tuned(lm, sites, len(rows), config.bias)
        decayed = tuned.start(before) if config.weight_decay else None
        how = Descent(
            config.lr, config.steps, config.weight_decay, config.optimizer == "adamw",
            config.batch_size, config.stop_loss, config.shuffle, config.seed,
            config.norm_constraint,
        )  # fmt: skip
        adam = RowAdam(tuned.values, how.lr, how.weight_decay, how.decoupled)
        if config.state == "keep":
            for g, patch in enumerate(before):
                adam.recall(g, _kept(patch, tuned.names))
        moved = descend(tuned, rows, how, adam=adam, decayed=decayed).tolist()
        kept: list[dict[str, Tensor]] = [{} for _ in rows]
        if config.state == "keep":
            for g in range(len(rows)):
                kept[g] = {
                    f"{STATE}.{tuned.names[int(name)] if name.isdecimal() else name}.{part}": value
                    for (name, part), value in adam.told(g).items()
                }
        return [(tuned.stored(g) if moved[g] else {}, kept[g]) for g in range(len(rows))]


def _kept(patch: Patch, names: Sequence[str]) -> dict[tuple[str, str], Tensor]:
    """Return the state of an optimiser that a patch keeps, if it is one of these parameters."""
    numbers = {name: str(number) for number, name in enumerate(names)}
    found: dict[tuple[str, str], Tensor] = {}
    for name, value in patch.state.items():
        if name.startswith(f"{STATE}."):
            parameter, _, part = name.removeprefix(f"{STATE}.").rpartition(".")
            found[numbers.get(parameter, parameter), part] = value
    known = {name for name, _ in found} - {"all"}
    return found if known == set(numbers.values()) else {}
