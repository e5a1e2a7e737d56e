"""What all editors share whose networks are trained beforehand: settings, loading, the losses."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field

from errata.case import Edit
from errata.config import settings_from
from errata.editors.base import Editor, EditorConfig
from errata.errors import ConfigError, ModelError
from errata.model.lm import LM
from errata.model.passes import wide_type
from errata.model.spec import Site
from errata.nets import weights
from errata.nets.update import EditNetwork

if TYPE_CHECKING:
    from errata.training.config import TrainConfig
    from errata.training.objective import Objective
    from errata.training.prepared import Prepared


class NetworkConfig(EditorConfig):
    """Settings of every editor that has networks."""

    weights: str | None = Field(
        default=None,
        description="Trained networks: a folder that `errata train` wrote, a Hub id, or pocket; "
        "none: those that come with the model, if any",
    )


class NetworkEditor(Editor):
    """An editor with networks that were trained beforehand on one base model.

    Subclasses give `build`, and `objective` where their losses are their own.

    Attributes:
        defaults: Settings of the training loop that suit this editor.
        at_edit_time: Settings that may differ from those a network was trained with.
        untrained: Settings that training has nothing to do with: a run goes on under others.
        trained_as: Editor whose networks it uses, if it has none of its own kind.
    """

    needs: ClassVar[tuple[str, ...]] = ("training",)
    Config: ClassVar[type[NetworkConfig]] = NetworkConfig
    defaults: ClassVar[Mapping[str, Any]] = {}
    at_edit_time: ClassVar[tuple[str, ...]] = ("weights",)
    untrained: ClassVar[tuple[str, ...]] = ("weights", "scale")
    trained_as: ClassVar[str | None] = None

    def __init__(self, config: NetworkConfig | None = None) -> None:
        super().__init__(config)
        self._network: EditNetwork | None = None
        self._made_for: str | None = None
        self._source: str | None = None

    @property
    def settings(self) -> NetworkConfig:
        """The settings, typed."""
        assert isinstance(self.config, NetworkConfig)
        return self.config

    @abstractmethod
    def build(self, sites: Sequence[tuple[int, Site]], lm: LM) -> Any:
        """Return untrained networks, for these matrices if the editor changes any."""

    def sites(self, lm: LM) -> list[tuple[int, Site]]:
        """Return block number and projection of every matrix that is edited; here: none."""
        return []

    def objective(self, lm: LM, prepared: Prepared, config: TrainConfig) -> Objective:
        """Return the losses that the networks are trained with."""
        from errata.training.objective import Objective

        return Objective(lm, prepared, config)

    # ------------------------------------------------------------------ requests

    def completed(
        self, lm: LM, edits: Sequence[Edit], patches: Sequence[int] | None = None
    ) -> list[Edit]:
        """Return the requests with what the networks want to read filled in; here: as they are.

        Args:
            lm: The model.
            edits: Requests.
            patches: For each request, the patch in the active stack that the model is asked under.
        """
        return list(edits)

    def also(self, edit: Edit) -> list[Edit]:
        """Return further requests whose signals the networks want beside an edit's own."""
        return []

    def with_others(self, edits: Sequence[Edit]) -> list[Edit]:
        """Return the edits of a group, and after them what `also` adds."""
        return [*edits, *(other for edit in edits for other in self.also(edit))]

    # ------------------------------------------------------------------ networks

    def adopt(self, lm: LM, network: Any, source: str | None = None) -> None:
        """Use these networks for this model, as the training loop does.

        Args:
            lm: The model.
            network: The networks.
            source: Where another process finds them: a folder, a Hub id or `pocket`.
        """
        self._network, self._made_for, self._source = network, lm.fingerprint, source

    def network(self, lm: LM) -> Any:
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
        trained_as = self.trained_as or self.name
        folder = weights.find(trained_as, self.settings.weights, lm.name)
        card = weights.read_card(folder, trained_as, lm)
        self.config = self._merged(card["settings"], str(folder))
        sites = self.sites(lm)
        with torch.random.fork_rng(devices=[]):  # initial values are drawn and thrown away
            weights.check_declared(lambda: self.build(sites, lm), folder)
            network = self.build(sites, lm)
        weights.load_into(network, folder)
        network = network.to(lm.device, wide_type(lm.dtype)).requires_grad_(False).eval()
        self.adopt(lm, network, weights.source(self.settings.weights))
        return network

    def _merged(self, trained: Mapping[str, Any], where: str) -> NetworkConfig:
        """Return the settings the networks were trained with, and those of edit time from here."""
        mine = self.config.model_dump(mode="json")
        given = self.config.model_fields_set
        for key in given - set(self.at_edit_time):
            if key in trained and mine[key] != trained[key] and mine[key] != "auto":
                raise ConfigError(
                    f"{key}={mine[key]!r} was asked for, but the networks in {where} were trained "
                    f"with {key}={trained[key]!r}",
                    f"Leave {key} out, or train networks of your own: errata train "
                    f"{self.trained_as or self.name}",
                )
        kept = {key: mine[key] for key in self.at_edit_time if key in given}
        return settings_from(self.Config, {**trained, **kept}, where=f"the networks in {where}")

    def made_of(self, lm: LM) -> dict[str, str]:
        """Return the fingerprint of the networks: a run does not go on with others."""
        from errata.model.weights import weight_fingerprint

        return {"networks": weight_fingerprint(self.network(lm))[:16]}

    def prepare(self, lm: LM) -> None:
        """Load the networks."""
        self.network(lm)


def trainable(
    name: str,
    model: str,
    *,
    overrides: Iterable[str] = (),
    as_published: str | None = None,
) -> NetworkEditor:
    """Build an untrained editor.

    Args:
        name: Of an editor that learns.
        model: Name of the model it will be trained for.
        overrides: `key=value` settings of its networks.
        as_published: Start from the settings published for this backbone.

    Raises:
        ConfigError: If there is no such editor, it has nothing to train, or a setting is wrong.
    """
    from errata.editors import editors, get_editor

    if "training" not in editors.load(name).needs:
        able = [e.name for e in editors.entries.values() if "training" in e.facts.get("needs", ())]
        raise ConfigError(
            f"{name} has nothing to train; it edits as it is", f"Trained: {', '.join(able)}"
        )
    editor = get_editor(name, overrides=overrides, as_published=as_published, model=model)
    if isinstance(editor, NetworkEditor) and editor.trained_as is not None:
        raise ConfigError(
            f"{name} uses networks of {editor.trained_as} and has none of its own to train",
            f"Train those: errata train {editor.trained_as} --model {model} …",
        )
    weights = getattr(editor.config, "weights", None)
    if weights is not None:
        raise ConfigError(
            f"weights={weights!r}: training starts with new networks",
            "Leave weights out; --resume goes on with a run.",
        )
    return editor  # type: ignore[return-value]
