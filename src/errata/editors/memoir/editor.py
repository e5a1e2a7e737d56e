"""MEMOIR: a residual memory beside one matrix, each edit in its own sparse share of the columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor

from errata.case import Edit
from errata.editors.base import (
    Cost,
)
from errata.editors.base_beside import BesideConfig, BesideEditor
from errata.editors.memoir.memory import KIND, Feature, Memory, Use, feature_of, masks_of
from errata.editors.memoir.training import write
from errata.editors.wise.route import activation_of
from errata.editors.wise.training import Asked, Recipe, SidePass
from errata.errors import EditError, PatchError
from errata.model.lm import LM
from errata.model.passes import capture, wide
from errata.model.spec import Site
from errata.model.tokens import Row, bucket
from errata.patch import Module, Patch
from errata.store.digest import seed_of

STATE_COPIES = 4
"""Copies of the matrix that one group needs: memory, leaf, gradient and the next one."""

LIKELY = 0.95
"""Of the overlaps of other texts with an edit, this share lies below what `tau=auto` calls low."""


class MemoirConfig(BesideConfig):
    """Settings of MEMOIR."""

    share: float = Field(
        default=0.25, gt=0, le=1, description="Share of the columns that a mask holds"
    )
    tau: float | Literal["auto"] = Field(
        default="auto",
        description="Share of a mask from which a question reads with it; auto: between the "
        "overlaps of other texts with the first edit and those of its own contexts",
    )
    feature: Feature = Field(
        default="centred",
        description="What masks are taken from: the mean of a prompt's inputs less that of other "
        "texts, the mean, or the last one",
    )
    clip: float = Field(default=1.0, gt=0, description="Largest norm of a gradient")
    weight_decay: float = Field(
        default=0.0,
        ge=0,
        description="Share of the whole memory that goes with every step (as released: 1e-5; "
        "earlier edits fade)",
    )


class Memoir(BesideEditor):
    """A residual memory of one matrix; a question reads with the mask of the edit it is like."""

    name = "memoir"
    title = "MEMOIR"
    paper = (
        "Wang et al., MEMOIR: Lifelong Model Editing with Minimal Overwrite and Informed Retention "
        "for LLMs, 2025, arXiv:2506.07899"
    )
    needs = ()
    weights = False
    batch = "in turn"
    sequence = "grows"
    exports = ()
    Config = MemoirConfig
    published: ClassVar[Mapping[str, Mapping[str, object]]] = {
        # tau as for zsRE
        "llama-3-8b": {"layer": 27, "share": 4096 / 14336, "tau": 0.4, "steps": 30},
        "gpt-j-6b": {"layer": 21, "share": 0.25, "tau": 0.46, "steps": 70},
    }
    paragraphs = 100  # whose mean is taken off, as published
    config: MemoirConfig

    def _place(self, lm: LM) -> tuple[int, Site]:
        layer = self.block(lm)
        return layer, lm.site(layer)

    def cost(self, lm: LM) -> Cost:
        """A pass forward and one back in every step, for every context and an idle text."""
        return self.cost_of(1.02)

    # ------------------------------------------------------------------ editing

    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Write into each group's memory, one edit of each group after the other."""
        layer, site = self._place(lm)
        found = [self._earlier(lm, patch, layer, site) for patch in before]
        memories, uses = [one for one, _ in found], [use for _, use in found]
        bare = [patch.split(KIND, Module)[0] for patch in before]
        each = STATE_COPIES * site.d_in * site.d_out * memories[0].matrix.element_size()
        at_once = max(1, int(self.config.memory_gb * 1e9 / each))
        for own, rows in self.in_turn(lm, groups, bare, at_once):
            self._write(lm, layer, site, rows, own, memories, uses)
            for g in own:
                self._check_room(memories[g], groups[g])
        made = []
        for memory, use, group in zip(memories, uses, groups, strict=True):
            assert use is not None
            made.append(self.make_patch(lm, [memory.module(site.path, use)], group))
        return made

    def _write(
        self,
        lm: LM,
        layer: int,
        site: Site,
        asked: Sequence[Asked],
        members: Sequence[int],
        memories: list[Memory],
        uses: list[Use | None],
    ) -> None:
        """Write one edit of each of some groups into the group's memory."""
        config = self.config
        rows = [one.prompts for one in asked]
        features = inputs_of(lm, site, [row for own in rows for row in own], config.feature)
        phis = features.to(memories[0].matrix).split([len(own) for own in rows])
        masks = []
        for g, phi in zip(members, phis, strict=True):
            k = max(1, round(config.share * site.d_in))
            centred = phi - memories[g].centre if config.feature == "centred" else phi
            own = masks_of(centred, memories[g].order, k)
            masks.append(own[0])
            if uses[g] is None:
                uses[g] = Use(k, self._tau(lm, site, memories[g], own, k), config.feature)
        recipe = Recipe(config.lr, config.steps, 0.0, float("inf"), "all", 10**9, False)
        columns = torch.stack(masks).to(memories[0].matrix)
        work = SidePass(lm, layer, site, asked, recipe, activation_of("none"), columns)
        start = torch.stack([memories[g].matrix for g in members])
        written, _ = write(
            work, start, lr=config.lr, steps=config.steps, clip=config.clip,
            decay=config.weight_decay,
        )  # fmt: skip
        for g, matrix, mask in zip(members, written, masks, strict=True):
            memories[g] = memories[g].written(matrix, mask)

    def _tau(self, lm: LM, site: Site, memory: Memory, own: Bool[Tensor, "c f"], k: int) -> float:
        """Return where overlaps of other texts end and those of an edit's contexts begin."""
        if self.config.tau != "auto":
            return self.config.tau
        others = inputs_of(lm, site, self.texts(lm), self.config.feature).to(memory.centre)
        if self.config.feature == "centred":
            others = others - memory.centre
        first = own[0].to(memory.centre)
        low = (masks_of(others, memory.order, k).to(first) @ first / k).quantile(LIKELY)
        high = (own[1:].to(first) @ first / k).mean() if len(own) > 1 else low.new_ones(())
        return float((low + torch.maximum(high, low)) / 2)

    def _check_room(self, memory: Memory, group: Sequence[Edit]) -> None:
        if memory.nbytes > self.config.memory_gb * 1e9:
            raise EditError(
                f"the memory would hold {len(memory)} edits, {memory.nbytes / 1e9:.3g} GB; the "
                f"limit is {self.config.memory_gb:g} GB",
                f"Example: --set memory_gb={2 * memory.nbytes / 1e9:.2g}",
                edits=list(group),
            )

    # ------------------------------------------------------------------ earlier patches

    def _new(self, lm: LM, site: Site) -> Memory:
        """Return an empty memory: its permutation, and the mean of other texts."""
        dtype = torch.float64 if lm.dtype == torch.float64 else torch.float32
        generator = torch.Generator().manual_seed(seed_of(f"memoir\0{self.config.seed}"))
        order = torch.randperm(site.d_in, generator=generator)
        key = ("MEMOIR's centre", site.path, self.config)
        centre = lm.once(
            key, lambda: inputs_of(lm, site, self.texts(lm), "mean").mean(0), owner=self
        )
        return Memory.empty(site.d_out, order, centre.to(lm.device), dtype)

    def _earlier(self, lm: LM, patch: Patch, layer: int, site: Site) -> tuple[Memory, Use | None]:
        """Return the memory of an earlier patch, an empty one if it has none.

        Raises:
            PatchError: If it cannot be extended: another version, matrix or masks, or several.
        """
        own = patch.split(KIND, Module)[1]
        if not own:
            return self._new(lm, site), None
        if len(own) > 1:
            raise PatchError(
                f"the earlier patch holds {len(own)} memories of MEMOIR",
                "Edit after one patch (--after) instead of adding two.",
            )
        (module,) = own
        if module.path != site.path:
            raise PatchError(
                f"the earlier patch has its memory at {module.path}, not at {site.path}",
                "Edit with the layer that its patch.json names.",
            )
        memory, use = Memory.restored(module.config, module.weights, module.path), None
        use = Use.of(module.config)
        k = max(1, round(self.config.share * site.d_in))
        if (use.k, use.feature) != (k, self.config.feature):
            raise PatchError(
                f"the earlier patch was made with masks of {use.k} columns by feature="
                f"{use.feature}, not of {k} by {self.config.feature}",
                f"Edit with --set share={use.k / site.d_in:g} --set feature={use.feature}.",
            )
        dtype = torch.float64 if lm.dtype == torch.float64 else torch.float32
        for change in patch.changes[patch.changes.index(module) + 1 :]:
            if change.moves_input(lm, layer, [site.path]):
                raise PatchError(
                    f"the earlier patch changed {change.path} after MEMOIR's masks were read "
                    "above it: they are masks of another model",
                    "Change what lies below first, then edit with MEMOIR.",
                )
        return memory.to(lm.device, dtype), use

    def _compose(self, lm: LM, before: Patch, added: Patch) -> Patch:
        """Put the grown memory in the place of the earlier one, behind all other changes."""
        return before.split(KIND, Module)[0] + added


@torch.no_grad()
def inputs_of(lm: LM, site: Site, rows: Sequence[Row], feature: Feature) -> Float[Tensor, "n f"]:
    """Return the mean (or last) input of a matrix at the tokens of each row, nothing taken off."""
    found: list[Tensor] = [lm.embedding[0]] * len(rows)
    what: Feature = "last" if feature == "last" else "mean"
    for index in bucket(rows, lm.max_tokens):
        batch = lm.batch(rows, index)
        (given,), _ = capture(lm, batch, inputs=[lm.module(site.path)])
        x = wide(given).reshape(len(index), -1, given.shape[-1])
        own = feature_of(x, batch.attention_mask.bool(), what, x.new_zeros(()))
        for i, vector in zip(index, own, strict=True):
            found[i] = vector
    return torch.stack(found)
