"""Editors: one file or one folder per method, and the folder is the registry.

`get_editor("rome", overrides=["layer=3"])` builds one, `get_editor("runs/ibke")` one with networks
that were trained; nothing heavy is imported before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.arguments import expect, settings_by_name
from errata.config import backbone_of, did_you_mean, parse_overrides, settings_from
from errata.editors.facts import FACTS
from errata.errors import ConfigError, ModelError
from errata.registry import Entry, Registry

if TYPE_CHECKING:
    from errata.editors.base import Editor, EditorConfig

__all__ = ["Editor", "EditorConfig", "editors", "get_editor", "published_settings"]


class EditorRegistry(Registry):
    """Editors by name, alone (`memit`) or with a strategy on top (`memit+blue`)."""

    @cached_property
    def pairs(self) -> dict[str, Entry]:
        """What every strategy is made for, sorted by name."""
        from errata.strategies import pair_facts, strategies

        found: dict[str, Entry] = {}
        for strategy in strategies.entries.values():
            for host in strategy.facts.get("hosts", ()):
                if host not in self.entries or not _whole(strategy, self.entries[host]):
                    continue
                facts = pair_facts(strategy.facts, self.entries[host].facts)
                summary = f"{self.entries[host].facts['title']} with {strategy.summary}"
                found[facts["name"]] = Entry(facts["name"], summary, facts, strategy.target)
        return dict(sorted(found.items()))

    @property
    def all(self) -> dict[str, Entry]:
        """Every editor and every pair."""
        return {**self.entries, **self.pairs}

    def __contains__(self, name: str) -> bool:
        return name in self.entries or ("+" in name and name in self.pairs)

    def entry(self, name: str) -> Entry:
        """Return one entry, of an editor or of a pair."""
        if "+" in name:
            self._split(name)
            return self.pairs[name]
        return super().entry(name)

    def load(self, name: str) -> type[Editor]:
        """Import and return the class of an editor or of a pair.

        Raises:
            ConfigError: If there is none of that name, or the strategy does not work on the host.
        """
        if "+" not in name:
            return super().load(name)
        if name not in self._made:
            from errata.strategies import strategies
            from errata.strategies.base import combine

            host, strategy = self._split(name)
            self._made[name] = combine(strategies.load(strategy), super().load(host))
        return self._made[name]

    @cached_property
    def _made(self) -> dict[str, type[Editor]]:
        return {}

    def _split(self, name: str) -> tuple[str, str]:
        from errata.strategies import strategies

        host, _, strategy = name.partition("+")
        super().entry(host)
        hosts = strategies.entry(strategy).facts.get("hosts", ())
        if host not in hosts:
            works = ", ".join(f"{other}+{strategy}" for other in hosts)
            raise ConfigError(f"{strategy} does not work on {host}", f"It works as: {works}")
        return host, strategy


def _whole(*entries: Entry) -> bool:
    """Whether entries say what a pair needs to know of them; a plug-in may leave things out."""
    wanted = {"name", "title", "paper", "needs", "weights", "exports"}
    return all(wanted <= entry.facts.keys() for entry in entries)


editors = EditorRegistry(
    "editor", "errata.editors", Path(__file__).parent, "errata.editors", home="editor",
    base="errata.editors.base:Editor", stated=FACTS,
)  # fmt: skip


def __getattr__(name: str) -> Any:
    # the classes need torch, listing and naming editors does not
    if name in {"Editor", "EditorConfig"}:
        from errata.editors import base

        return getattr(base, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def get_editor(
    name: str,
    config: Mapping[str, Any] | None = None,
    overrides: Iterable[str] = (),
    as_published: str | None = None,
    model: str | None = None,
) -> Editor:
    """Build an editor by name, or from a folder of trained networks.

    Args:
        name: As listed by `errata ls editors`, pairs such as `memit+blue` included; or a folder
            that `errata train` wrote, or the Hub id (`owner/name`) of one: the networks say which
            editor they belong to.
        config: Settings by name.
        overrides: `key=value` strings; they win over `config`.
        as_published: A backbone (`gpt2-xl`, `gpt-j-6b`, …; its id on the Hub or a folder with its
            configuration will do) whose published settings, or a model (`pocket`) whose preset is
            the starting point; `config` and `overrides` win over them.
        model: Name or folder of the model to be edited. If the editor has a preset for it, that is
            the starting point, unless `as_published` names another.

    Raises:
        ConfigError: If the editor, the backbone or a setting is unknown, or a value out of range.
        ModelError: If a folder holds no trained networks, or is damaged.
    """
    expect(name, (str, Path), "the editor", "the name of an editor, or a folder of its networks")
    name, values = str(name), settings_by_name(config, "the settings of an editor")
    if name not in editors and ("/" in name or Path(name).expanduser().is_dir()):
        name, values["weights"] = _of_networks(name, [*values, *parse_overrides(overrides)])
    if as_published is not None:
        expect(as_published, (str, Path), "as_published", "the name of a backbone")
    cls: type[Editor] = editors.load(name)
    suggested: dict[str, Any] = {}
    origin, own = "", values.keys() | parse_overrides(overrides).keys()
    if as_published is not None:
        origin, published = _published(cls, as_published)
        origins = dict.fromkeys(published.keys() - own, origin)
        values = published | values
    else:
        origin, suggested = ("", {}) if model is None else _preset(cls, model)
        origins = dict.fromkeys(suggested.keys() - own, origin)
    settings = settings_from(
        cls.Config, suggested | values, where=f"editor {name}", overrides=overrides
    )
    # what nobody asked for gives way to the settings that networks were trained with
    settings.model_fields_set.intersection_update(own | values.keys())
    editor = cls(settings)
    editor.origins = origins
    if model is not None and as_published is None:
        editor.asked = frozenset(own)
    return editor


def _preset(cls: type[Editor], model: str) -> tuple[str, dict[str, Any]]:
    """Return what was found for a model that is not loaded yet, and whose it is."""
    from errata.model.backbones import identify, keys_for

    found = [key for key in keys_for(model, identify(model)) if key in cls.presets]
    return (f"found for {found[0]}", dict(cls.presets[found[0]])) if found else ("", {})


def _of_networks(given: str, settings: Iterable[str]) -> tuple[str, str]:
    """Return the editor that the networks in a folder belong to, and the folder.

    Raises:
        ConfigError: If there is no such folder, or other networks are named as well.
        ModelError: If it holds no networks, or networks of an editor that is not known.
    """
    from errata.nets.weights import locate, read_config

    known = f"Editors: {', '.join(editors.entries)}; or a folder that `errata train` wrote."
    if "weights" in settings:
        raise ConfigError(
            f"--editor {given} and the setting weights both name networks", "Give one of them."
        )
    folder = locate(given, known)
    name = read_config(folder)["editor"]
    if name not in editors:
        raise ModelError(f"{folder} holds networks of an unknown editor {name!r}", known)
    return name, str(folder)


def published_settings(cls: type[Editor], backbone: str) -> dict[str, Any]:
    """Return the settings of an editor that were published for a backbone, or its preset.

    Args:
        cls: The editor.
        backbone: A backbone's name, an id on the Hub (case and owner do not matter), or a folder
            whose configuration says which one it is.

    Raises:
        ConfigError: If there are none for it.
    """
    return _published(cls, backbone)[1]


def _published(cls: type[Editor], backbone: str) -> tuple[str, dict[str, Any]]:
    """Return published settings, and where they come from."""
    from errata.editors.base import suited
    from errata.model.backbones import identify, keys_for

    known = identify(backbone)
    named = backbone_of(backbone.rstrip("/"))
    origin, settings = suited(cls, (named, *keys_for(backbone, known)))
    if not settings:
        what = f"{backbone!r}" if known is None else f"{backbone!r} ({known})"
        raise ConfigError(
            f"no published settings of {cls.name} for {what}",
            did_you_mean(named, {**cls.published, **cls.presets}),
        )
    return origin, dict(settings)
