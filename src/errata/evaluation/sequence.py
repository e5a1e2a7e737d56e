"""Sequences of edits: several side by side, step after step, and what is kept to resume them."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from errata.case import Case
from errata.errors import ErrataError, PatchError, RunError
from errata.evaluation.regimes import Regime, units_of
from errata.patch import Patch
from errata.store.files import write_atomically
from errata.untrusted import read_object

if TYPE_CHECKING:
    from errata.store.runs import RunFolder

log = logging.getLogger(__name__)

FORMAT = 1
STATE = "sequences.json"

CHECKPOINT_SHARE = 0.05
"""Share of the time that may go into writing checkpoints."""

LOOSE = 16
"""Low-rank changes beyond one per matrix that a patch may gather before they are joined."""


@dataclass
class SideBySide:
    """Sequences that are edited side by side, and how far they are.

    Attributes:
        numbers: Number of each unit in the data set.
        units: The cases of each sequence.
        batch: Edits carried out jointly in one step; a case is never split.
        step: Steps made.
        patches: The patch of each sequence so far.
        failed: Case id to the reason why it could not be edited or asked.
        immediate: Case id to the reliability of its edits right after they were made.
        trajectory: Measurements of each sequence along the way.
        seconds: Wall seconds of the steps so far, by part.
        watched: Of each sequence the relative perplexities along the way (`points`), and where it
            was stopped (`stopped`).
    """

    numbers: list[int]
    units: list[Sequence[Case]]
    batch: int
    step: int = 0
    patches: list[Patch | None] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    immediate: dict[str, list[float]] = field(default_factory=dict)
    trajectory: list[list[dict[str, Any]]] = field(default_factory=list)
    watched: list[dict[str, Any]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.steps = [units_of(unit, Regime("batch", self.batch)) for unit in self.units]
        self.patches = self.patches or [None] * len(self.units)
        self.trajectory = self.trajectory or [[] for _ in self.units]
        self.watched = self.watched or [{"points": []} for _ in self.units]

    @property
    def length(self) -> int:
        """Steps of the longest sequence."""
        return max(map(len, self.steps), default=0)

    def live(self) -> list[int]:
        """Return the sequences that have a next step."""
        return [
            i
            for i, own in enumerate(self.steps)
            if self.step < len(own) and "stopped" not in self.watched[i]
        ]

    def stop(self, i: int, when: str) -> None:
        """End a sequence after its last step; the cases behind it fail for that reason."""
        left = [case for group in self.steps[i][self.step :] for case in group]
        left = [case for case in left if case.id not in self.failed]
        self.watched[i]["stopped"] = {"when": when, "step": self.step, "left_out": len(left)}
        reason = f"not edited: the sequence was stopped after step {self.step} by {when}"
        self.failed |= {case.id: reason for case in left}

    def group(self, i: int) -> list[Case]:
        """Return the cases of the next step of a sequence that have not failed."""
        return [case for case in self.steps[i][self.step] if case.id not in self.failed]

    def made(self, i: int) -> list[Case]:
        """Return the cases that a sequence has edited so far, oldest first."""
        done = self.steps[i][: self.step]
        return [case for group in done for case in group if case.id not in self.failed]

    def taken(self) -> int:
        """Return how many cases the steps so far were about, failed ones too."""
        return sum(len(group) for own in self.steps for group in own[: self.step])

    def ages(self) -> dict[str, int]:
        """Return, for each case, how many edits its sequence made in later steps."""
        ages: dict[str, int] = {}
        for own in self.steps:
            later = 0
            for group in reversed(own):
                good = [case for case in group if case.id not in self.failed]
                ages |= {case.id: later for case in good}
                later += sum(len(case.edits) for case in good)
        return ages

    def also(self) -> dict[str, dict[str, Any]]:
        """Return what records say besides answers: ages, first scores; the last one the course."""
        also: dict[str, dict[str, Any]] = {case.id: {} for unit in self.units for case in unit}
        for case, age in self.ages().items():
            also[case]["age"] = age
        for case, scores in self.immediate.items():
            also[case]["immediate"] = scores
        for unit, trajectory, watched in zip(
            self.units, self.trajectory, self.watched, strict=True
        ):
            if trajectory:
                also[unit[-1].id]["trajectory"] = trajectory  # of the whole sequence
            if watched["points"]:
                also[unit[-1].id]["watched"] = watched
        return also

    # ------------------------------------------------------------------ on disk

    def write(self, folder: Path) -> None:
        """Write everything that is needed to go on.

        Raises:
            ErrataError: If it cannot be written.
        """
        for i, patch in enumerate(self.patches):
            if patch is not None:
                patch.save(folder / str(i))
        state = {
            "format": FORMAT,
            "units": self.numbers,
            "ids": [[case.id for case in unit] for unit in self.units],
            "step": self.step,
            "patches": [patch is not None for patch in self.patches],
            "failed": self.failed,
            "immediate": self.immediate,
            "trajectory": self.trajectory,
            "watched": self.watched,
            "seconds": self.seconds,
        }
        write_atomically(folder / STATE, json.dumps(state, ensure_ascii=False).encode())

    def read(self, folder: Path) -> bool:
        """Go on where a checkpoint stands; whether it is one of these sequences.

        Raises:
            PatchError: If a patch in it is damaged.
            OSError, ValueError, KeyError: If something else in it is.
        """
        state = read_object(folder / STATE, within=folder)
        ids = [[case.id for case in unit] for unit in self.units]
        if state["format"] != FORMAT or state["units"] != self.numbers or state["ids"] != ids:
            return False
        self.patches = [
            Patch.load(folder / str(i)) if there else None
            for i, there in enumerate(state["patches"])
        ]
        self.step = state["step"]
        self.failed, self.immediate = state["failed"], state["immediate"]
        self.trajectory = state["trajectory"]
        self.watched = state.get("watched") or self.watched
        self.seconds = {str(part): float(s) for part, s in (state.get("seconds") or {}).items()}
        return True


class Checkpoints:
    """Keeps the newest state of the sequences in a run folder.

    Writing takes at most CHECKPOINT_SHARE of the time: a state that is expensive to write is
    written less often, and what a killed run loses is bounded by what writing costs.

    Args:
        folder: The run folder; None keeps nothing.
    """

    def __init__(self, folder: RunFolder | None) -> None:
        self.folder = folder
        self._written = float("-inf")
        self._cost = 0.0

    def resume(self, sequences: SideBySide) -> None:
        """Go on where the run folder's checkpoint stands, if it is one of these sequences."""
        found = None if self.folder is None else self.folder.checkpoint()
        if found is None:
            return
        try:
            if sequences.read(found):
                log.info("going on after step %s of %s", sequences.step, sequences.length)
        except (PatchError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("%s cannot be read and is not used: %s", found, error)

    def keep(self, sequences: SideBySide) -> None:
        """Write the state, unless that would take too much of the time.

        Raises:
            RunError: If it cannot be written; the one before stays.
        """
        if self.folder is None:
            return
        start = time.monotonic()
        if start - self._written < self._cost / CHECKPOINT_SHARE:
            return
        try:
            with self.folder.new_checkpoint() as path:
                sequences.write(path)
        except RunError:
            raise
        except ErrataError as error:
            raise RunError(
                f"the state of the sequence cannot be kept: {error.message}",
                "Make room and go on with --resume; the state before this one is kept.",
            ) from error
        self._written = time.monotonic()
        self._cost = self._written - start

    def drop(self) -> None:
        """Remove the checkpoint: its sequences are on record."""
        if self.folder is not None:
            self.folder.drop_checkpoint()


def joined(patch: Patch | None) -> Patch | None:
    """Return an equal patch with few changes, so that long sequences do not slow down.

    When it is done depends on the patch alone, so that a resumed sequence does it at the same
    steps.
    """
    if patch is None:
        return None
    paths = [change.path for change in patch.changes if change.factors is not None]
    return patch.compact() if len(paths) > len(set(paths)) + LOOSE else patch
