"""The runs of the study: which editor, on how many facts, in which regime, and why.

Settings are those the editors take by themselves on the pocket model (`published["pocket"]`, found
on validation facts: see findings.md); a run names only what differs from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from studies.locate.data import EDITS, SEEDS

SINGLES = 200
"""Edits of single runs and of batches below 1,000: the first of the seed's 1,000."""

STEP = 50
"""Edits of one batch of a sequence."""

ROBUST = 40
"""Edits whose robustness is measured."""

SEQUENCE_HOSTS = ("memit", "memit_seq", "pmet", "alphaedit")
BLUE_HOSTS = ("memit", "memit_seq", "pmet", "alphaedit", "rect", "prune")
BATCHES = (1, 10, 100, EDITS)
ROBUST_HOSTS = ("rome", "r_rome", "memit", "emmet")
LARGEST_HOSTS = ("memit", "alphaedit")
"""Hosts of batches of 1,000 with every seed; the others have one seed."""

ROBUST_SETTINGS: dict[str, dict[str, Any]] = {
    "r_rome": {"contexts": "memit", "lr": 0.2, "steps": 20},
}
"""R-ROME is measured with contexts: without them it is ROME."""


@dataclass(frozen=True)
class Run:
    """One evaluation of one editor with one seed.

    Attributes:
        part: Kind of experiment: sequence, batch, robustness or fix.
        label: What distinguishes it within its part.
        editor: Editor.
        seed: Which objects, questions and order of facts.
        regime: As `errata eval --regime`.
        edits: Number of facts.
        batch: Edits of one step of a sequence.
        settings: That differ from the editor's for pocket.
    """

    part: str
    label: str
    editor: str
    seed: int
    regime: str
    edits: int
    batch: int = 1
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of its result file."""
        return f"{self.part}_{self.label}_s{self.seed}".replace("+", "_")


def pair(hosts: Sequence[str], strategy: str) -> list[str]:
    """Return hosts without and with a strategy, alternating."""
    return [name for host in hosts for name in (host, f"{host}+{strategy}")]


def sequences() -> list[Run]:
    """Return sequences of 1,000 edits in batches of 50."""
    return [
        Run("sequence", name, name, seed, f"sequential:{EDITS}", EDITS, STEP)
        for seed in SEEDS
        for name in pair(SEQUENCE_HOSTS, "blue")
    ]


def batch_editors(size: int) -> list[str]:
    """Return the editors that are measured in batches of a size.

    MEMIT-seq is missing: without earlier edits it is MEMIT. One edit at a time, ROME joins; R-ROME
    and p-ROME without contexts have one key only, and are ROME (see `fixes`).
    """
    hosts = [host for host in BLUE_HOSTS if host != "memit_seq"]
    return [*(["rome"] if size == 1 else []), "emmet", *pair(hosts, "blue")]


def batches() -> list[Run]:
    """Return single edits and batches, each unit on the unedited model."""
    return [
        Run(
            "batch", f"{size}_{name}", name, seed, "single" if size == 1 else f"batch:{size}",
            EDITS if size == EDITS else SINGLES,
        )
        for seed in SEEDS
        for size in (1, 100, EDITS, 10)
        for name in batch_editors(size)
        if size < EDITS or seed == 0 or name.partition("+")[0] in (*LARGEST_HOSTS, "emmet")
    ]  # fmt: skip


def robustness() -> list[Run]:
    """Return the robustness suite on single edits, with and without REP."""
    return [
        Run(
            "robustness", name, name, seed, "single", ROBUST,
            settings=ROBUST_SETTINGS.get(name.partition("+")[0], {}),
        )
        for seed in SEEDS
        for name in pair(ROBUST_HOSTS, "rep")
    ]  # fmt: skip


@dataclass(frozen=True)
class Fix:
    """An error of published code that has a switch here, and how its effect is measured.

    Attributes:
        key: Part of the names of its runs.
        title: What it is, for the table.
        ours: Editor and settings without the error.
        released: Editor and settings with it.
        regime: Of both.
    """

    key: str
    title: str
    ours: tuple[str, dict[str, Any]]
    released: tuple[str, dict[str, Any]]
    regime: str = "batch:100"

    def runs(self, seed: int) -> list[Run]:
        """Return both runs of a seed."""
        sides = {"ours": self.ours, "released": self.released}
        return [
            Run("fix", f"{self.key}_{side}", editor, seed, self.regime, FIXED, settings=settings)
            for side, (editor, settings) in sides.items()
        ]


FIXED = 100
"""Edits on which a fix is measured."""

_MIXED = {"contexts": "memit", "lr": 0.2, "steps": 20}
"""ROME with contexts, without which its two keys are one; fewer, larger steps to pay for them."""

FIXES = (
    Fix(
        "keys", "ROME's two keys (R-ROME: the mean key; with 6 contexts)",
        ("r_rome", _MIXED), ("rome", _MIXED), "single",
    ),
    Fix(
        "prompt_key", "ROME's two keys (p-ROME: the prompt's key; with 6 contexts)",
        ("p_rome", _MIXED), ("rome", _MIXED), "single",
    ),
    Fix(
        "moment", "`mom2_adjustment=false` (ROME in EasyEdit)",
        ("rome", {}), ("rome", {"mom2_adjustment": False}), "single",
    ),
    Fix(
        "stop", "`stop_loss=0` (REP's copies of ROME and MEMIT)",
        ("memit", {}), ("memit", {"stop_loss": 0.0}),
    ),
    Fix("prune", "PRUNE `compat`: clipped update added twice", ("prune", {}),
        ("prune", {"compat": True})),
    Fix("alphaedit", "AlphaEdit `compat`: general solve in float32", ("alphaedit", {}),
        ("alphaedit", {"compat": True})),
    Fix("pmet", "PMET `compat`: scaled KL compared", ("pmet", {}), ("pmet", {"compat": True})),
)  # fmt: skip


def fixes() -> list[Run]:
    """Return what shows the effect of the named fixes of published code."""
    return [run for seed in SEEDS for fix in FIXES for run in fix.runs(seed)]


def everything() -> list[Run]:
    """Return all runs, the most important first."""
    return [*sequences(), *batches(), *robustness(), *fixes()]
