"""What an editor would need on a model that is not there: its own code, asked about bare widths.

The model is a `Skeleton`, and networks are built on torch's meta device: nothing is allocated and
nothing is retyped, so that a changed default is a changed estimate.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from errata.editors import editors
from errata.editors.base import Cost, Editor
from errata.editors.base_networks import NetworkEditor
from errata.editors.serac.editor import Serac
from errata.model.backbones import BACKBONES, Known
from errata.model.spec import Site
from errata.sweeping.backbones import Backbone

if TYPE_CHECKING:
    from errata.model.lm import LM

PUBLISHED = {"opt-125m": 125e6, "all-mpnet-base-v2": 109e6}
"""Parameters of models that SERAC's networks are made of, by the last part of their names."""

LARGE = 110e6
"""Parameters of another encoder or small model: as many as BERT-base."""


@dataclass
class Skeleton:
    """A model of which only the widths are known: enough for an editor to choose its matrices.

    Attributes:
        model: The widths.
        spec: What a probe would have found.
    """

    model: Backbone
    fingerprint: str = "skeleton"
    dtype: torch.dtype = torch.float32
    spec: Any = field(init=False)

    def __post_init__(self) -> None:
        into = Site("in", self.model.hidden, self.model.inner, False, False)
        inputs = [into] * (1 + self.model.gated)
        self.spec = SimpleNamespace(ffn_in=[inputs] * self.model.layers)

    @property
    def name(self) -> str:
        """Name of the backbone, by which published settings are found."""
        return self.model.name

    @property
    def backbone(self) -> Known | None:
        """The backbone itself, if it is one that settings were published for."""
        return Known(self.model, "name") if self.model.name in BACKBONES else None

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return self.model.layers

    @property
    def embedding(self) -> torch.Tensor:
        """Token embeddings of an empty vocabulary."""
        return torch.empty(0, self.model.hidden, device="meta")

    def site(self, layer: int) -> Site:
        """Return the FFN's output projection."""
        return Site("out", self.model.inner, self.model.hidden, False, False)


@dataclass(frozen=True)
class Needs:
    """What an editor needs on a model.

    Attributes:
        network: Parameters of its networks.
        matrices: Matrices that its networks write; 0 without networks.
        lowest: Lowest of their blocks.
        cost: What an edit costs.
    """

    network: int
    matrices: int
    lowest: int
    cost: Cost


def needs_of(name: str, settings: Mapping[str, Any], model: Backbone) -> Needs:
    """Ask an editor what it needs.

    Args:
        name: The editor.
        settings: Its settings; what is missing has the editor's default.
        model: Widths of the model.

    Raises:
        ConfigError: If the model has no such block.
    """
    cls: type[Editor] = editors.load(name)
    editor = cls(cls.Config.model_validate(dict(settings)))
    bare: Any = Skeleton(model)
    lm: LM = bare
    cost = editor.cost(lm)
    if not isinstance(editor, NetworkEditor):
        return Needs(0, 0, 0, cost)
    sites = editor.sites(lm)
    lowest = min((layer for layer, _ in sites), default=0)
    if isinstance(editor, Serac):
        return Needs(_serac(editor, model), 0, lowest, cost)
    with torch.device("meta"):
        network = editor.build(sites, lm)
    count = sum(parameter.numel() for parameter in network.parameters())
    return Needs(count, len(sites), lowest, cost)


def _serac(editor: Serac, model: Backbone) -> int:
    """Return the parameters of SERAC's two networks: copies of the model's blocks, or others."""
    block = 4 * model.hidden**2 + (2 + model.gated) * model.hidden * model.inner
    total = 0.0
    for name in (editor.config.small, editor.config.router):
        kind, own, blocks = name.partition("own:")
        last = name.lower().rpartition("/")[2]
        total += block * len(blocks.split(",")) if own and not kind else PUBLISHED.get(last, LARGE)
    return int(total)
