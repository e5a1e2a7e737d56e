"""What trained editors share: sites, loading, and the way from requests to patches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
from pydantic import Field, field_validator

from errata.case import Edit
from errata.editors.base import Conflicts, Cost, resolve_layer, under
from errata.editors.base_networks import NetworkConfig, NetworkEditor
from errata.editors.recall import recall_layer, recall_rule
from errata.editors.rounds import in_rounds
from errata.errors import ConfigError
from errata.model.lm import LM
from errata.model.spec import Site
from errata.model.tokens import patched
from errata.nets.capture import Signals, capture, edit_rows
from errata.nets.update import FactorNetwork
from errata.patch import Patch

Matrices = Literal["out", "all"]


class TrainedConfig(NetworkConfig, Conflicts):
    """Settings that all editors have whose networks write an update."""

    layers: tuple[int, ...] | Literal["auto"] = Field(
        default="auto", description="Blocks to edit; auto: as published for this model, else a rule"
    )
    matrices: Matrices = Field(
        default="out", description="out: the FFN's output matrix; all: its other matrices too"
    )
    signal_source: Literal["original", "current"] = Field(
        default="current",
        description="Whether later edits see the model as it was or as earlier edits left it; "
        "edits of one group always see the same",
    )
    scale: float = Field(
        default=1.0, ge=0, description="Strength of the finished update; 1: as trained"
    )
    rounds: int = Field(
        default=1, ge=1,
        description="Most updates of an edit, each of this strength, from gradients of the model "
        "as edited so far; 1: as published",
    )  # fmt: skip
    enough: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="Probability of its answer from which on an edit gets no further round",
    )

    @field_validator("layers", mode="before")
    @classmethod
    def _one_layer(cls, value: object) -> object:
        return (value,) if isinstance(value, int) else value


class TrainedEditor(NetworkEditor):
    """An editor whose update comes from networks trained beforehand on one base model.

    Subclasses give `build`. Capture, losses, the training loop and checkpoints are shared.
    """

    Config: ClassVar[type[TrainedConfig]] = TrainedConfig
    sequential: ClassVar[bool] = False
    at_edit_time: ClassVar[tuple[str, ...]] = (
        "weights", "signal_source", "scale", "rounds", "enough", "conflicts",
    )  # fmt: skip
    untrained: ClassVar[tuple[str, ...]] = (*NetworkEditor.untrained, "rounds", "enough")

    @property
    def settings(self) -> TrainedConfig:
        """The settings, typed."""
        assert isinstance(self.config, TrainedConfig)
        return self.config

    @abstractmethod
    def build(self, sites: Sequence[tuple[int, Site]], lm: LM) -> FactorNetwork:
        """Return untrained networks for these matrices."""

    def automatic_layers(self, lm: LM) -> tuple[int, ...]:
        """Return the blocks that `auto` means where nothing is published: three that recall.

        The last one is where ROME would edit, and one more: facts are read out above it.
        """
        last = min(lm.n_layers - 1, recall_layer(lm) + 1)
        return tuple(range(max(0, last - 2), last + 1))

    def rule_of(self, lm: LM) -> str:
        """Say whether the blocks follow a trace or a rule of thumb."""
        return recall_rule(lm)

    def edited_layers(self, lm: LM) -> tuple[int, ...]:
        """Return the blocks that are edited, ascending.

        Raises:
            ConfigError: If a block does not exist or is named twice.
        """
        layers = self.settings.layers
        if layers == "auto":
            found = self.known_settings(lm).get("layers")
            layers = tuple(found) if isinstance(found, tuple) else self.automatic_layers(lm)
        numbers = sorted(resolve_layer(lm, layer, 0) for layer in layers)
        if len(set(numbers)) != len(numbers) or not numbers:
            raise ConfigError(f"layers {layers}: expected different blocks, at least one")
        return tuple(numbers)

    def sites(self, lm: LM) -> list[tuple[int, Site]]:
        """Return block number and projection of every edited matrix, lowest block first.

        Raises:
            ConfigError: If a block does not exist or is named twice.
        """
        chosen = []
        for layer in self.edited_layers(lm):
            if self.settings.matrices == "all":
                chosen += [(layer, site) for site in lm.spec.ffn_in[layer]]
            chosen.append((layer, lm.site(layer)))
        return chosen

    # ------------------------------------------------------------------ editing

    def cost(self, lm: LM) -> Cost:
        """A pass forward and one back in every round, and one that asks between two of them."""
        rounds = self.settings.rounds
        return Cost(passes=2.0 * rounds + (rounds if rounds > 1 else 0))

    @torch.no_grad()
    def edit_groups(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Let the networks make changes of gradient factors, in one round or in several."""
        self.network(lm)  # its card completes the settings
        own = self.settings
        if own.signal_source == "original":
            before = [Patch()] * len(groups)
        if own.rounds == 1:
            return self._updated(lm, groups, before)
        update = partial(self._updated, lm)
        return in_rounds(lm, groups, before, update, own.rounds, own.enough)

    def _updated(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        """Take gradient factors of all edits and let the networks make changes of them."""
        network = self.network(lm)
        sites = self.sites(lm)
        patches: dict[int, Patch] = {}
        for numbers, places in under(lm, before):
            patch_of = dict(zip(numbers, places, strict=True))
            for signals, members in self._signals(lm, sites, groups, patch_of):
                update = network(signals)
                for line, number in enumerate(members):
                    changes = update.changes([s for _, s in sites], line, self.settings.scale)
                    patches[number] = self.make_patch(lm, changes, groups[number])
        return [patches[number] for number in range(len(groups))]

    def _signals(
        self,
        lm: LM,
        sites: Sequence[tuple[int, Site]],
        groups: Sequence[Sequence[Edit]],
        patch_of: Mapping[int, int],
    ) -> list[tuple[Signals, list[int]]]:
        """Capture the signals of groups, as many at a time as a forward pass may hold.

        Args:
            lm: The model.
            sites: Edited matrices.
            groups: All groups.
            patch_of: Numbers of the groups wanted, and each one's patch in the active stack.
        """
        made = []
        for members in _chunks(lm, groups, list(patch_of)):
            requests = [self.with_others(groups[number]) for number in members]
            edits = [edit for several in requests for edit in several]
            owner = [line for line, several in enumerate(requests) for _ in several]
            places = [patch_of[members[line]] for line in owner]
            rows = patched(edit_rows(lm, edits), places)
            factors = capture(lm, sites, rows)
            edits = self.completed(lm, edits, places)
            owners = torch.tensor(owner, device=lm.device)
            made.append((Signals(factors, owners, tuple(edits), tuple(rows)), members))
        return made


def _chunks(lm: LM, groups: Sequence[Sequence[Edit]], numbers: Sequence[int]) -> list[list[int]]:
    """Split groups so that the factors of a chunk stay near one forward pass' worth of tokens."""
    chunks: list[list[int]] = []
    budget = 0
    for number in numbers:
        size = sum(len(lm.row_of(e).ids) for e in groups[number])
        if not chunks or budget + size > lm.max_tokens:
            chunks.append([])
            budget = 0
        chunks[-1].append(number)
        budget += size
    return chunks
