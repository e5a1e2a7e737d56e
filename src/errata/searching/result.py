"""What a search found, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from errata.editors.fitting import plain
from errata.searching.facts import Deal
from errata.searching.trials import ALLOWED, Stats

WRITES = 0.95
"""Share of edits that has to be written for a setting to count as working."""


@dataclass(frozen=True)
class Tried:
    """A setting that was measured on all facts of the search.

    Attributes:
        settings: What differs from the rule of thumb.
        stats: What was measured.
        front: Whether no other is better in all that counts.
    """

    settings: Mapping[str, Any]
    stats: Stats
    front: bool


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        editor: The editor.
        model: The model.
        settings: The chosen values of all settings that were searched: those that editors which
            are asked for by name take from now on.
        held: Measured on held-out facts, with the chosen settings.
        held_rule: The same with the rule of thumb.
        rule: Settings of the rule of thumb that were searched.
        tried: What was measured on all facts of the search, the best first.
        candidates: How many settings were looked at.
        deal: The facts.
        seconds: What it took, earlier runs included.
        id: Names the search.
    """

    editor: str
    model: str
    settings: Mapping[str, Any]
    held: Stats
    held_rule: Stats
    rule: Mapping[str, Any]
    tried: tuple[Tried, ...]
    candidates: int
    deal: Deal = field(repr=False)
    seconds: float
    id: str

    @property
    def works(self) -> bool:
        """Whether enough held-out edits are written, and few enough neighbours lost."""
        return self.held.written >= WRITES and self.held.ns_lost <= ALLOWED + 1e-9

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {
            "editor": self.editor,
            "model": self.model,
            "settings": dict(self.settings),
            "rule_of_thumb": dict(self.rule),
            "works": self.works,
            "held_out": {"chosen": asdict(self.held), "rule_of_thumb": asdict(self.held_rule)},
            "tried": [
                {"settings": dict(one.settings), "front": one.front, **asdict(one.stats)}
                for one in self.tried
            ],
            "candidates": self.candidates,
            "facts": {
                "name": self.deal.name,
                "search": len(self.deal.search),
                "held_out": len(self.deal.held),
                "known": {name: list(counts) for name, counts in self.deal.known.items()},
                "left_out": list(self.deal.left_out),
                "unknown": list(self.deal.unknown),
            },
            "seconds": self.seconds,
            "id": self.id,
        }


def shown(settings: Mapping[str, Any]) -> str:
    """Return settings in a few words."""
    return ", ".join(f"{k}={plain(v)}" for k, v in settings.items()) or "rule of thumb"
