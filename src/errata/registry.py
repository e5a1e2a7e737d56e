"""The folder is the registry: a module or a folder per editor or strategy, plus entry points.

Listing reads source files and imports nothing, so it is instant; loading imports one module.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from errata.config import did_you_mean
from errata.errors import ConfigError
from errata.sources import ClassSource, Sources


@dataclass(frozen=True)
class Entry:
    """What is known of a registered thing without importing it.

    Attributes:
        name: Its name on the command line.
        summary: First line of its docstring.
        facts: Literal class attributes (`paper`, `needs` …) of its class, inherited ones included.
        target: `module:Class`.
    """

    name: str
    summary: str
    facts: dict[str, Any]
    target: str

    @property
    def is_own(self) -> bool:
        """Whether it comes with errata and not with another distribution."""
        return self.target.startswith("errata.")


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
        base: `module:Class` of the base class, whose facts hold for what states none.
        stated: Names of the facts that are listed.
    """

    what: str
    package: str
    folder: Path
    group: str
    home: str = ""
    base: str = ""
    stated: tuple[str, ...] = ()

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """All entries by name, sorted; the project's own win over entry points of the same name."""
        sources = Sources()
        found: dict[str, Entry] = {}
        for point in metadata.entry_points(group=self.group):
            source = sources.find(point.module, point.attr)
            found[point.name] = self._entry(point.name, sources, source, point.value)
        folders = self.folder.glob(f"*/{self.home}.py") if self.home else ()
        for path in sorted((*self.folder.glob("*.py"), *folders)):
            if path.name.startswith("_"):
                continue
            parts = path.relative_to(self.folder).with_suffix("").parts
            module = ".".join((self.package, *parts))
            sources.add(module, path)
            for source in sources.classes(module):
                name = source.own().get("name")
                if isinstance(name, str):
                    found[name] = self._entry(name, sources, source, source.target)
        return dict(sorted(found.items()))

    def _entry(self, name: str, sources: Sources, source: ClassSource | None, target: str) -> Entry:
        """Describe a thing; of a class that cannot be read the facts of the base class hold."""
        read = source or (sources.find(*self.base.split(":")) if self.base else None)
        facts = {"name": name, **({} if read is None else sources.facts(read))}
        listed = {key: facts[key] for key in self.stated if key in facts}
        summary = "" if source is None else source.summary
        return Entry(name, summary or f"from {target}", listed, target)

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
        return getattr(loaded, attribute)
