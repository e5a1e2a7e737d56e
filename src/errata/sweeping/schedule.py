"""The order of units, and what happens when one of them fails: the same here and on a cluster."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from errata.progress import Rate, told
from errata.sweeping.child import tail
from errata.sweeping.state import State, Status
from errata.sweeping.units import Unit

WRONG_USAGE = 2  # exit code of a command that will never succeed as it is
RETRY_SECONDS = 1.0  # before the second attempt; twice as long before each one after


@dataclass(frozen=True)
class Outcome:
    """How one attempt ended.

    Attributes:
        code: Exit code; negative: the signal that ended it; None: its worker was lost.
        seconds: Duration.
        host: Machine.
    """

    code: int | None
    seconds: float
    host: str

    @property
    def text(self) -> str:
        """What happened, in words."""
        if self.code is None:
            return "its worker was lost"
        if self.code < 0:
            return f"killed by signal {-self.code}"
        return f"exit code {self.code}"


class Executor(Protocol):
    """Something that runs units."""

    @property
    def slots(self) -> int:
        """How many units it takes at once."""
        ...

    def start(self, unit: Unit) -> None:
        """Start a unit."""
        ...

    def wait(self, seconds: float) -> list[tuple[Unit, Outcome]]:
        """Return the units that ended; wait for one, but no longer than this."""
        ...

    def stop(self) -> None:
        """End what runs, so that it can be resumed."""
        ...


Say = Callable[[str], None]


def run(units: Sequence[Unit], state: State, executor: Executor, *, retries: int, say: Say) -> None:
    """Run all units that are not finished; `state` then holds how each of them ended.

    A unit whose command fails, is killed or loses its worker starts again with `--resume`, at most
    `retries` times; wrong usage is final. What needs a failed training is blocked, and all others
    still run.

    Args:
        units: All units, trainings before the cells that need them.
        state: The sweep's folder.
        executor: What runs them.
        retries: Further attempts per unit.
        say: Called with one line for everything that happens.
    """
    open_units = _first_look(units, state)
    total = len(open_units)
    if total < len(units):
        say(f"{len(units) - total} of {len(units)} units are finished")
    failures: dict[str, int] = dict.fromkeys(open_units, 0)
    not_before: dict[str, float] = {}
    running: dict[str, Unit] = {}
    rate = Rate(window=None)
    rate.left(0, total)
    try:
        while open_units or running:
            _block(open_units, state, say)
            now = time.monotonic()
            for unit in list(open_units.values()):
                if len(running) >= executor.slots:
                    break
                ready = all(state.units[name].status == "done" for name in unit.needs)
                if ready and not_before.get(unit.name, 0.0) <= now:
                    running[unit.name] = open_units.pop(unit.name)
                    _set(state, unit, "running", attempts=1)
                    executor.start(unit)
            if not running and not open_units:
                break
            for unit, outcome in executor.wait(1.0 if running else 0.1):
                del running[unit.name]
                again = _ended(unit, outcome, state, failures, retries)
                done = total - len(open_units) - len(running) - again
                progress = state.units[unit.name]
                if progress.status == "done":
                    left = rate.left(done, total)
                    about = "" if left is None or done == total else f", about {told(left)} left"
                    say(f"[{done}/{total}] {unit.name} · {outcome.seconds:.0f} s{about}")
                elif again:
                    pause = RETRY_SECONDS * 2 ** (failures[unit.name] - 1)
                    not_before[unit.name] = time.monotonic() + pause
                    open_units[unit.name] = unit
                    say(f"{unit.name}: {outcome.text}; attempt {failures[unit.name] + 1}")
                else:
                    say(f"[{done}/{total}] {unit.name} failed: {outcome.text}; see {unit.log}")
    except BaseException:
        executor.stop()
        for unit in running.values():
            done = unit.finished
            _set(state, unit, "done" if done else "waiting")
        raise


def _first_look(units: Sequence[Unit], state: State) -> dict[str, Unit]:
    """Return the units to run; note in the state what is finished."""
    open_units: dict[str, Unit] = {}
    for unit in units:
        progress = state.units[unit.name]
        progress.reason, progress.log = "", []
        if unit.finished:
            progress.status = "done"
        else:
            progress.status = "waiting"
            open_units[unit.name] = unit
    state.write()
    return open_units


def _block(open_units: dict[str, Unit], state: State, say: Say) -> None:
    """Take out what needs a training that failed."""
    for unit in list(open_units.values()):
        lost = [name for name in unit.needs if state.units[name].status == "failed"]
        if lost:
            del open_units[unit.name]
            _set(state, unit, "blocked", reason=f"{lost[0]} failed")
            say(f"{unit.name} cannot run: {lost[0]} failed")


def _ended(
    unit: Unit, outcome: Outcome, state: State, failures: dict[str, int], retries: int
) -> bool:
    """Note how an attempt ended; return whether there will be another."""
    progress = state.units[unit.name]
    progress.seconds += outcome.seconds
    progress.host = outcome.host
    if outcome.code == 0 and unit.finished:
        _set(state, unit, "done")
        return False
    failures[unit.name] += 1
    if outcome.code != WRONG_USAGE and failures[unit.name] <= retries:
        _set(state, unit, "waiting", reason=outcome.text)
        return True
    progress.log = tail(unit.log)
    reason = outcome.text if outcome.code != 0 else "it wrote no summary"
    _set(state, unit, "failed", reason=reason)
    return False


def _set(state: State, unit: Unit, status: Status, *, reason: str = "", attempts: int = 0) -> None:
    progress = state.units[unit.name]
    progress.status, progress.reason = status, reason
    progress.attempts += attempts
    state.write()
