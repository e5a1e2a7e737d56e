"""What a strategy states about itself, and how it is joined with its host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from errata.config import Settings
from errata.editors.base import Editor

if TYPE_CHECKING:
    from errata.editors.base import EditorConfig


class Strategy(Editor):
    """Changes how its host edits; comes first in the class of the pair.

    Attributes:
        hosts: Names of the editors it works on.
        Settings: Its own settings, added to those of the host.
        overrides: Host -> backbone -> settings that were published for the pair.
    """

    hosts: ClassVar[tuple[str, ...]]
    Settings: ClassVar[type[Settings]] = Settings
    overrides: ClassVar[Mapping[str, Mapping[str, Mapping[str, object]]]] = {}


def combine(strategy: type[Strategy], host: type[Editor]) -> type[Editor]:
    """Return the editor `host+strategy`: the strategy's class in front of the host's."""
    from pydantic import create_model

    name = f"{host.name}+{strategy.name}"
    own = strategy.overrides.get(host.name, {})
    bases: Any = (strategy.Settings, host.Config)
    made: Any = create_model(
        f"{host.__name__}{strategy.__name__}Config", __base__=bases, __module__=__name__
    )
    config: type[EditorConfig] = made
    config.__doc__ = f"Settings of {name}: those of {host.name}, and the strategy's own."
    facts: dict[str, Any] = {
        "__doc__": f"{host.title} under {strategy.title}.",
        "__module__": strategy.__module__,
        "name": name,
        "title": f"{host.title}+{strategy.title}",
        "paper": f"{strategy.paper}; on {host.paper}",
        "needs": tuple(dict.fromkeys((*host.needs, *strategy.needs))),
        "weights": strategy.weights and host.weights,
        "batch": host.batch,
        "sequence": host.sequence,
        "exports": tuple(form for form in host.exports if form in strategy.exports),
        "Config": config,
        "published": {
            backbone: {**host.published.get(backbone, {}), **own.get(backbone, {})}
            for backbone in (*host.published, *own)
        },
    }
    return type(f"{host.__name__}{strategy.__name__}", (strategy, host), facts)
