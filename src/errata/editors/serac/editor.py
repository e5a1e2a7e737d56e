"""SERAC: a memory of edits, a router, and a small model that answers in the big one's place."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from errata.case import Edit
from errata.editors.base import Cost, under
from errata.editors.base_networks import NetworkConfig, NetworkEditor
from errata.editors.contradictions import refuse_conflicts
from errata.editors.serac.network import SeracNetwork, full_text, shown_text, stored_text
from errata.editors.serac.route import KIND, Rule, ScopeMemory, share
from errata.errors import EditError, PatchError
from errata.model.lm import LM
from errata.model.spec import Site
from errata.model.tokens import Row
from errata.model.weights import weight_fingerprint
from errata.nets.scope import embed, nearest
from errata.patch import Patch
from errata.patch.changes import Route

if TYPE_CHECKING:
    from errata.editors.serac.objective import SeracObjective
    from errata.training.config import TrainConfig
    from errata.training.prepared import Prepared

log = logging.getLogger(__name__)

RATE = 0.5
"""Fewer of the edits' own prompts in scope, or more of other edits' prompts: there is a warning."""

FEW = 8
"""Prompts of other edits that say something about a router."""


class SeracConfig(NetworkConfig):
    """Settings of SERAC."""

    route_on: Literal["prompt", "target_leak"] = Field(
        default="prompt",
        description="What is compared: prompt: the prompts of edit and question; target_leak: as "
        "released, the edit with its target and the question with the answer it is scored on",
    )
    switch: Literal["hard", "soft"] = Field(
        default="hard",
        description="hard: one model or the other answers; soft: their probabilities are mixed by "
        "similarity (EasyEdit), and no answer stays exactly what it was",
    )
    threshold: float = Field(default=20.0, description="Inner product from which an edit answers")
    router: str = Field(
        default="sentence-transformers/multi-qa-mpnet-base-dot-v1",
        description="Encoder of the router: a Hub id or folder, or own:BLOCK,BLOCK,… for copies of "
        "the base model's blocks",
    )
    small: str = Field(
        default="facebook/opt-125m",
        description="Counterfactual model: a Hub id or folder, or own:BLOCK,BLOCK,…",
    )
    train_router: bool = Field(
        default=False, description="Whether the router's encoder is trained with the rest"
    )
    key_width: int = Field(default=64, ge=1, description="Width of the keys of an own encoder")
    router_loss: Literal["threshold", "released"] = Field(
        default="threshold",
        description="threshold: it competes with the keys in every question; released: in those "
        "out of scope only, and a small hinge pulls the others up",
    )
    conflicts: Literal["refuse", "replace"] = Field(
        default="refuse",
        description="Edits of one group with the same prompt and different targets: refuse them, "
        "or let the later one win, as it does over earlier edits",
    )
    memory_gb: float = Field(
        default=4.0, gt=0, description="Largest memory; an edit that needs more is refused"
    )


class Serac(NetworkEditor):
    """A memory beside the model: near its edits a small model answers, elsewhere the model."""

    name: ClassVar[str] = "serac"
    title: ClassVar[str] = "SERAC"
    paper: ClassVar[str] = (
        "Mitchell et al., Memory-Based Model Editing at Scale, 2022, arXiv:2206.06520"
    )
    needs: ClassVar[tuple[str, ...]] = ("training",)
    weights: ClassVar[bool] = False
    batch: ClassVar[str] = "memory"
    sequence: ClassVar[str] = "grows"
    exports: ClassVar[tuple[str, ...]] = ()
    Config: ClassVar[type[SeracConfig]] = SeracConfig
    at_edit_time: ClassVar[tuple[str, ...]] = (
        "weights", "route_on", "switch", "threshold", "conflicts", "memory_gb",
    )  # fmt: skip
    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "gpt2-xl": {"small": "facebook/opt-125m", "route_on": "target_leak"},
        "gpt-j-6b": {"small": "facebook/opt-125m", "route_on": "target_leak"},
        "qwen3-1.7b": {"small": "facebook/opt-125m", "route_on": "target_leak"},
        "qwen3-8b": {"small": "facebook/opt-125m", "route_on": "target_leak"},
    }
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # found on validation facts of the world; see docs
        "pocket": {"router": "own:0,3", "small": "own:0,2,3,4,6", "train_router": True},
    }
    defaults: ClassVar[Mapping[str, Any]] = {
        "lr": 1e-4, "batch": 8, "clip": 100.0, "hops": "none", "warmup": 0, "decay_from": 1.0,
        "calibrate": None, "validate_every": 500, "save_every": 500,
        "pocket": {"lr": 1e-3, "batch": 32, "clip": 1.0, "warmup": 30, "decay_from": 0.3,
                   "il_weight": 0.1, "validate_every": 100, "save_every": 100,
                   "validation_groups": 96},
    }  # fmt: skip
    config: SeracConfig
    _printed: tuple[SeracNetwork, int, str] | None = None

    # ------------------------------------------------------------------ networks

    def build(self, sites: Sequence[tuple[int, Site]], lm: LM) -> SeracNetwork:
        """Return untrained networks, or the published ones that training starts from."""
        config = self.config
        return SeracNetwork(
            lm, router=config.router, small=config.small, key_width=config.key_width,
            train_router=config.train_router, size=max(config.threshold, 1.0),
        )  # fmt: skip

    def objective(self, lm: LM, prepared: Prepared, config: TrainConfig) -> SeracObjective:
        """Return the losses of counterfactual model and router."""
        from errata.editors.serac.objective import SeracObjective

        return SeracObjective(lm, prepared, config, self.config)

    def adopt(self, lm: LM, network: SeracNetwork, source: str | None = None) -> None:
        """Use these networks for this model, and let its patches find them."""
        super().adopt(lm, network, source)
        share(lm, network, self._fingerprint(network))

    def _fingerprint(self, network: SeracNetwork) -> str:
        """Return the fingerprint of the networks' weights; computed again if they were written."""
        state = sum(parameter._version for parameter in network.parameters())
        if self._printed is None or self._printed[:2] != (network, state):
            self._printed = (network, state, weight_fingerprint(network)[:16])
        return self._printed[2]

    def _rule(self, lm: LM) -> Rule:
        """Return how the router of this editor's patches decides."""
        network = self.network(lm)
        fingerprint = self._fingerprint(network)
        share(lm, network, fingerprint)
        config = self.config
        return Rule(self._source, fingerprint, config.threshold, config.route_on, config.switch)

    # ------------------------------------------------------------------ editing

    def check_together(self, group: Sequence[Edit]) -> None:
        """Refuse two answers to one prompt, unless the later one may win.

        The router cannot tell them apart.

        Raises:
            EditError: Names all of them.
        """
        if self.config.conflicts == "replace" or self.config.route_on == "target_leak":
            return
        refuse_conflicts(group, instead="replace")

    def cost(self, lm: LM) -> Cost:
        """An edit is read once; questions are asked of two models."""
        return Cost(passes=1.0, questions=2.0)

    @torch.no_grad()
    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Add each group's edits to its memory; nothing is trained."""
        rule = self._rule(lm)
        rows = [[lm.row_of(edit) for edit in group] for group in groups]
        keys = self._keys(lm, rows, [patch.split(KIND, Route)[0] for patch in before])
        patches = []
        for group, own, new, patch in zip(groups, rows, keys, before, strict=True):
            prompts = [row.prompt_length for row in own]
            memory = _earlier(patch, rule, new).grown([full_text(r) for r in own], prompts, new)
            self._check_size(memory, group)
            patches.append(self.make_patch(lm, [rule.change(memory)], group))
        self._warn(lm, rows, keys, patches)
        return patches

    def _keys(self, lm: LM, rows: Sequence[Sequence[Row]], bare: Sequence[Patch]) -> list[Tensor]:
        """Return the keys of every group's edits; the encoder sees the model's words as patched."""
        encoder = self.network(lm).encoder
        keys: dict[int, Tensor] = {}
        for numbers, _ in under(lm, bare):
            texts = [stored_text(row, self.config.route_on) for g in numbers for row in rows[g]]
            parts = embed(lm, encoder, texts).split([len(rows[g]) for g in numbers])
            keys.update(zip(numbers, parts, strict=True))
        return [keys[g] for g in range(len(rows))]

    def _check_size(self, memory: ScopeMemory, group: Sequence[Edit]) -> None:
        limit = self.config.memory_gb
        if memory.nbytes > limit * 1e9:
            raise EditError(
                f"the memory would hold {len(memory)} edits, {memory.nbytes / 1e9:.3g} GB; the "
                f"limit is {limit:g} GB",
                f"Example: --set memory_gb={2 * memory.nbytes / 1e9:.2g}", edits=list(group),
            )  # fmt: skip

    def _warn(
        self,
        lm: LM,
        rows: Sequence[Sequence[Row]],
        fresh: Sequence[Float[Tensor, "n k"]],
        patches: Sequence[Patch],
    ) -> None:
        """Warn of a router that does not know an edit by its own prompt, or takes all for edits."""
        if self.config.switch == "soft":
            return
        shown = [[shown_text(row, self.config.route_on) for row in own] for own in rows]
        flat = [text for own in shown for text in own]
        queries = torch.cat(list(fresh))  # what is shown is what is stored
        if self.config.route_on == "target_leak":
            queries = embed(lm, self.network(lm).encoder, flat)
        own = others = known = pairs = 0
        start = 0
        for texts, stored, patch in zip(shown, fresh, patches, strict=True):
            keys = _memory(patch, lm.device).keys.to(queries)
            mine = torch.zeros(len(flat), dtype=torch.bool, device=queries.device)
            mine[start : start + len(texts)] = True
            same = set(texts)
            mine |= torch.tensor([text in same for text in flat], device=queries.device)
            start += len(texts)
            near = nearest(queries[mine], keys)[0] >= self.config.threshold
            own, known = own + int(near.sum()), known + int(mine.sum())
            if bool(mine.all()):
                continue
            # entries of earlier edits are left out: among many, one or another is near by chance
            near = nearest(queries[~mine], stored)[0] >= self.config.threshold
            others, pairs = others + int(near.sum()), pairs + int((~mine).sum())
        if own < RATE * known:
            log.warning(
                "SERAC's router finds %d of %d edits by their own prompts (threshold %g): the "
                "others change nothing", own, known, self.config.threshold,
            )  # fmt: skip
        if pairs >= FEW and others > RATE * pairs:
            log.warning(
                "SERAC's router takes %d of %d prompts of other edits for its own (threshold %g): "
                "expect no locality", others, pairs, self.config.threshold,
            )  # fmt: skip

    def _compose(self, lm: LM, before: Patch, added: Patch) -> Patch:
        """Put the grown memory in the place of the earlier one, behind all other changes."""
        return before.split(KIND, Route)[0] + added


def _memory(patch: Patch, device: torch.device) -> ScopeMemory:
    """Return the memory of a patch that has one."""
    return ScopeMemory.from_change(patch.split(KIND, Route)[1][0], device)


def _earlier(patch: Patch, rule: Rule, keys: Tensor) -> ScopeMemory:
    """Return the memory of an earlier patch; an empty one if it has none.

    Raises:
        PatchError: If it cannot be extended: several memories, another version, or another router.
    """
    own = patch.split(KIND, Route)[1]
    if not own:
        return ScopeMemory.of([], [], keys[:0])
    if len(own) > 1:
        raise PatchError(
            f"the earlier patch holds {len(own)} memories of SERAC",
            "Edit after one patch (--after) instead of adding two.",
        )
    memory, before = ScopeMemory.from_change(own[0], keys.device), Rule.of(own[0].config)
    if (before.fingerprint, before.route_on) != (rule.fingerprint, rule.route_on):
        raise PatchError(
            f"the earlier patch was made with the networks {before.fingerprint} and "
            f"route_on={before.route_on}, not with {rule.fingerprint} and {rule.route_on}: its "
            "keys cannot be compared with new ones",
            "Edit with the networks and settings that its patch.json names.",
        )
    return memory
