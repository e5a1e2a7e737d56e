"""The runs of the study: which editor, on how many facts, in which regime, and why.

Settings are those the editors take by themselves on the pocket model (`presets["pocket"]`, found
on validation facts: see findings.md); a run names only what differs from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
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


CUT = frozenset((Path(__file__).parent / "cut.txt").read_text(encoding="utf-8").split())
"""Names of runs that were left out for want of processor time; `run --all` makes them, too."""


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


ROBUST_PAIRS = pair(ROBUST_HOSTS, "rep")


STRONGER: dict[str, dict[str, Any]] = {"memit": {"mom2_weight": 5000.0}}
"""Hosts whose sequences are also made with updates that are restrained more, with one seed."""


def stronger_label(editor: str) -> str:
    """Return the label of such a sequence."""
    return f"{editor}_restrained"


SEQUENCE_LABELS = (
    *pair(SEQUENCE_HOSTS, "blue"),
    *(stronger_label(editor) for editor in pair(tuple(STRONGER), "blue")),
)


def sequences() -> list[Run]:
    """Return sequences of 1,000 edits in batches of 50."""
    regime = f"sequential:{EDITS}"
    own = [
        Run("sequence", name, name, seed, regime, EDITS, STEP)
        for seed in SEEDS
        for name in pair(SEQUENCE_HOSTS, "blue")
    ]
    more = [
        Run("sequence", stronger_label(name), name, 0, regime, EDITS, STEP, settings)
        for host, settings in STRONGER.items()
        for name in pair((host,), "blue")
    ]
    return own + more


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
        for size in (1, 100, 10, EDITS)
        for name in batch_editors(size)
        if size < EDITS or seed == 0 or name.partition("+")[0] in (*LARGEST_HOSTS, "emmet")
    ]  # fmt: skip


RELEASED = "memit+rep_released"
"""MEMIT+REP as the released code has it: raw keys for targets, no long contexts in training."""


def robustness() -> list[Run]:
    """Return the robustness suite on single edits, with and without REP, and REP as released."""
    return [
        Run("robustness", label, editor, seed, "single", ROBUST, settings=settings)
        for seed in SEEDS
        for label, editor, settings in (
            *((n, n, ROBUST_SETTINGS.get(n.partition("+")[0], {})) for n in ROBUST_PAIRS),
            (RELEASED, "memit+rep", {"rep_compat": "released"}),
        )
    ]


STRENGTHS: dict[str, tuple[str, tuple[float, ...]]] = {
    "memit": ("mom2_weight", (100.0, 300.0, 3000.0)),
    "alphaedit": ("l2", (1.0, 3.0, 30.0)),
}
"""Host -> what restrains its updates, and values besides that of the settings for pocket."""

STRENGTH_BATCH = 100


def strength_label(editor: str, value: float) -> str:
    """Return the label of a cell."""
    return f"{editor}_{value:g}"


def strengths() -> list[Run]:
    """Return hosts and BLUE restrained less and more, for a comparison at equal locality."""
    return [
        Run(
            "strength", strength_label(editor, value), editor, seed, f"batch:{STRENGTH_BATCH}",
            SINGLES, settings={setting: value},
        )
        for seed in SEEDS
        for host, (setting, values) in STRENGTHS.items()
        for editor in pair((host,), "blue")
        for value in values
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


def grid() -> list[Run]:
    """Return all runs that were meant, the most important first."""
    return [*sequences(), *batches(), *strengths(), *robustness(), *fixes()]


def everything() -> list[Run]:
    """Return the runs that there was processor time for: what the page is made of."""
    return [run for run in grid() if run.name not in CUT]
