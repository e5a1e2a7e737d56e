"""Two sheets, or two builds, and in words what is different between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.data._records import thaw
from errata.errors import ConfigError, PatchError
from errata.sheets.sheet import TOML, load_sheet
from errata.store.words import counted

if TYPE_CHECKING:
    from errata.patch.report import Neighbour

OWN = ("editor", "tried")
"""What a build notes of a fact beside what the sheet says."""
SHOWN = 5
"""Subjects that a line names."""

Facts = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Difference:
    """What is different.

    Attributes:
        added: Facts that only the second has, by id.
        removed: Facts that only the first has.
        changed: Of a fact that both have: field -> what it was and what it is.
        moved: Neighbours that both builds asked, and that moved under the second alone.
        back: Those that moved under the first alone.
        beside: Neighbours that moved under the second build, and that the first did not ask.
        compared: Whether both are builds, so that what moved could be compared.
    """

    added: Facts
    removed: Facts
    changed: Mapping[str, Mapping[str, tuple[Any, Any]]]
    moved: tuple[str, ...] = ()
    back: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    compared: bool = False

    def __str__(self) -> str:
        """Return it in words: `+3 facts, 1 changed; Germany moved`."""
        parts = []
        if self.added:
            parts.append(f"+{counted(len(self.added), 'fact')}")
        if self.changed:
            parts.append(f"{len(self.changed)} changed")
        if self.removed:
            parts.append(f"{len(self.removed)} removed")
        told = [", ".join(parts) if parts else "the same facts"]
        if self.moved:
            told.append(f"{named(self.moved)} moved")
        if self.back:
            told.append(f"{named(self.back)} as before the edits again")
        if self.beside:
            told.append(f"of what was not asked before, {named(self.beside)} moved")
        return "; ".join(told)

    @property
    def nothing(self) -> bool:
        """Whether there is none."""
        facts = self.added or self.removed or self.changed
        return not (facts or self.moved or self.back or self.beside)

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "words": str(self),
            "added": dict(self.added),
            "removed": dict(self.removed),
            "changed": {
                name: {key: {"before": a, "after": b} for key, (a, b) in fields.items()}
                for name, fields in self.changed.items()
            },
            "moved": list(self.moved),
            "moved_no_more": list(self.back),
            "moved_not_asked_before": list(self.beside),
            "neighbours_compared": self.compared,
        }


def named(names: Sequence[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def told_of(entries: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return facts as files say them, by id; without what a build notes beside."""
    return {
        str(entry["id"]): {k: v for k, v in entry.items() if k not in OWN and k != "id"}
        for entry in entries
    }


def changes(one: Facts, two: Facts) -> Difference:
    """Return what two sets of facts have not in common, by their ids."""
    both = [name for name in two if name in one]
    changed = {}
    for name in both:
        a, b = one[name], two[name]
        fields = {k: (a.get(k), b.get(k)) for k in dict.fromkeys([*a, *b]) if a.get(k) != b.get(k)}
        if fields:
            changed[name] = fields
    return Difference(
        {name: fact for name, fact in two.items() if name not in one},
        {name: fact for name, fact in one.items() if name not in two},
        changed,
    )


def words(one: Facts, two: Facts) -> str:
    """Say in words what two sets of facts have not in common."""
    return str(changes(one, two))


def difference(one: str | Path, two: str | Path) -> Difference:
    """Compare two sheets, or two patches that were built of sheets, or one of each.

    Args:
        one: Folder of a sheet or a patch.
        two: Folder of the other.

    Raises:
        ConfigError: If one is neither.
        PatchError: If a patch was not built of a sheet.
    """
    (first, then), (second, now) = _side(Path(one)), _side(Path(two))
    found = changes(first, second)
    if then is None or now is None:
        return found
    both = [prompt for prompt in now if prompt in then]
    return replace(
        found,
        moved=_subjects(now[p] for p in both if now[p].moved and not then[p].moved),
        back=_subjects(then[p] for p in both if then[p].moved and not now[p].moved),
        beside=_subjects(one for p, one in now.items() if one.moved and p not in then),
        compared=True,
    )


def _subjects(neighbours: Iterable[Neighbour]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(one.subject or one.prompt for one in neighbours))


def _side(folder: Path) -> tuple[Facts, dict[str, Neighbour] | None]:
    """Return the facts of a sheet or a build, and of a build the neighbours by their prompts."""
    if (folder / TOML).is_file():
        return told_of([fact.described() for fact in load_sheet(folder).facts]), None
    if not (folder / "patch.json").is_file():
        raise ConfigError(
            f"{folder} is neither a sheet nor a patch",
            f"Name a folder with {TOML}, or one that `errata sheet build` wrote.",
        )
    from errata.patch import Patch

    patch = Patch.load(folder)
    sheet = patch.meta.get("sheet")
    if sheet is None:
        raise PatchError(f"{folder} was not built of a sheet", "errata sheet build SHEET")
    around = {one.prompt: one for one in patch.report.neighbours}
    return told_of(thaw(sheet).get("facts") or ()), around
