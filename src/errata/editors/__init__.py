"""Editors: one file per method, and the folder is the registry.

`get_editor("rome", overrides=["layer=3"])` builds one; nothing heavy is imported before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.config import did_you_mean, settings_from
from errata.errors import ConfigError
from errata.registry import Registry

if TYPE_CHECKING:
    from errata.editors._base import Editor, EditorConfig

__all__ = ["Editor", "EditorConfig", "editors", "get_editor", "published_settings"]

OWN_MODELS = ("pocket",)
"""Models that ship with errata: nobody published settings for them, so they are found here."""

editors = Registry("editor", "errata.editors", Path(__file__).parent, "errata.editors")


def __getattr__(name: str) -> Any:
    # the classes need torch, listing and naming editors does not
    if name in {"Editor", "EditorConfig"}:
        from errata.editors import _base

        return getattr(_base, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def get_editor(
    name: str,
    config: Mapping[str, Any] | None = None,
    overrides: Iterable[str] = (),
    as_published: str | None = None,
    model: str | None = None,
) -> Editor:
    """Build an editor by name.

    Args:
        name: As listed by `errata ls editors`.
        config: Settings by name.
        overrides: `key=value` strings; they win over `config`.
        as_published: A backbone (`gpt2-xl`, `gpt-j-6b`, …) whose published settings are the
            starting point; `config` and `overrides` win over them.
        model: Name of the model to be edited. For errata's own models (`pocket`) the settings found
            for them are the starting point, unless `as_published` names another.

    Raises:
        ConfigError: If the editor, the backbone or a setting is unknown, or a value out of range.
    """
    cls: type[Editor] = editors.load(name)
    values: dict[str, Any] = {}
    if as_published is None and model in OWN_MODELS and model in cls.published:
        as_published = model
    if as_published is not None:
        values |= published_settings(cls, as_published)
    values |= dict(config or {})
    settings = settings_from(cls.Config, values, where=f"editor {name}", overrides=overrides)
    return cls(settings)


def backbone_of(name: str) -> str:
    """Return a model's name as the keys of `published` are written: lower case, no owner."""
    return name.lower().rpartition("/")[2]


def published_settings(cls: type[Editor], backbone: str) -> dict[str, Any]:
    """Return the published settings of an editor for a backbone.

    Case and the owner in front of a slash do not matter.

    Raises:
        ConfigError: If none are recorded for it.
    """
    wanted = backbone_of(backbone)
    if wanted not in cls.published:
        raise ConfigError(
            f"no published settings of {cls.name} for {backbone!r}",
            did_you_mean(wanted, cls.published),
        )
    return dict(cls.published[wanted])
