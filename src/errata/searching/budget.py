"""How many settings are compared on how many facts, in the time that is given.

All is counted in edits, each with its questions: they take about the same time, whatever the
setting.
"""

from __future__ import annotations

from dataclasses import dataclass

from errata.errors import ConfigError
from errata.progress import told

RUNGS = (4, 8, 16)
"""Facts on which candidates are compared, step by step."""

LAST, FINALISTS = 40, 3
"""Facts on which the best few are compared in the end, at most: who leads among many leads by luck,
too."""

HELD = 40
"""Facts that are held out, at most; at least LEAST_HELD, where time is short."""

LEAST_HELD = 8
KEPT = 3
"""One candidate of so many is kept at each step."""

MOST = 27
"""Candidates at most."""

HELD_OUT, LAST_SHARE, HALVING = 0.25, 0.2, 0.7
"""Shares of time: of all of it for facts that are held out; of what is left then for the last
comparison; and of the rest for halving. What remains is for neighbours of the best."""


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        held: Facts that are held out.
        last: Facts of the last comparison.
        candidates: Settings that halving begins with.
        deciding: Edits that the last comparison takes.
    """

    held: int
    last: int
    candidates: int
    deciding: int


@dataclass(frozen=True)
class Budget:
    """What there is to spend.

    Attributes:
        seconds: Time for all of it.
        prepared: Seconds that asking for known facts and preparing took.
        search: Facts of the search, those of the last comparison included.
        held: Facts that may be held out.
        together: Whether the facts of a step are edited together, all of them anew at each step.
    """

    seconds: float
    prepared: float
    search: int
    held: int
    together: bool = False

    @property
    def facts(self) -> int:
        """Facts on which candidates are compared."""
        return min(self.search, RUNGS[-1])

    def plan(self, pace: float) -> Plan:
        """Return what there is time for.

        Args:
            pace: Seconds of an edit.
        """
        left = self.seconds - self._gone(pace)
        held = max(LEAST_HELD, min(self.held, int(HELD_OUT * left / (2 * pace))))
        held = min(held, self.held)
        edits = left / pace - 2 * held - self._rule
        again = self.facts if self.together else 0
        more = int(LAST_SHARE * edits / FINALISTS) - again
        more = max(0, min(self.search - self.facts, more))
        deciding = FINALISTS * (again + more) if more else 0
        count, whole = 1, edits - deciding
        while count < MOST and self._halving(count + 1) <= HALVING * whole:
            count += 1
        if count < 2 and self._halving(2) <= HALVING * edits:
            count, more, deciding = 2, 0, 0  # the last comparison is left out
        return Plan(held, self.facts + more, count, deciding)

    @property
    def _rule(self) -> int:
        """Edits by the rule of thumb beyond the first, measured on all facts in any case."""
        return self.facts - (0 if self.together else RUNGS[0])

    def _halving(self, candidates: int) -> int:
        return cost(candidates, self.facts, self.together)

    def check(self, pace: float) -> None:
        """Refuse a time in which nothing can be compared.

        Raises:
            ConfigError: Says how much is needed.
        """
        plan = self.plan(pace)
        if plan.candidates > 1:
            return
        halving = self._halving(2) / HALVING
        needed = self._gone(pace) + (2 * plan.held + self._rule + halving) * pace
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


def cost(candidates: int, facts: int, together: bool = False) -> int:
    """Return how many edits halving over so many candidates takes.

    Args:
        candidates: Settings that it begins with.
        facts: Facts of its last step.
        together: Whether all facts of a step are edited anew, those of the step before included.
    """
    total, done, left = 0, 0, candidates
    for rung in steps_to(facts):
        total += left * (rung - (0 if together else done))
        done, left = rung, kept(left)
    return total
