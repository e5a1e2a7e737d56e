"""What trained editors share: sites, loading, and the way from requests to patches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator

from errata.apply import Stack
from errata.case import Edit
from errata.config import settings_from
from errata.editors import backbone_of
from errata.editors._base import Editor, EditorConfig, recall_layer, resolve_layer, under
from errata.errors import ConfigError, ModelError
from errata.lm import LM
from errata.nets import weights
from errata.nets.capture import Signals, capture, edit_rows
from errata.nets.update import FactorNetwork
from errata.patch import Patch
from errata.spec import Site

Matrices = Literal["out", "all"]

AT_EDIT_TIME = ("weights", "signal_source", "scale")
"""Settings that may differ from those a network was trained with."""


class TrainedConfig(EditorConfig):
    """Settings that all trained editors have."""

    weights: str | None = Field(
        default=None,
        description="Trained networks: a folder that `errata train` wrote, a Hub id, or pocket; "
        "none: those that come with the model, if any",
    )
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

    @field_validator("layers", mode="before")
    @classmethod
    def _one_layer(cls, value: object) -> object:
        return (value,) if isinstance(value, int) else value


class TrainedEditor(Editor):
    """An editor whose update comes from networks trained beforehand on one base model.

    Subclasses give `build`. Capture, losses, the training loop and checkpoints are shared.

    Attributes:
        defaults: Settings of the training loop that suit this editor.
    """

    needs: ClassVar[tuple[str, ...]] = ("training",)
    Config: ClassVar[type[TrainedConfig]] = TrainedConfig
    defaults: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, config: TrainedConfig | None = None) -> None:
        super().__init__(config)
        self._network: FactorNetwork | None = None
        self._made_for: str | None = None

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

    def sites(self, lm: LM) -> list[tuple[int, Site]]:
        """Return block number and projection of every edited matrix, lowest block first.

        Raises:
            ConfigError: If a block does not exist or is named twice.
        """
        layers = self.settings.layers
        if layers == "auto":
            values = self.published.get(backbone_of(lm.name), {})
            found = values.get("layers")
            layers = tuple(found) if isinstance(found, tuple) else self.automatic_layers(lm)
        numbers = sorted(resolve_layer(lm, layer, 0) for layer in layers)
        if len(set(numbers)) != len(numbers) or not numbers:
            raise ConfigError(f"layers {layers}: expected different blocks, at least one")
        chosen = []
        for layer in numbers:
            if self.settings.matrices == "all":
                chosen += [(layer, site) for site in lm.spec.ffn_in[layer]]
            chosen.append((layer, lm.site(layer)))
        return chosen

    def completed(
        self,
        lm: LM,
        edits: Sequence[Edit],
        *,
        stack: Stack | None = None,
        routes: Sequence[int] | None = None,
    ) -> list[Edit]:
        """Return the requests with what the networks want to read filled in; here: as they are.

        Args:
            lm: The model.
            edits: Requests.
            stack: Active stack of patches under which the model is asked.
            routes: For each request, its patch in the stack.
        """
        return list(edits)

    # ------------------------------------------------------------------ networks

    def adopt(self, lm: LM, network: FactorNetwork) -> None:
        """Use these networks for this model, as the training loop does."""
        self._network, self._made_for = network, lm.fingerprint

    def network(self, lm: LM) -> FactorNetwork:
        """Return the trained networks for this model, loaded once.

        Raises:
            ConfigError: If no networks are named and none come with the model.
            ModelError: If the networks were trained on another model.
        """
        if self._network is not None:
            if self._made_for != lm.fingerprint:
                raise ModelError(
                    f"these {self.name} networks belong to another model than {lm.name}",
                    "Make an editor per model.",
                )
            return self._network
        folder = weights.find(self.name, self.settings.weights, lm.name)
        card = weights.read_card(folder, self.name, lm)
        self.config = self._merged(card["settings"], str(folder))
        with torch.random.fork_rng(devices=[]):  # initial values are drawn and thrown away
            network = self.build(self.sites(lm), lm)
        weights.load_into(network, folder)
        wide = torch.promote_types(lm.dtype, torch.float32)
        self.adopt(lm, network.to(lm.device, wide).requires_grad_(False).eval())
        return network

    def _merged(self, trained: Mapping[str, Any], where: str) -> TrainedConfig:
        """Return the settings the networks were trained with, and those of edit time from here."""
        mine = self.config.model_dump(mode="json")
        given = self.config.model_fields_set
        for key in given - set(AT_EDIT_TIME):
            if key in trained and mine[key] != trained[key] and mine[key] != "auto":
                raise ConfigError(
                    f"{key}={mine[key]!r} was asked for, but the networks in {where} were trained "
                    f"with {key}={trained[key]!r}",
                    f"Leave {key} out, or train networks of your own: errata train {self.name}",
                )
        kept = {key: mine[key] for key in AT_EDIT_TIME if key in given}
        return settings_from(self.Config, {**trained, **kept}, where=f"the networks in {where}")

    def made_of(self, lm: LM) -> dict[str, str]:
        """Return the fingerprint of the networks: a run does not go on with others."""
        from errata.loading import weight_fingerprint

        return {"networks": weight_fingerprint(self.network(lm))[:16]}

    def prepare(self, lm: LM) -> None:
        """Load the networks."""
        self.network(lm)

    def also(self, edit: Edit) -> list[Edit]:
        """Return further requests whose signals the networks want beside an edit's own."""
        return []

    def with_others(self, edits: Sequence[Edit]) -> list[Edit]:
        """Return the edits of a group, and after them what `also` adds."""
        return [*edits, *(other for edit in edits for other in self.also(edit))]

    # ------------------------------------------------------------------ editing

    @torch.no_grad()
    def _edit(
        self, lm: LM, groups: Sequence[Sequence[Edit]], before: Sequence[Patch]
    ) -> list[Patch]:
        network = self.network(lm)
        sites = self.sites(lm)
        if self.settings.signal_source == "original":
            before = [Patch()] * len(groups)
        patches: dict[int, Patch] = {}
        for numbers, stack, _ in under(lm, before):
            for signals, mine in self._signals(lm, sites, groups, numbers, stack):
                update = network(signals)
                for at, number in enumerate(mine):
                    changes = update.changes([s for _, s in sites], at, self.settings.scale)
                    patches[number] = self._patch(lm, changes, groups[number])
        return [patches[number] for number in range(len(groups))]

    def _signals(
        self,
        lm: LM,
        sites: Sequence[tuple[int, Site]],
        groups: Sequence[Sequence[Edit]],
        numbers: Sequence[int],
        stack: Stack | None,
    ) -> list[tuple[Signals, list[int]]]:
        """Capture the signals of these groups, as many at a time as a forward pass may hold."""
        made = []
        for mine in _chunks(lm, groups, numbers):
            asked = [self.with_others(groups[number]) for number in mine]
            edits = [edit for requests in asked for edit in requests]
            owner = [at for at, requests in enumerate(asked) for _ in requests]
            rows = edit_rows(lm, edits)
            routes = [mine[at] for at in owner] if stack is not None else None
            factors = capture(lm, sites, rows, stack=stack, routes=routes)
            at = torch.tensor(owner, device=lm.device)
            edits = self.completed(lm, edits, stack=stack, routes=routes)
            made.append((Signals(factors, at, tuple(edits), tuple(rows)), mine))
        return made


def _chunks(lm: LM, groups: Sequence[Sequence[Edit]], numbers: Sequence[int]) -> list[list[int]]:
    """Split groups so that the factors of a chunk stay near one forward pass' worth of tokens."""
    chunks: list[list[int]] = []
    budget = 0
    for number in numbers:
        size = sum(len(lm.row(e.prompt, e.target).ids) for e in groups[number])
        if not chunks or budget + size > lm.max_tokens:
            chunks.append([])
            budget = 0
        chunks[-1].append(number)
        budget += size
    return chunks
