"""Units as tasks of a Ray cluster (extra `cluster`).

Every machine needs errata, the same paths (a shared file system) and the models. Ray decides where
a unit runs; retries are the scheduler's, so that they are counted and resumed as everywhere.
"""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

from errata.errors import MissingExtra, RunError
from errata.sweeping.child import start
from errata.sweeping.schedule import Outcome
from errata.sweeping.units import Unit

Job = tuple[tuple[str, ...], str, str, str]
"""Words, folder, log and working folder of a unit."""


def run_unit(job: Job) -> tuple[int, float, str]:
    """Run a unit on the machine where this is called; return exit code, seconds and host."""
    words, folder, log, cwd = job
    began = time.monotonic()
    process = start(words, folder=Path(folder), log=Path(log), cwd=Path(cwd))
    try:
        code = process.wait()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    return code, time.monotonic() - began, platform.node()


class RayExecutor:
    """Runs units on a Ray cluster.

    Args:
        address: Of the cluster (`auto`, `ray://…`); None starts one on this machine.
        cpus: Cores that a unit reserves.
        gpus: GPUs that a unit reserves.
        local_cpus: Cores of a cluster started here; None: those of the machine.

    Raises:
        MissingExtra: If Ray is not installed.
        RunError: If the cluster cannot be reached, or has too few cores or GPUs for one unit.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        cpus: float = 1.0,
        gpus: float = 0.0,
        local_cpus: int | None = None,
    ) -> None:
        self._ray = ray = _import_ray()
        self._cwd = str(Path.cwd())
        options: dict[str, Any] = {"include_dashboard": False, "num_cpus": local_cpus}
        if address is not None:
            options = {"address": address}
        self._mine = not ray.is_initialized()
        if self._mine:
            try:
                ray.init(log_to_driver=False, logging_level="error", **options)
            except (ConnectionError, ValueError, RuntimeError, OSError) as error:
                raise RunError(
                    f"cannot use the Ray cluster {address or 'on this machine'}: {error}",
                    "Start one with: ray start --head, then --address auto",
                ) from error
        there = ray.cluster_resources()
        for name, wanted in (("CPU", cpus), ("GPU", gpus)):
            if wanted > there.get(name, 0.0):
                self.stop()
                raise RunError(
                    f"a unit reserves {wanted:g} {name}, the cluster has {there.get(name, 0):g}",
                    f"Set {name.lower()}s in [hardware] of the recipe.",
                )
        by_cpu = there["CPU"] / cpus
        self._slots = int(min(by_cpu, there["GPU"] / gpus) if gpus else by_cpu)
        # retries are the scheduler's; a fresh worker per unit gives all memory back
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, max_calls=1)
        self._task = remote(run_unit)
        self._running: dict[Any, tuple[Unit, float]] = {}

    @property
    def slots(self) -> int:
        """How many units the cluster takes at once."""
        return max(1, self._slots)

    def start(self, unit: Unit) -> None:
        """Hand a unit to the cluster."""
        job: Job = (unit.words, str(unit.folder), str(unit.log), self._cwd)
        reference = self._task.options(name=unit.name).remote(job)
        self._running[reference] = (unit, time.monotonic())

    def wait(self, seconds: float) -> list[tuple[Unit, Outcome]]:
        """Return the units that ended; wait for one, but no longer than this."""
        if not self._running:
            time.sleep(seconds)
            return []
        ended, _ = self._ray.wait(list(self._running), num_returns=1, timeout=seconds)
        return [self._outcome(reference) for reference in ended]

    def _outcome(self, reference: Any) -> tuple[Unit, Outcome]:
        unit, began = self._running.pop(reference)
        try:
            code, taken, host = self._ray.get(reference)
        except self._ray.exceptions.RayError:  # the worker or its machine died
            return unit, Outcome(None, time.monotonic() - began, "")
        return unit, Outcome(code, taken, host)

    def stop(self) -> None:
        """End what runs; a cluster started here ends too."""
        for reference in getattr(self, "_running", {}):
            self._ray.cancel(reference, force=True)
        if self._mine:
            self._ray.shutdown()


def _import_ray() -> Any:
    # what later versions do anyway: a unit that reserves no GPU keeps the environment it finds
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # units are the work of a cluster started here, not something in its background
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise MissingExtra("sweeps on a cluster", "Ray", "cluster") from None
    return ray
