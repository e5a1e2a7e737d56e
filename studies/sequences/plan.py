"""What is run: every editor through the same sequences of edits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DATA = {"collide": "relation"}
"""Questions about a fact that another edit of the sequence makes false are no locality questions.
The published rule misses them where answers are invented; see docs/data.md."""


@dataclass(frozen=True)
class Editor:
    """One row of the tables.

    Attributes:
        label: In tables.
        name: Of the editor.
        settings: Beside its defaults.
        long: Whether it is also run where there are a thousand edits.
    """

    label: str
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    long: bool = False


EDITORS = {
    "ridge": Editor("IBKE, ridge", "ibke"),
    "sum": Editor("IBKE, sum", "ibke", {"joint": "sum"}),
    "retrieval": Editor("IBKE-retrieval", "ibke-retrieval", long=True),
    "mend": Editor("MEND, ridge", "mend"),
    "mend_sum": Editor("MEND, sum", "mend", {"joint": "sum"}),
    "memit": Editor("MEMIT", "memit"),
    "alphaedit": Editor("AlphaEdit", "alphaedit"),
    "ft": Editor("FT", "ft"),
}


@dataclass(frozen=True)
class Regime:
    """One table.

    Attributes:
        title: Its heading.
        regime: For `errata eval`.
        batch: Edits per step.
        limit: Cases.
        split: Of the world.
        only: Editors; empty: all.
    """

    title: str
    regime: str
    batch: int = 1
    limit: int | None = 100
    split: str = "test"
    only: tuple[str, ...] = ()


REGIMES = {
    "single": Regime("Each edit alone", "single"),
    "s10": Regime("Ten edits, one after another (ten sequences)", "sequential:10"),
    "s30": Regime("Thirty edits, one after another (three sequences)", "sequential:30", limit=90),
    "s100": Regime("A hundred edits, one after another", "sequential:100"),
    "s100b20": Regime("A hundred edits, twenty at a time", "sequential:100", batch=20),
    "s419b20": Regime(
        "All 419 edits of the split, twenty at a time", "sequential:419", batch=20, limit=None
    ),
    "s1000": Regime(
        "A thousand edits of the train split, one after another", "sequential:1000", limit=1000,
        split="train", only=("retrieval",),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One evaluation."""

    editor: str
    regime: str

    @property
    def name(self) -> str:
        """Name of its result."""
        return f"{self.regime}-{self.editor}"


def runs() -> list[Run]:
    """Return all runs, table by table."""
    return [
        Run(editor, regime)
        for regime, about in REGIMES.items()
        for editor in about.only or tuple(EDITORS)
    ]
