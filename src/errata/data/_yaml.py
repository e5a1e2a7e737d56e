"""Records of a YAML file: texts, numbers and truth values, and nothing that YAML can do besides.

Read by the rules of YAML 1.2's core schema: `no` is a text and so is 2026-12-31; only `true` and
`false` are truth values. No tag, no alias, no second document, no key twice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from errata.data._reading import read_bytes, utf8
from errata.data._records import Record, describe
from errata.errors import DataError
from errata.untrusted import Refused, check_yaml

YAML_BYTES = 4 << 20
"""Of one file: what is written by hand, some ten thousand facts. More of them belong in JSONL."""

ENDINGS = (".yaml", ".yml")

_CORE = "tag:yaml.org,2002:"
_PLAIN = {  # of texts without quotes, in the order in which they are tried
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
    r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}


@cache
def _loader() -> Any:
    """Return a loader that takes a text without quotes for what YAML 1.2 takes it."""
    import yaml

    made: Any = type("Core", (getattr(yaml, "CSafeLoader", yaml.SafeLoader),), {})
    made.yaml_implicit_resolvers = {}
    for name, pattern in _PLAIN.items():
        made.add_implicit_resolver(f"{_CORE}{name}", re.compile(f"^(?:{pattern})$"), None)
    return made


def read_yaml(path: Path) -> Iterator[Record]:
    """Read a YAML file that holds a list of records; an empty one holds none.

    Args:
        path: The file.

    Raises:
        DataError: If it is missing, not UTF-8, not YAML, or uses what is not read; names the line.
    """
    for number, node in enumerate(_entries(_text(path), path)):
        line = node.start_mark.line + 1
        yield Record(_value(node, str(path)), str(path), f"line {line}", str(number))


def without_entry(path: Path, number: int) -> bytes:
    """Return the content of a YAML file without one record of its list.

    The record's lines go; comments and empty lines that follow it belong to the next one.

    Args:
        path: The file.
        number: Position of the record, from 0.

    Raises:
        DataError: If it shares a line with others, so that no lines can be taken out; or see
            `read_yaml`.
    """
    text = _text(path)
    nodes = _entries(text, path)
    lines = text.splitlines(keepends=True)
    starts = [_dash(lines, node.start_mark.line) for node in nodes]
    begin = starts[number]
    end = starts[number + 1] if number + 1 < len(starts) else len(lines)
    while end > begin + 1 and lines[end - 1].strip()[:1] in ("", "#"):
        end -= 1
    left = "".join([*lines[:begin], *lines[end:]])
    values = [_value(node, str(path)) for node in nodes]
    try:
        found = [_value(node, str(path)) for node in _entries(left, path)]
    except DataError:
        found = None
    if found != [*values[:number], *values[number + 1 :]]:
        raise DataError(
            f"{path}: line {begin + 1}: the record cannot be taken out by its lines",
            "Take it out by hand, or give every record lines of its own that begin with a dash.",
        )
    return left.encode()


def _dash(lines: list[str], line: int) -> int:
    """Return the line of the dash in front of a record that begins on `line`, from 0."""
    while line > 0 and not lines[line].lstrip().startswith("-"):
        line -= 1
    return line


def _text(path: Path) -> str:
    return utf8(read_bytes(path, YAML_BYTES), str(path))


def _entries(text: str, path: Path) -> list[Any]:
    """Return the nodes of the list that a document holds."""
    import yaml

    try:
        check_yaml(text)
        root = yaml.compose(text, Loader=_loader())
    except Refused as error:
        raise DataError(
            f"{path}: {error.message}", "Write lists, objects, texts and numbers only."
        ) from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        said = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise DataError(f"{where}: not valid YAML: {said}") from None
    if root is None or root.tag == f"{_CORE}null":
        return []
    if not isinstance(root, yaml.SequenceNode):
        raise DataError(
            f"{path} holds {describe(_value(root, str(path)))}; expected a list of records",
            "Begin every record with a dash: - id: …",
        )
    return list(root.value)


def _value(node: Any, file: str) -> Any:
    """Return what a node says as JSON values; its depth is bounded by `check_yaml`."""
    import yaml

    where = f"{file}:{node.start_mark.line + 1}"
    kind = node.tag.removeprefix(_CORE)
    if isinstance(node, yaml.MappingNode) and kind == "map":
        found: dict[str, Any] = {}
        for key, value in node.value:
            name = _value(key, file)
            if not isinstance(name, str):
                raise DataError(f"{where}: {describe(name)} is a key; expected a text")
            if name in found:
                line = key.start_mark.line + 1
                raise DataError(f"{file}:{line}: the key {name!r} occurs twice in one object")
            found[name] = _value(value, file)
        return found
    if isinstance(node, yaml.SequenceNode) and kind == "seq":
        return [_value(part, file) for part in node.value]
    if isinstance(node, yaml.ScalarNode) and (kind in _PLAIN or kind == "str"):
        return _scalar(kind, node.value, where)
    raise DataError(f"{where}: uses the tag {node.tag}, which errata does not read")


def _scalar(kind: str, text: str, where: str) -> Any:
    if kind == "str":
        return text
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    try:
        if kind == "int":
            return int(text)
        number = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:  # more digits than python reads; a tag that does not fit
        raise DataError(f"{where}: {text[:40]!r} is no number") from None
    if not math.isfinite(number):
        raise DataError(f"{where}: the number {text}; expected a finite one")
    return number
