"""LEMoE: for every batch of edits a small expert beside one FFN, weighed by a router."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from errata.case import Edit
from errata.editors.base import (
    Cost,
    Editor,
    EditorConfig,
    Layer,
    resolve_layer,
    under,
)
from errata.editors.contradictions import refuse_conflicts
from errata.editors.lemoe.experts import (
    KIND,
    NAMES,
    ExpertMemory,
    RouteOn,
    TopK,
    dtype_of,
    shapes_of,
)
from errata.editors.lemoe.order import alike_together
from errata.editors.lemoe.training import Work, train_router
from errata.errors import EditError, PatchError
from errata.model.lm import LM
from errata.patch import Module, Patch
from errata.store.digest import seed_of

STATE_COPIES = 7
"""Copies of an expert that training needs: values, gradient, two moments and temporaries."""


class LemoeConfig(EditorConfig):
    """Settings of LEMoE; the defaults are those of the authors' port."""

    layer: Layer = Field(
        default="auto",
        description="Block of the experts; auto: as published for this model, else the last but "
        "one",
    )
    rank: int = Field(default=32, ge=1, description="Rank of an expert's two matrices")
    init: float = Field(default=0.01, gt=0, description="Deviation of all new tensors' entries")
    lr: float = Field(default=1e-4, gt=0, description="Learning rate of Adam")
    steps: int = Field(default=100, ge=1, description="Updates of an expert")
    stop_loss: float = Field(
        default=0.03, ge=0, description="No more updates when the loss is below this; 0: never"
    )
    batch: int = Field(default=20, ge=1, description="Edits per expert")
    top_k: TopK = Field(
        default="all",
        description="all: every expert answers, as the router weighs it; 1: the best one alone",
    )
    route_on: RouteOn = Field(
        default="prompt",
        description="Tokens whose mean routes: those of the prompt; all: the target's too (as "
        "released: under teacher forcing the router sees the answer)",
    )
    order: Literal["given", "clustered"] = Field(
        default="given", description="Edits of a group: as given, or those that are alike together"
    )
    seed: int = Field(default=0, description="Seed of new experts and of the clusters")
    conflicts: Literal["refuse", "keep"] = Field(
        default="refuse",
        description="Edits of one group with the same prompt and different targets: refuse them, "
        "or train on both",
    )
    memory_gb: float = Field(
        default=4.0,
        gt=0,
        description="Most that a patch's experts may take (more is refused), and memory for "
        "training groups side by side",
    )


