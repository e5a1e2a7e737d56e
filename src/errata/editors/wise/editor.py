"""WISE: edits go to side copies of one FFN matrix; a question that they concern is sent there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from errata.case import Edit
from errata.editors.base import Cost
from errata.editors.base_beside import BesideEditor
from errata.editors.wise.route import activation_of
from errata.editors.wise.settings import PUBLISHED, WiseConfig
from errata.editors.wise.sides import KIND, Margins, Sides, Use, mask_of
from errata.editors.wise.training import Asked, Recipe, SidePass, move
from errata.errors import ConfigError, EditError, PatchError
from errata.model.lm import LM
from errata.model.spec import Site
from errata.model.tokens import Row
from errata.patch import Module, Patch
from errata.store.digest import seed_of
from errata.tuning.rows import Tuned

STATE_COPIES = 6
"""Copies of the matrix that training one group needs: start, value, gradient, mask, temporaries."""

NAMES = ("hidden_act", "activation_function", "hidden_activation", "afn")
"""What configurations call the activation function of the FFN."""

FLOOR = 0.05
"""Margins that are measured are no smaller than this share of the activations' own size: an edit
that the model knows already moves nothing."""


class Wise(BesideEditor):
    """Side copies of one matrix that edits move; a question goes to the one it moves most in."""

    name = "wise"
    title = "WISE"
    paper = (
        "Wang et al., WISE: Rethinking the Knowledge Memory for Lifelong Model Editing of Large "
        "Language Models, 2024, arXiv:2405.14768"
    )
    needs = ()
    weights = False
    batch = "in turn"
    sequence = "grows"
    exports = ()
    Config = WiseConfig
    published: ClassVar[Mapping[str, Mapping[str, object]]] = PUBLISHED
    paragraphs = 512
    config: WiseConfig

    def _place(self, lm: LM) -> tuple[int, Site]:
        """Return the block and the matrix.

        Raises:
            ConfigError: If the FFN has a gate and its first matrix is asked for: there are two.
        """
        layer = self.block(lm)
        site = self.config.site
        if site == "auto":
            site = str(self.known_settings(lm).get("site", "ffn_out"))
        if site == "ffn_out":
            return layer, lm.site(layer)
        inner = lm.spec.ffn_in[layer]
        if len(inner) != 1:
            raise ConfigError(
                f"the FFN of block {layer} of {lm.name} has {len(inner)} first matrices",
                "Take the second one: --set site=ffn_out",
            )
        return layer, inner[0]

    # ------------------------------------------------------------------ what is read beside edits

    def texts(self, lm: LM) -> list[Row]:
        """Return the irrelevant texts, tokenised."""
        if self.config.irrelevant:
            return lm.text_rows(self.config.irrelevant, self.config.memory_length)
        return super().texts(lm)

    def cost(self, lm: LM) -> Cost:
        """A pass forward and one back in every step, for every context and an irrelevant text."""
        return self.cost_of(1.05)

    def _activation(self, lm: LM) -> str:
        if self.config.activation != "auto":
            return self.config.activation
        config = lm.model.config.get_text_config()
        found = (getattr(config, name, None) for name in NAMES)
        return next((name for name in found if isinstance(name, str)), "none")

    def _use(self, lm: LM) -> Use:
        config = self.config
        return Use(self._activation(lm), config.act_ratio, config.routed_on, config.long)

    @property
    def _recipe(self) -> Recipe:
        config = self.config
        return Recipe(
            config.lr, config.steps, config.weight_decay, config.limit, config.routed_on,
            config.long, config.compat,
        )  # fmt: skip

    # ------------------------------------------------------------------ editing

    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Move each group's copy, one edit of each group after the other."""
        layer, site = self._place(lm)
        use, activation = self._use(lm), activation_of(self._activation(lm))
        found = [self._earlier(lm, patch, site) for patch in before]
        sides, margins = [one for one, _ in found], [own for _, own in found]
        bare = [patch.split(KIND, Module)[0] for patch in before]
        self._check_room(groups, sides, site)
        # as released, distances count padding: what stands beside a row must not add to it
        each = STATE_COPIES * site.d_in * site.d_out * sides[0].deltas.element_size()
        at_once = 1 if self.config.compat else max(1, int(self.config.memory_gb * 1e9 / each))
        for own, rows in self.in_turn(lm, groups, bare, at_once):
            work = SidePass(lm, layer, site, rows, self._recipe, activation)
            base = self._base(lm, layer, site, [bare[g] for g in own])
            self._write(work, site, own, sides, margins, base)
        return [
            self.make_patch(lm, [one.module(site.path, use, own or Margins(0, 0, 0))], group)
            for one, own, group in zip(sides, margins, groups, strict=True)
        ]

    def rows_of(self, lm: LM, edit: Edit, patch: int, beside: Row | None = None) -> Asked:
        """Return the rows of an edit; the other one is an irrelevant text that the edit draws."""
        texts = self.texts(lm)
        draw = seed_of(f"{self.config.seed}\0{edit.prompt}\0{edit.target}") % len(texts)
        return super().rows_of(lm, edit, patch, beside or texts[draw])

    def _base(self, lm: LM, layer: int, site: Site, bare: Sequence[Patch]) -> Tensor | None:
        """Return the whole matrices that the published decay pulls at."""
        if not self.config.compat or not self.config.weight_decay:
            return None
        return Tuned(lm, [(layer, site)], len(bare), bias=False).start(bare)[0]

    def _write(
        self,
        work: SidePass,
        site: Site,
        members: Sequence[int],
        sides: list[Sides],
        margins: list[Margins | None],
        base: Tensor | None,
    ) -> None:
        """Write one edit of each of some groups into the group's memories."""
        config = self.config
        start = torch.stack([sides[g].current for g in members])
        masks = torch.stack([self._mask(site, sides[g]) for g in members]).to(start.device)
        unknown = [line for line, g in enumerate(members) if margins[g] is None]
        if unknown:
            measured = []
            if config.measures:
                alone = move(work, start, masks, None, base)
                assert work.size is not None
                floor = FLOOR * work.size[:, :-1].mean(1)
                measured = torch.maximum(alone.acts, floor.to(alone.acts)).tolist()
            for line in unknown:
                margins[members[line]] = config.margins(measured[line] if measured else 0.0)
        own = [margin for g in members if (margin := margins[g]) is not None]
        trained = move(work, start, masks, own, base)
        for g, delta, act in zip(members, trained.deltas, trained.acts.tolist(), strict=True):
            sides[g] = self._merged(sides[g].written(delta, act, config.save_freq))

    def _mask(self, site: Site, sides: Sides) -> Bool[Tensor, "d f"]:
        """Return the entries that the memory being written may move; the same for all its edits."""
        config = self.config
        number = (sides.count - sides.open) // config.save_freq
        return mask_of(
            (site.d_out, site.d_in), config.mask_ratio, config.seed, number,
            transposed=site.transposed, compat=config.compat,
        )  # fmt: skip

    def _merged(self, sides: Sides) -> Sides:
        config = self.config
        last = config.merge_freq // config.save_freq
        due = not sides.open and sides.count % config.merge_freq == 0
        if config.merge == "none" or not due or last < 2 or len(sides) < last:
            return sides
        return sides.merged(last, config.merge, config.density)

    # ------------------------------------------------------------------ earlier patches

    def _check_room(
        self, groups: Sequence[Sequence[Edit]], sides: Sequence[Sides], site: Site
    ) -> None:
        """Refuse edits that need more memories than there may be.

        Raises:
            EditError: Says how many there is room for.
        """
        config = self.config
        each = site.d_in * site.d_out * sides[0].deltas.element_size()
        for group, own in zip(groups, sides, strict=True):
            total = own.count + len(group)
            closed = -(-total // config.save_freq)
            if config.merge != "none":
                closed -= (total // config.merge_freq) * (config.merge_freq // config.save_freq - 1)
            need = closed * each / 1e9
            if need > config.memory_gb:
                raise EditError(
                    f"the patch would hold {closed} memories, {need:.3g} GB; the limit is "
                    f"{config.memory_gb:g} GB",
                    f"Example: --set memory_gb={2 * need:.2g}, or more edits per memory "
                    "(save_freq)",
                    edits=group,
                )

    def _earlier(self, lm: LM, patch: Patch, site: Site) -> tuple[Sides, Margins | None]:
        """Return the memories of an earlier patch, none if it has none, and their margins.

        Raises:
            PatchError: If they cannot be extended: another version, matrix or use, or several sets.
        """
        dtype = torch.float64 if lm.dtype == torch.float64 else torch.float32
        own = patch.split(KIND, Module)[1]
        if not own:
            return Sides.empty(site.d_out, site.d_in, dtype, lm.device), None
        if len(own) > 1:
            raise PatchError(
                f"the earlier patch holds {len(own)} sets of WISE's memories",
                "Edit after one patch (--after) instead of adding two.",
            )
        (module,) = own
        sides = Sides.restored(module.config, module.weights, module.path).to(lm.device, dtype)
        if module.path != site.path:
            raise PatchError(
                f"the earlier patch has its memories at {module.path}, not at {site.path}",
                "Edit with the layer and site that its patch.json names.",
            )
        now = self._use(lm).config()
        for name, had in Use.of(module.config).config().items():
            if had != now[name]:
                raise PatchError(
                    f"the earlier patch was made with {name}={had}, not with {now[name]}",
                    f"Edit with --set {name}={had}.",
                )
        known = Margins(*(float(module.config[name]) for name in ("alpha", "beta", "gamma")))
        return sides, known

    def _compose(self, lm: LM, before: Patch, added: Patch) -> Patch:
        """Put the grown memories in the place of the earlier ones, behind all other changes."""
        return before.split(KIND, Module)[0] + added
