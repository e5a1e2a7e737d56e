"""How many settings are compared on how many facts, in the time that is given.

All is counted in edits, each with its questions: they take the same time, whatever the setting.
"""

from __future__ import annotations

from dataclasses import dataclass

from errata.errors import ConfigError
from errata.progress import told

RUNGS = (4, 8, 16)
"""Facts on which candidates are compared, step by step."""

LAST, FINALISTS = 40, 3
"""Facts on which the best few are compared in the end: who leads among many leads by luck, too."""

HELD = 24
"""Facts that are held out, at most; at least LEAST_HELD, where time is short."""

LEAST_HELD = 8
KEPT = 3
"""One candidate of so many is kept at each step."""

MOST = 27
"""Candidates at most."""

HALVING = 0.7
"""Share of the time that halving may take; the rest is for neighbours of the best."""


@dataclass(frozen=True)
class Budget:
    """What there is to spend.

    Attributes:
        seconds: Time for all of it.
        prepared: Seconds that preparing took.
        search: Facts of the search, those of the last comparison included.
        held: Facts that may be held out.
    """

    seconds: float
    prepared: float
    search: int
    held: int

    @property
    def facts(self) -> int:
        """Facts on which candidates are compared."""
        return min(self.search, RUNGS[-1])

    @property
    def final(self) -> int:
        """Edits that the last comparison takes."""
        return FINALISTS * (self.search - self.facts)

    def plan(self, pace: float) -> tuple[int, int]:
        """Return the number of held-out facts that there is time for, and that of candidates.

        Args:
            pace: Seconds of an edit.
        """
        left = self.seconds - self._gone(pace)
        held = max(LEAST_HELD, min(self.held, int(0.35 * left / (2 * pace))))
        held = min(held, self.held)
        rule = self.facts - RUNGS[0]  # measured on all of them in any case
        edits = (left - (2 * held + rule) * pace) / pace
        count, whole = 1, max(edits - self.final, 0)
        while count < MOST and cost(count + 1, self.facts) <= HALVING * whole:
            count += 1
        if count < 2 and cost(2, self.facts) <= HALVING * edits:
            count = 2  # the last comparison is left out
        return held, count

    def check(self, pace: float) -> None:
        """Refuse a time in which nothing can be compared.

        Raises:
            ConfigError: Says how much is needed.
        """
        held, count = self.plan(pace)
        if count > 1:
            return
        rule, halving = self.facts - RUNGS[0], cost(2, self.facts) / HALVING
        needed = self._gone(pace) + (2 * held + rule + halving) * pace
        raise ConfigError(
            f"{told(self.seconds)} do not suffice: preparing took {told(self.prepared)}, an "
            f"edit and its questions take {pace:.1f} s here",
            f"The smallest search takes about {needed / 60:.0f} minutes: --minutes "
            f"{max(1, round(1.3 * needed / 60 + 0.5))}. What was measured is kept.",
        )

    def _gone(self, pace: float) -> float:
        return self.prepared + pace * RUNGS[0]


def steps_to(facts: int) -> list[int]:
    """Return the numbers of facts on which candidates are compared, one after another."""
    return [rung for rung in RUNGS if rung < facts] + [facts]


def kept(candidates: int) -> int:
    """Return how many of so many go on; who is to be compared in the end stays in."""
    return min(candidates, max(FINALISTS, -(-candidates // KEPT)))


def cost(candidates: int, facts: int) -> float:
    """Return how many edits halving over so many candidates takes."""
    total, done, left = 0, 0, candidates
    for rung in steps_to(facts):
        total += left * (rung - done)
        done, left = rung, kept(left)
    return total
