"""Frozen, strict settings: TOML files and `key=value` overrides become checked pydantic models."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from errata.errors import ConfigError
from errata.untrusted import check_values, read_text

TOML_BYTES = 16 << 20
"""Of a recipe."""

LARGEST = 2**63 - 1
"""What a whole number in a setting may be: torch and numpy count in 64 bits."""


class Settings(BaseModel):
    """Base of all settings: immutable, and an unknown name is an error rather than ignored.

    Numbers are numbers: finite, within 64 bits, and true is not 1.

    Raises:
        ConfigError: If a name is unknown or a value out of range.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False
    )

    if not TYPE_CHECKING:  # whose signature is made of the fields

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                raise _explain(type(self), error, type(self).__name__) from None

        # validation by itself (`settings_from`, settings within settings) goes past it
        __init__.__pydantic_base_init__ = True

    @field_validator("*", mode="before")
    @classmethod
    def _numbers(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields.get(info.field_name or "")
        if isinstance(value, bool) and field is not None and not _takes_bool(field.annotation):
            raise ValueError("true and false are no value of this setting")
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) > LARGEST:
            raise ValueError("a number of more than 64 bits")
        return value


def _takes_bool(kind: Any) -> bool:
    """Whether a type lets a truth value in: as such, or because it takes anything."""
    if kind in (bool, Any, object) or isinstance(kind, TypeVar):
        return True
    if get_origin(kind) is Literal:
        return any(isinstance(value, bool) for value in get_args(kind))
    if get_origin(kind) in (Union, UnionType, Annotated):
        return any(_takes_bool(part) for part in get_args(kind))
    return False


S = TypeVar("S", bound=BaseModel)


def flag_of(name: str, kind: type[BaseModel]) -> str:
    """Return the flag of a setting: its name with dashes, unless the setting says another."""
    extra = kind.model_fields[name].json_schema_extra
    said = extra.get("flag") if isinstance(extra, dict) else None
    return "--" + str(said or name).replace("_", "-")


def is_table(name: str, kind: type[BaseModel]) -> bool:
    """Whether a setting is a table of settings, which the command line takes as `KEY=VALUE`."""
    return get_origin(kind.model_fields[name].annotation) is dict


def is_many(name: str, kind: type[BaseModel]) -> bool:
    """Whether a setting is a list of texts, whose flag may stand there several times."""
    return get_origin(kind.model_fields[name].annotation) is tuple


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the closest known words, or lists them all."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if close:
        return "Did you mean " + " or ".join(repr(word) for word in close) + "?"
    return "Known: " + (", ".join(known) if known else "none")


def parse_overrides(pairs: Iterable[str], flag: str = "--set") -> dict[str, str]:
    """Split `key=value` strings, as given to a repeatable flag.

    Args:
        pairs: The strings.
        flag: The flag, for messages.

    Raises:
        ConfigError: If one of them has no `=` or an empty key.
    """
    values: dict[str, str] = {}
    for pair in pairs:
        key, sep, value = pair.partition("=")
        if not sep or not key.strip():
            raise ConfigError(
                f"{flag} {pair!r} is not of the form key=value", f"Example: {flag} layer=3"
            )
        values[key.strip()] = value.strip()
    return values


def _explain(cls: type[BaseModel], error: ValidationError, where: str) -> ConfigError:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return ConfigError(
            f"{where}: unknown setting {name!r}", did_you_mean(name, cls.model_fields)
        )
    return ConfigError(
        f"{where}: setting {name!r} is {first.get('input')!r}: "
        f"{first['msg'].removeprefix('Value error, ')}",
        _describe(cls, name),
    )


def _describe(cls: type[BaseModel], name: str) -> str | None:
    field = cls.model_fields.get(name)
    if field is None or not field.description:
        return None
    return f"{name}: {field.description} (default {field.default!r})"


def value_from_text(value: str) -> Any:
    """Read one override: a TOML value where it is one, else the text itself."""
    if value.lower() in {"none", "null"}:
        return None
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):  # TOMLDecodeError is a ValueError; so are huge numbers
        if value.lower() in {"true", "false"}:
            return value.lower() == "true"
        return value


def settings_from(
    cls: type[S],
    values: Mapping[str, Any] | None = None,
    *,
    where: str = "settings",
    overrides: Iterable[str] = (),
) -> S:
    """Build settings of class `cls` from a mapping and `key=value` overrides (which win).

    Raises:
        ConfigError: If a name is unknown (with the closest known one) or a value is out of range.
    """
    merged: dict[str, Any] = dict(values or {})
    merged.update({key: value_from_text(text) for key, text in parse_overrides(overrides).items()})
    try:
        return cls.model_validate(merged)
    except ValidationError as error:
        raise _explain(cls, error, where) from None


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        ConfigError: If it is missing, no file, or malformed; the message holds the line.
    """
    path = Path(path)
    try:
        document = tomllib.loads(read_text(path, limit=TOML_BYTES))
        check_values(document)
    except FileNotFoundError:
        raise ConfigError(f"no such file: {path}") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{path} is nested too deep") from None
    except ValueError as error:  # no file, not UTF-8, too large, a number that is not finite
        told = str(error)
        raise ConfigError(told if str(path) in told else f"{path}: {told}") from None
    return document


def backbone_of(name: str) -> str:
    """Return a model's name as the keys of `published` are written: lower case, no owner."""
    return name.lower().rpartition("/")[2]
