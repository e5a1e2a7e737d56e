"""Methods that write many edits into several blocks at once, block after block.

Residual rule x solver x place of the value spans the family: every editor's file states only what
is its own, and the strategies change the rule.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from errata.case import Edit
from errata.editors.base import resolve_layer
from errata.editors.base_located import Layers, LocateConfig, LocateEditor
from errata.editors.joint_reads import JointReads
from errata.editors.recall import gated, recall_layer
from errata.errors import EditError
from errata.locate.contexts import Contexts, Mean
from errata.locate.joint import RowsError
from errata.locate.memory import KeyMemory
from errata.locate.stream import added_as_it_is
from errata.locate.values import Adaptive, Values, optimise_values
from errata.model.lm import LM
from errata.model.passes import Place
from errata.model.spec import Site
from errata.patch import Change, LowRank, Patch
from errata.patch.deltas import bounded
from errata.tracing.trace import cached_choice

Rule = Literal["linear", "sqrt", "direct"]
"""What part of the missing value a block supplies: 1/(blocks left), its root, or all of its own."""

Factors = tuple[Float[Tensor, "u d"], Float[Tensor, "u f"]]

MOST_LAYERS = 5
"""Blocks that the published tables edit, as a rule."""

EARLY = 0.06
"""Where one block is edited, as a share of the depth, on models that norm the FFN's output."""


class JointConfig(LocateConfig):
    """Settings of a method that edits several blocks."""

    layers: Layers = Field(
        default="auto",
        description="Blocks to edit; auto: as published for this model, else as traced, else by "
        "depth",
    )
    contexts: str | tuple[str, ...] = Field(
        default="memit",
        description="Texts in front of the prompt: a recipe sampled from the unedited model "
        "(memit: 6 contexts; also rome, easyedit, uniedit, bare) or a list of templates that end "
        "in {}; with +chat (memit+chat) also in the model's chat, so that the edit holds there "
        "too, and chat alone stands for the default with +chat",
    )
    clamp: float = Field(default=0.75, gt=0, description="Largest ||delta|| relative to ||v0||")
    value_at: Literal["block", "ffn"] = Field(
        default="block",
        description="Where values are found and missed: block, behind the block, as published; "
        "ffn, behind the edited matrix, for models that change its output before they add it "
        "(Gemma 2 and 3: a norm). PMET has places of its own",
    )
    conflicts: Literal["refuse", "keep"] = Field(
        default="refuse",
        description="Edits of one batch with equal prompts and different targets; keep: they are "
        "averaged",
    )


@dataclass(frozen=True)
class Write:
    """One block's part of one group: what a solver gets.

    Attributes:
        site: The projection.
        layer: Its block.
        residual: What is missing at each edit's key, one row per edit.
        keys: Mean keys of the edits.
        memory: Keys of earlier edits, if they are remembered.
        now: The group's patch so far.
    """

    site: Site
    layer: int
    residual: Float[Tensor, "u d"]
    keys: Float[Tensor, "u f"]
    memory: KeyMemory | None
    now: Patch


