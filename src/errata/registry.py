"""The folder is the registry: a module or a folder per editor or strategy, plus entry points.

Listing reads source files with `ast` and imports nothing, so it is instant; loading imports one
module.
"""

from __future__ import annotations

import ast
import importlib
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from errata.config import did_you_mean
from errata.errors import ConfigError


@dataclass(frozen=True)
class Entry:
    """What is known of a registered thing without importing it.

    Attributes:
        name: Its name on the command line.
        summary: First line of its docstring.
        facts: Literal class attributes (`paper`, `needs` …) of the class that carries the name.
        target: `module:Class`, or only `module` for a registry of modules.
    """

    name: str
    summary: str
    facts: dict[str, Any]
    target: str


def _literals(body: list[ast.stmt]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name, value = node.targets[0].id, node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            name, value = node.target.id, node.value
        else:
            continue
        try:
            values[name] = ast.literal_eval(value)
        except ValueError:
            continue
    return values


def _summary(node: ast.Module | ast.ClassDef) -> str:
    doc = ast.get_docstring(node) or ""
    return doc.strip().partition("\n")[0]


@dataclass(frozen=True)
class Registry:
    """Things of one kind: modules of a package in which a class has a literal `name`.

    A thing that takes more than one file is a folder; its class stands in the module `home`.

    Attributes:
        what: Word for messages (`editor`).
        package: Dotted name of the package whose modules are scanned.
        folder: Its folder.
        group: Entry-point group through which other distributions add theirs.
        home: In a thing's folder, the module with its class.
    """

    what: str
    package: str
    folder: Path
    group: str
    home: str = ""

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """All entries by name, sorted; the project's own win over entry points of the same name."""
        found: dict[str, Entry] = {}
        for point in metadata.entry_points(group=self.group):
            found[point.name] = Entry(point.name, f"from {point.value}", {}, point.value)
        folders = self.folder.glob(f"*/{self.home}.py") if self.home else ()
        for path in sorted((*self.folder.glob("*.py"), *folders)):
            if path.name.startswith("_"):
                continue
            tree = ast.parse(path.read_text(encoding="utf-8"))
            parts = path.relative_to(self.folder).with_suffix("").parts
            module = ".".join((self.package, *parts))
            for node in tree.body:
                if not isinstance(node, ast.ClassDef):
                    continue
                facts = _literals(node.body)
                name = facts.get("name")
                if isinstance(name, str):
                    found[name] = Entry(name, _summary(node), facts, f"{module}:{node.name}")
        return dict(sorted(found.items()))

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def entry(self, name: str) -> Entry:
        """Return one entry.

        Raises:
            ConfigError: If there is none of that name; says which come close.
        """
        try:
            return self.entries[name]
        except KeyError:
            raise ConfigError(
                f"unknown {self.what} {name!r}", did_you_mean(name, self.entries)
            ) from None

    def load(self, name: str) -> Any:
        """Import and return the class registered under `name`.

        Raises:
            ConfigError: If there is none of that name.
        """
        module, _, attribute = self.entry(name).target.partition(":")
        loaded = importlib.import_module(module)
        return getattr(loaded, attribute) if attribute else loaded
