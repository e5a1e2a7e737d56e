"""What a strategy states about itself, and how it is joined with its host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from errata.config import Settings
from errata.editors.base import Editor
from errata.editors.facts import FACTS
from errata.strategies import pair_facts

if TYPE_CHECKING:
    from errata.editors.base import EditorConfig


class Strategy(Editor):
    """Changes how its host edits; comes first in the class of the pair.

    Attributes:
        hosts: Names of the editors it works on.
        spares: What a host needs and the pair does not.
        Settings: Its own settings, added to those of the host.
        overrides: Host -> model -> settings of the pair, on top of those that the host has for that
            model: published ones, or a preset.
    """

    hosts: ClassVar[tuple[str, ...]]
    spares: ClassVar[tuple[str, ...]] = ()
    Settings: ClassVar[type[Settings]] = Settings
    overrides: ClassVar[Mapping[str, Mapping[str, Mapping[str, object]]]] = {}


def combine(strategy: type[Strategy], host: type[Editor]) -> type[Editor]:
    """Return the editor `host+strategy`: the strategy's class in front of the host's."""
    from pydantic import create_model

    stated = [{fact: getattr(cls, fact) for fact in FACTS} for cls in (strategy, host)]
    stated[0]["spares"] = strategy.spares
    facts = pair_facts(*stated)
    own = strategy.overrides.get(host.name, {})
    bases: Any = (strategy.Settings, host.Config)
    made: Any = create_model(
        f"{host.__name__}{strategy.__name__}Config", __base__=bases, __module__=__name__
    )
    config: type[EditorConfig] = made
    config.__doc__ = f"Settings of {facts['name']}: those of {host.name}, and the strategy's own."
    known = {**host.published, **own}
    body: dict[str, Any] = {
        **facts,
        "__doc__": f"{host.title} under {strategy.title}.",
        "__module__": strategy.__module__,
        "Config": config,
        "published": {
            model: {**host.published.get(model, {}), **own.get(model, {})}
            for model in known
            if model not in host.presets
        },
        "presets": {
            model: {**preset, **own.get(model, {})} for model, preset in host.presets.items()
        },
    }
    return type(f"{host.__name__}{strategy.__name__}", (strategy, host), body)