class JointEditor(LocateEditor):
    """Finds values once, then solves block after block, ascending, on the weights as they are.

    Attributes:
        rule: How the residual is spread over the blocks.
        places: Where the value is found, as published; the first is where the residual is read.
    """

    mean: ClassVar[Mean] = "two_level"
    rule: ClassVar[Rule] = "linear"
    places: ClassVar[tuple[Place, ...]] = ("block",)
    config: JointConfig

    # ------------------------------------------------------------------ what a method states

    @property
    def found_at(self) -> tuple[Place, ...]:
        """Where values are found with these settings."""
        moved = self.places == ("block",) and self.config.value_at == "ffn"
        return ("ffn",) if moved else self.places

    @property
    def value_place(self) -> Place:
        """Where the value that an update aims at is found."""
        return self.found_at[0]

    def rule_by_shape(self, lm: LM) -> tuple[str, Mapping[str, object]]:
        """Return one early block, and values behind its matrix, where its output is changed."""
        if self.places != ("block",) or added_as_it_is(lm):
            return "", {}
        layer = round(EARLY * lm.n_layers)
        return "rule for models that norm or scale the FFN's output", {
            "value_at": "ffn", "layers": (layer,),
        }  # fmt: skip

    @abstractmethod
    def factors(self, lm: LM, write: Write) -> Factors:
        """Solve for one block: rows `(B, A)`, one per edit, with update `D = B^T A` (`d x f`)."""

    def change(self, lm: LM, write: Write) -> Change:
        """Return the change of one block; a low-rank one unless a method needs all entries."""
        B, A = self.factors(lm, write)
        dtype = write.residual.dtype
        return LowRank(write.site.path, B.T.to(dtype).contiguous(), A.to(dtype).contiguous())

    def facts(self, lm: LM) -> dict[str, int]:
        """Return numbers that every patch records."""
        return {}

    def values(
        self,
        lm: LM,
        edits: Sequence[Edit],
        contexts: Contexts,
        layer: int,
        patches: Sequence[int],
        held: Sequence[Mapping[Place, Tensor]] = (),
    ) -> Values:
        """Find the values of edits at one block; arguments as `optimise_values` takes them."""
        return optimise_values(
            lm, edits, contexts, layer, self.config, places=self.found_at, savings=self.config,
            patches=patches, adaptive=self.adaptive, held=held,
        )  # fmt: skip

    @property
    def edits_experts(self) -> bool:
        """Whether it edits single experts: not if it remembers keys, which are kept by block."""
        return not self.remembers

    @property
    def remembers(self) -> bool:
        """Whether keys of earlier edits are kept in the patch and spared."""
        return False

    @property
    def adaptive(self) -> Adaptive | None:
        """How the likelihood's weight follows the optimisation of values; None: it is fixed."""
        return None

    def edited_layers(self, lm: LM) -> tuple[int, ...]:
        """Return the blocks of the setting `layers`."""
        chosen = self.config.layers
        return self.resolve_layers(lm, self.automatic_layers(lm) if chosen == "auto" else chosen)

    def automatic_layers(self, lm: LM) -> tuple[int, ...]:
        """Return the blocks published for this model, else as traced, else by depth."""
        published = self._automatic_layers(lm)
        if published is not None:
            return published
        traced = cached_choice(lm)
        if traced is not None:
            return traced.layers
        # the published tables end where ROME edits in plain FFNs (GPT2-XL 13-17, GPT-J 3-8) and
        # half as deep again in gated ones (Llama 4-8 where ROME edits 5)
        last = recall_layer(lm)
        if gated(lm, lm.n_layers // 2):
            last = min(lm.n_layers - 1, round(1.5 * last))
        return tuple(range(max(0, last - MOST_LAYERS + 1), last + 1))

    def resolve_layers(self, lm: LM, layers: Sequence[int]) -> tuple[int, ...]:
        """Return block numbers in ascending order, each once.

        Raises:
            ConfigError: If the model has no such block, or none is given.
        """
        return tuple(sorted({resolve_layer(lm, layer, 0) for layer in layers}))

    # ------------------------------------------------------------------ the schedule

    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Find the wanted values of all groups, then solve block after block."""
        at = self.prepared(lm)
        run = JointReads(lm, groups, at.contexts, self.mean, self.found_at, before)
        memories = [self._recalled(patch, at.layers) for patch in before]
        changes: list[list[Change]] = [[] for _ in groups]

        def now() -> list[Patch]:
            return [patch + Patch(tuple(own)) for patch, own in zip(before, changes, strict=True)]

        last = at.layers[-1]
        target = None
        for position, layer in enumerate(at.layers):
            aim = layer if self.rule == "direct" else last
            patches = now()
            if target is None or self.rule == "direct":
                target = run.targets(patches, aim, self)
            keys, current = run.read(patches, layer, aim)
            share = self._share(len(at.layers) - position)
            residual = (target - current.to(target)) * share
            for g, rows in enumerate(run.rows):
                write = Write(
                    lm.site(layer), layer, residual[rows], keys[rows], memories[g].get(layer),
                    patches[g],
                )  # fmt: skip
                try:
                    solved = self.change(lm, write)
                    changes[g].append(self.finished(lm, layer, solved, patches[g]))
                    run.check(changes[g][-1], write.site)
                except RowsError as error:
                    blamed = tuple(groups[g][row] for row in error.rows)
                    raise EditError(error.message, error.hint, edits=blamed) from None
        states = self._states(run, now(), at.layers, memories)
        facts = self.facts(lm)
        return [
            self.make_patch(lm, own, group, **facts, **state)
            for own, group, state in zip(changes, groups, states, strict=True)
        ]

    def residuals(self, lm: LM, edits: Sequence[Edit]) -> dict[int, Float[Tensor, "n d"]]:
        """Return what each block misses: a value found at that block itself, less its present one.

        On the unedited model; nothing is edited. A host that spreads finds only the last of them
        (BLUE, Li et al. 2025).

        Args:
            lm: The model.
            edits: The edits.

        Returns:
            By block, lowest first, one row per edit.
        """
        self.prepare(lm)
        at = self.prepared(lm)
        run = JointReads(lm, [edits], at.contexts, self.mean, self.found_at, [Patch()])
        run.known = None  # nothing is written, and blocks come in any order
        found = {}
        for layer in at.layers:
            target = run.targets([Patch()], layer, self)
            _, current = run.read([Patch()], layer, layer)
            found[layer] = target - current.to(target)
        return found

    def _share(self, left: int) -> float:
        return {"linear": 1 / left, "sqrt": 1 / math.sqrt(left), "direct": 1.0}[self.rule]

    def _recalled(self, patch: Patch, layers: Sequence[int]) -> dict[int, KeyMemory]:
        if not self.remembers:
            return {}
        return {layer: KeyMemory.from_tensors(patch.state, f"memory.{layer}") for layer in layers}

    def _states(
        self,
        run: JointReads,
        patches: Sequence[Patch],
        layers: Sequence[int],
        memories: Sequence[Mapping[int, KeyMemory]],
    ) -> list[dict[str, Tensor]]:
        """Return what has to be known next time: keys as the edited model has them, remembered."""
        states: list[dict[str, Tensor]] = [{} for _ in patches]
        if not self.remembers:
            return states
        keys = run.keys_afterwards(patches, layers)
        for g, rows in enumerate(run.rows):
            for layer in layers:
                memory = memories[g][layer].add(keys[layer][rows])
                states[g] |= memory.tensors(f"memory.{layer}")
        return states

    def _compose(self, lm: LM, before: Patch, added: Patch) -> Patch:
        # a memory is replaced as a whole: its keys give way to their sum when they grow many
        new = {name.rpartition(".")[0] for name in added.state if name.startswith("memory.")}
        kept = {
            name: value
            for name, value in before.state.items()
            if name.rpartition(".")[0] not in new
        }
        return bounded(lm, replace(before, state=kept) + added)
