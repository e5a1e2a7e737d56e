"""Flags of a command from a class of settings: each setting described once, where it is checked."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo

from errata.config import (
    Settings,
    flag_of,
    is_many,
    is_table,
    parse_overrides,
    settings_from,
    value_from_text,
)


def parameters(kind: type[Settings], without: tuple[str, ...] = ()) -> list[inspect.Parameter]:
    """Return one parameter of a command per setting.

    A switch is on when it stands there; a table of settings is a repeatable `KEY=VALUE`, and a list
    of texts a flag that may be repeated.

    Args:
        kind: The settings.
        without: Settings that the command line does not have.
    """
    return [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=_annotation(name, kind),
            default=None if is_table(name, kind) or is_many(name, kind) else field.default,
        )
        for name, field in kind.model_fields.items()
        if name not in without
    ]


def read(kind: type[Settings], given: Mapping[str, Any], where: str) -> Settings:
    """Return the settings that flags say.

    Raises:
        ConfigError: If a value is not one that the settings allow.
    """
    values = {}
    for name, value in given.items():
        if is_table(name, kind):
            pairs = parse_overrides(value or (), flag_of(name, kind))
            value = {key: value_from_text(text) for key, text in pairs.items()}
        if is_many(name, kind):
            value = tuple(value or ())
        values[name] = value
    return settings_from(kind, values, where=where)


def _annotation(name: str, settings: type[Settings]) -> Any:
    field = settings.model_fields[name]
    shown = _shown(field)
    # pydantic keeps `ge=1` as an object with that attribute
    least = next((int(rule.ge) for rule in field.metadata if hasattr(rule, "ge")), None)
    many = is_table(name, settings) or is_many(name, settings)
    help_text = f"{field.description}.{' Repeatable.' if many else ''}"
    option = typer.Option(
        flag_of(name, settings),
        help=help_text,
        min=least,
        metavar=shown.get("metavar"),
        rich_help_panel=shown.get("panel"),
    )
    kind = list[str] | None if many else field.annotation
    return Annotated[kind, option]  # type: ignore[valid-type]


def _shown(field: FieldInfo) -> Mapping[str, Any]:
    extra = field.json_schema_extra
    return extra if isinstance(extra, dict) else {}
