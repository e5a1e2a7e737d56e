"""What classes state about themselves, read from source files without importing them.

A class attribute that is a literal is a fact; base classes are followed through the files that
import them, also into other distributions. Nothing is executed.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ClassSource:
    """A class in a source file.

    Attributes:
        module: Dotted name of its module.
        node: Its definition.
    """

    module: str
    node: ast.ClassDef

    @property
    def target(self) -> str:
        """`module:Class`."""
        return f"{self.module}:{self.node.name}"

    @property
    def summary(self) -> str:
        """First line of its docstring."""
        return (ast.get_docstring(self.node) or "").strip().partition("\n")[0]

    def own(self) -> dict[str, Any]:
        """Return the attributes that its body sets; those that are no literals are `...`."""
        values: dict[str, Any] = {}
        for node in self.node.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                name, value = node.targets[0].id, node.value
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                if node.value is None:
                    continue
                name, value = node.target.id, node.value
            elif isinstance(node, ast.FunctionDef):
                values[node.name] = ...
                continue
            else:
                continue
            try:
                values[name] = ast.literal_eval(value)
            except ValueError:
                values[name] = ...
        return values


class Sources:
    """Source files, each parsed once."""

    def __init__(self) -> None:
        self._trees: dict[str, ast.Module | None] = {}
        self._packages: set[str] = set()

    def add(self, module: str, path: Path) -> ast.Module:
        """Return the parsed file of a module that is known to lie there."""
        tree = ast.parse(path.read_text(encoding="utf-8"))
        self._trees[module] = tree
        return tree

    def tree(self, module: str) -> ast.Module | None:
        """Return the parsed file of a module; None if it has none that can be read."""
        if module not in self._trees:
            self._trees[module] = None
            spec = _spec_of(module)
            if spec is not None and spec.origin and spec.origin.endswith(".py"):
                if spec.submodule_search_locations is not None:
                    self._packages.add(module)
                try:
                    self.add(module, Path(spec.origin))
                except (OSError, ValueError, SyntaxError):
                    pass
        return self._trees[module]

    def classes(self, module: str) -> Iterator[ClassSource]:
        """Yield the classes of a module's own."""
        tree = self.tree(module)
        for node in [] if tree is None else tree.body:
            if isinstance(node, ast.ClassDef):
                yield ClassSource(module, node)

    def find(self, module: str, name: str) -> ClassSource | None:
        """Return a class by the name that it has in a module, which may import it from another."""
        return self._find(module, name, set())

    def _find(self, module: str, name: str, seen: set[tuple[str, str]]) -> ClassSource | None:
        if (module, name) in seen:
            return None
        seen.add((module, name))
        for source in self.classes(module):
            if source.node.name == name:
                return source
        for alias, (home, attribute) in self._imports(module).items():
            if alias == name and attribute:
                return self._find(home, attribute, seen)
        return None

    def _imports(self, module: str) -> dict[str, tuple[str, str]]:
        """Return for each imported name its module and its name there (empty: the module)."""
        found: dict[str, tuple[str, str]] = {}
        tree = self.tree(module)
        for node in _statements([] if tree is None else tree.body):
            if isinstance(node, ast.ImportFrom):
                home = self._absolute(module, node)
                for alias in node.names:
                    found[alias.asname or alias.name] = (home, alias.name)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    whole = alias.name if alias.asname else alias.name.partition(".")[0]
                    found[alias.asname or whole] = (whole, "")
        return found

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = module.split(".")
        up = node.level - (module in self._packages)
        return ".".join([*parts[: len(parts) - up], *([node.module] if node.module else [])])

    def _bases(self, source: ClassSource) -> list[ClassSource]:
        """Return the base classes that can be read."""
        found = []
        for base in source.node.bases:
            if isinstance(base, ast.Subscript):
                base = base.value
            head, *rest = ast.unparse(base).split(".")
            module, name = source.module, head
            if rest:
                home, attribute = self._imports(source.module).get(head, ("", ""))
                module = ".".join(part for part in (home, attribute, *rest[:-1]) if part)
                name = rest[-1]
            one = self._find(module, name, set())
            if one is not None:
                found.append(one)
        return found

    def lineage(self, source: ClassSource) -> list[ClassSource]:
        """Return a class and its base classes in the order in which attributes are looked up."""
        return _merged(source, self._bases, ())

    def facts(self, source: ClassSource) -> dict[str, Any]:
        """Return the literal attributes of a class, inherited ones included."""
        values: dict[str, Any] = {}
        for one in reversed(self.lineage(source)):
            values.update(one.own())
        return {name: value for name, value in values.items() if value is not ...}


def _merged(source: ClassSource, bases: Any, below: tuple[str, ...]) -> list[ClassSource]:
    """Linearise as Python does (C3); a class that inherits from itself is cut off."""
    if source.target in below:
        return []
    parents: list[ClassSource] = bases(source)
    rows = [_merged(parent, bases, (*below, source.target)) for parent in parents]
    rows.append(parents)
    order = [source]
    while rows := [row for row in rows if row]:
        later = {one.target for row in rows for one in row[1:]}
        head = next((row[0] for row in rows if row[0].target not in later), rows[0][0])
        order.append(head)
        rows = [[one for one in row if one.target != head.target] for row in rows]
    return order


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of a module, also those under `if TYPE_CHECKING` and `try`."""
    for node in body:
        yield node
        if isinstance(node, ast.If | ast.Try):
            yield from _statements([*node.body, *node.orelse])


def _spec_of(module: str) -> ModuleSpec | None:
    """Return where a module lies; unlike `find_spec` of importlib without importing its parents."""
    head, *rest = module.split(".")
    if not head or head in sys.stdlib_module_names:
        return None
    try:
        spec = importlib.util.find_spec(head)
        for number in range(len(rest)):
            if spec is None or spec.submodule_search_locations is None:
                return None
            name = ".".join([head, *rest[: number + 1]])
            spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    except (ImportError, ValueError, AttributeError):
        return None
    return spec
