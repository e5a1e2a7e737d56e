"""Units as processes of this machine."""

from __future__ import annotations

import platform
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from errata.sweeping.child import start
from errata.sweeping.schedule import Outcome
from errata.sweeping.units import Unit

POLL_SECONDS = 0.05
STOP_SECONDS = 20.0  # for a unit to write down what it has after an interrupt


@dataclass
class _Running:
    unit: Unit
    process: subprocess.Popen[bytes]
    slot: int
    started: float


class LocalExecutor:
    """Runs units as processes, a few at a time.

    Args:
        jobs: Units at once.
        devices: Numbers of GPUs; unit after unit sees one of them only. None: all see all.
        cwd: Where commands run.
    """

    def __init__(self, jobs: int, devices: Sequence[str] = (), cwd: Path | None = None) -> None:
        self._jobs, self._devices = jobs, tuple(devices)
        self._cwd = cwd or Path.cwd()
        self._running: list[_Running] = []

    @property
    def slots(self) -> int:
        """How many units run at once."""
        return self._jobs

    def start(self, unit: Unit) -> None:
        """Start a unit in the first free slot."""
        taken = {item.slot for item in self._running}
        slot = next(number for number in range(self._jobs + 1) if number not in taken)
        environment = {}
        if self._devices:
            environment["CUDA_VISIBLE_DEVICES"] = self._devices[slot % len(self._devices)]
        process = start(
            unit.words, folder=unit.folder, log=unit.log, cwd=self._cwd, environment=environment
        )
        self._running.append(_Running(unit, process, slot, time.monotonic()))

    def wait(self, seconds: float) -> list[tuple[Unit, Outcome]]:
        """Return the units that ended; wait for one, but no longer than this."""
        until = time.monotonic() + seconds
        while True:
            ended = [item for item in self._running if item.process.poll() is not None]
            if ended or time.monotonic() >= until:
                break
            time.sleep(POLL_SECONDS)
        self._running = [item for item in self._running if item not in ended]
        now = time.monotonic()
        return [
            (item.unit, Outcome(item.process.returncode, now - item.started, platform.node()))
            for item in ended
        ]

    def stop(self) -> None:
        """Interrupt all units, and kill those that do not end soon."""
        for item in self._running:
            item.process.send_signal(signal.SIGINT)
        until = time.monotonic() + STOP_SECONDS
        for item in self._running:
            try:
                item.process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                item.process.kill()
                item.process.wait()
        self._running = []
