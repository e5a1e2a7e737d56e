"""The changelog of a build: what each build changed about the facts of the one before.

It lies beside the patch in a file of its own, so that a patch is bit for bit that of a build from
nothing, whatever was built before it. Both take their place in one step: a changelog that was
written afterwards would miss a build that was killed in between, and for good.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from errata.data._records import thaw
from errata.documents import Document, checked
from errata.errors import ErrataError
from errata.sheets.difference import changes, named, told_of
from errata.store.words import counted
from errata.untrusted import read_json

if TYPE_CHECKING:
    from errata.patch import Patch

log = logging.getLogger(__name__)

NAME = "changelog.json"
KEPT = 1000
"""Builds that are remembered."""


class Entry(Document):
    """One build.

    Attributes:
        made: When.
        digest: Of its facts.
        facts: How many there are.
        added: Ids of facts that the build before did not have; of the first build, none.
        changed: Ids of those that say something else.
        removed: Ids of those that are gone.
    """

    made: str | None = None
    digest: str
    facts: int
    added: list[str] = Field(default_factory=list)
    changed: list[str] = Field(default_factory=list)
    removed: list[str] = Field(default_factory=list)

    def __str__(self) -> str:
        """Return it in words: `+1 fact (switzerland), 1 removed (brazil)`."""
        parts = []
        if self.added:
            parts.append(f"+{counted(len(self.added), 'fact')} ({named(self.added)})")
        if self.changed:
            parts.append(f"{len(self.changed)} changed ({named(self.changed)})")
        if self.removed:
            parts.append(f"{len(self.removed)} removed ({named(self.removed)})")
        return ", ".join(parts) or f"first build: {counted(self.facts, 'fact')}"


class _Log(Document):
    builds: list[Entry]


def changelog(folder: str | Path, patch: Patch) -> tuple[Entry, ...]:
    """Return the builds that led to a patch, the latest last; none if nothing is known of them.

    Args:
        folder: Where the patch lies.
        patch: The patch, whose facts have to be those of the latest build.
    """
    entries = _read(Path(folder))
    sheet = patch.meta.get("sheet")
    if sheet is None or not entries or entries[-1].digest != sheet.get("digest"):
        return ()
    return tuple(entries)


def _read(folder: Path) -> list[Entry]:
    try:
        return checked(_Log, read_json(folder / NAME, within=folder)).builds
    except FileNotFoundError:
        return []
    except (OSError, ErrataError) as error:
        log.warning("%s cannot be read (%s)", folder / NAME, error)
        return []


def noted(folder: str | Path, before: Patch | None, now: Patch) -> bytes | None:
    """Return the changelog with a build added, to be saved together with it.

    Args:
        folder: Where the build is going to be saved.
        before: The build that it replaces, if there is one.
        now: The build.

    Returns:
        The content of the file; None if what is there stays: its last build has the same facts.
    """
    sheet: Mapping[str, Any] = now.meta["sheet"]
    entries = [] if before is None else _read(Path(folder))
    if entries and entries[-1].digest == sheet.get("digest"):
        return None
    if before is not None and not entries:  # of a build from before there were changelogs
        entries = [_first(before)]
    if not entries:
        entries = [_first(now)]
    elif before is not None and entries[-1].digest != sheet.get("digest"):
        found = changes(_facts(before), _facts(now))
        added, changed, removed = list(found.added), list(found.changed), list(found.removed)
        more = {"added": added, "changed": changed, "removed": removed}
        entries.append(_first(now).model_copy(update=more))
    document = {"builds": [entry.model_dump() for entry in entries[-KEPT:]]}
    return (json.dumps(document, ensure_ascii=False, indent=1) + "\n").encode()


def _first(build: Patch) -> Entry:
    sheet: Mapping[str, Any] = build.meta["sheet"]
    made = build.meta.get("made")
    return Entry(made=made, digest=str(sheet.get("digest")), facts=len(sheet["facts"]))


def _facts(patch: Patch) -> dict[str, dict[str, Any]]:
    return told_of(thaw(patch.meta["sheet"]).get("facts") or ())