class Lemoe(Editor):
    """Experts beside one FFN, one per batch of edits; earlier ones are frozen."""

    name = "lemoe"
    title = "LEMoE"
    paper = (
        "Wang and Li, LEMoE: Advanced Mixture of Experts Adaptor for Lifelong Model Editing of "
        "Large Language Models, 2024, arXiv:2406.20030"
    )
    needs = ()
    weights = False
    batch = "memory"
    sequence = "grows"
    exports = ()
    Config = LemoeConfig
    published: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # the last block but one, as in the port's configuration; IBKE's table names no block
        "gpt2-xl": {"layer": 46},
        "gpt-j-6b": {"layer": 26},
        "qwen3-1.7b": {"layer": 26},
        "qwen3-8b": {"layer": 34},
        "liveedit-llava-v1.5-7b": {"layer": 30},
    }
    presets: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # found on validation facts of the world, single edits and batches of 20; see docs
        "pocket": {"lr": 3e-3},
    }
    config: LemoeConfig

    def check_together(self, group: Sequence[Edit]) -> None:
        """Refuse edits that contradict each other: no expert can give both answers."""
        if self.config.conflicts == "refuse":
            refuse_conflicts(group, by_subject=True, instead="keep")

    # ------------------------------------------------------------------ editing

    def cost(self, lm: LM) -> Cost:
        """A pass forward and one back in every step."""
        return Cost(passes=2.0 * self.config.steps)

    def edited_layers(self, lm: LM) -> tuple[int]:
        """Return the block of the experts."""
        rule = self._automatic(lm, "layer", max(0, lm.n_layers - 2))
        return (resolve_layer(lm, self.config.layer, rule),)

    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Train one expert per group; those of earlier batches stay as they are."""
        (layer,) = self.edited_layers(lm)
        memories = [self._earlier(lm, patch, layer) for patch in before]
        bare = [patch.split(KIND, Module)[0] for patch in before]
        each = self._room(lm, layer, groups, memories)
        at_once = max(1, int(self.config.memory_gb * 1e9 / (STATE_COPIES * each)))
        for first in range(0, len(groups), at_once):
            chunk = range(first, min(first + at_once, len(groups)))
            for numbers, patches in under(lm, [bare[g] for g in chunk]):
                members = [chunk[i] for i in numbers]
                grown = self._grow(
                    Work(lm, layer), [groups[g] for g in members], patches,
                    [memories[g] for g in members],
                )  # fmt: skip
                for g, memory in zip(members, grown, strict=True):
                    memories[g] = memory
        path, source = lm.site(layer).path, lm.spec.ffn_in[layer][0].path
        patches = []
        for memory, group in zip(memories, groups, strict=True):
            module = memory.experts.module(path, source, self.config.route_on, self.config.top_k)
            patches.append(self.make_patch(lm, [module], group, **memory.state()))
        return patches

    def _room(
        self, lm: LM, layer: int, groups: Sequence[Sequence[Edit]], memories: Sequence[ExpertMemory]
    ) -> int:
        """Return the bytes of one expert.

        Raises:
            EditError: If a group's experts would take more than they may.
        """
        shapes = self._shapes(lm, layer).values()
        each = sum(math.prod(shape) for shape in shapes) * dtype_of(lm).itemsize
        most = int(self.config.memory_gb * 1e9 / each)
        for group, memory in zip(groups, memories, strict=True):
            count = len(memory.experts) + -(-len(group) // self.config.batch)
            if count > most:
                fit = max(0, most - len(memory.experts)) * self.config.batch
                raise EditError(
                    f"the patch would hold {count} experts, {count * each / 1e9:.3g} GB; the limit "
                    f"is {self.config.memory_gb:g} GB",
                    f"Example: --set memory_gb={math.ceil(2 * count * each / 1e8) / 10:g}, or more "
                    "edits per expert (batch)",
                    edits=group[fit:],
                )
        return each

    def _grow(
        self,
        work: Work,
        groups: Sequence[Sequence[Edit]],
        patches: Sequence[int],
        memories: Sequence[ExpertMemory],
    ) -> list[ExpertMemory]:
        """Return the memories with one more expert for each batch of edits.

        `patches` says under which patch of the active stack each group's rows run.
        """
        config, lm = self.config, work.lm
        memories = list(memories)
        rows = [
            [replace(lm.row_of(edit), patch=patch) for edit in group]
            for group, patch in zip(groups, patches, strict=True)
        ]
        means: list[Tensor] = [lm.embedding[:0]] * len(groups)
        if config.top_k == 1 or config.order == "clustered":
            means = work.read(rows, config.route_on)
        orders = [self._ordered(group, own) for group, own in zip(groups, means, strict=True)]
        for start in range(0, max(map(len, groups)), config.batch):
            live = [g for g, order in enumerate(orders) if len(order) > start]
            taken = [orders[g][start : start + config.batch] for g in live]
            old = [memories[g].experts for g in live]
            drawn = [
                self._drawn(lm, work.layer, [groups[g][i] for i in mine], len(experts))
                for g, mine, experts in zip(live, taken, old, strict=True)
            ]
            trained = work.train(
                old, {name: torch.stack([one[name] for one in drawn]) for name in NAMES},
                [[rows[g][i] for i in mine] for g, mine in zip(live, taken, strict=True)],
                route_on=config.route_on, top_k=config.top_k,
                lr=config.lr, steps=config.steps, stop_loss=config.stop_loss,
            )  # fmt: skip
            for at, (g, mine) in enumerate(zip(live, taken, strict=True)):
                one = {name: tensor[at] for name, tensor in trained.items()}
                memories[g] = memories[g].added(one, means[g][mine] if config.top_k == 1 else None)
            if config.top_k == 1:
                taught = train_router(
                    [memories[g] for g in live],
                    lr=config.lr, steps=config.steps, stop_loss=config.stop_loss,
                )  # fmt: skip
                for g, memory in zip(live, taught, strict=True):
                    memories[g] = memory
        return memories

    def _ordered(self, group: Sequence[Edit], means: Float[Tensor, "n d_in"]) -> list[int]:
        """Return the order in which a group's edits are taken."""
        if self.config.order == "given" or len(group) <= self.config.batch:
            return list(range(len(group)))
        return alike_together(means, self.config.batch, self.config.seed)

    def _shapes(self, lm: LM, layer: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes of an expert's tensors."""
        inner, outer, rank = lm.spec.ffn_in[layer][0].d_in, lm.site(layer), self.config.rank
        wide = lm.spec.ffn_out[layer].d_in
        return shapes_of(inner, wide, outer.d_out, rank)

    def _drawn(self, lm: LM, layer: int, edits: Sequence[Edit], number: int) -> dict[str, Tensor]:
        """Draw a new expert, which depends on its edits, its number and the seed alone.

        The number is there so that the same edits, given again, get another key.
        """
        texts = [text for edit in edits for text in (edit.prompt, edit.target)]
        text = "\0".join([str(self.config.seed), str(number), *texts])
        generator = torch.Generator().manual_seed(seed_of(text))
        return {
            name: (self.config.init * torch.randn(shape, generator=generator)).to(
                lm.device, dtype_of(lm)
            )
            for name, shape in self._shapes(lm, layer).items()
        }

    # ------------------------------------------------------------------ earlier patches

    def _earlier(self, lm: LM, patch: Patch, layer: int) -> ExpertMemory:
        """Return the experts of an earlier patch; an empty memory if it has none.

        Raises:
            PatchError: If they cannot be extended: another version, block, rank or routing, or
                several sets of experts.
        """
        config, shapes = self.config, self._shapes(lm, layer)
        own = patch.split(KIND, Module)[1]
        if not own:
            return ExpertMemory.empty(shapes, dtype_of(lm), lm.device)
        if len(own) > 1:
            raise PatchError(
                f"the earlier patch holds {len(own)} sets of experts of LEMoE",
                "Edit after one patch (--after) instead of adding two.",
            )
        (module,) = own
        memory = ExpertMemory.restored(module, patch.state, config.top_k).to(
            lm.device, dtype_of(lm)
        )
        path = lm.site(layer).path
        if module.path != path:
            raise PatchError(
                f"the earlier patch has its experts at {module.path}, not at {path}",
                "Edit with the layer that its patch.json names.",
            )
        for name in ("route_on", "top_k"):
            had = module.config.get(name)
            if had != getattr(config, name):
                raise PatchError(
                    f"the earlier patch was made with {name}={had}, not with "
                    f"{getattr(config, name)}",
                    f"Edit with --set {name}={had}.",
                )
        had = {name: tuple(t.shape[1:]) for name, t in memory.experts.tensors().items()}
        if had != shapes:
            raise PatchError(
                f"the earlier patch has experts of rank {had['c1'][-1]}, not of {config.rank}",
                f"Edit with --set rank={had['c1'][-1]}.",
            )
        return memory

    def _compose(self, lm: LM, before: Patch, added: Patch) -> Patch:
        """Put the grown set of experts in the place of the earlier one, behind other changes."""
        return before.split(KIND, Module)[0] + added
