"""What steps share: the list they are in, the budget of seconds, and the file of figures."""

from __future__ import annotations

import argparse
import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

GRACE = 2.5
"""A step is stopped after so many times its estimate, or when the budget ends."""

LEAST = 20.0
"""Seconds that every step may take, however short its estimate."""


class Overdue(BaseException):
    """A step took too long; a BaseException so that no handler of errors swallows it."""


@dataclass
class Bench:
    """A run: options, the clock and the file of figures.

    Attributes:
        args: Options of the command line.
        out: Folder of results.
        device: Where models are.
        small: Whether sizes are cut down, as on a CPU.
        kept: What a step leaves for later ones.
    """

    args: argparse.Namespace
    out: Path
    device: str
    small: bool
    began: float = field(default_factory=time.perf_counter)
    step: str = ""
    failed: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.args.budget - (time.perf_counter() - self.began)

    @property
    def is_cuda(self) -> bool:
        """Whether models are on an NVIDIA GPU."""
        return self.device.startswith("cuda")

    def record(self, what: str, **values: Any) -> None:
        """Write figures to `results.jsonl` and to the terminal."""
        at = round(time.perf_counter() - self.began, 2)
        line = {"at": at, "step": self.step, "what": what, **values}
        with (self.out / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
        shown = "  ".join(f"{key}={_short(value)}" for key, value in values.items())
        print(f"[{at:6.1f}] {self.step}: {what}  {shown}", flush=True)

    def check(self, what: str, good: bool, **values: Any) -> bool:
        """Record a figure that has to hold; a step with one that does not counts as failed."""
        self.record(what, ok=bool(good), **values)
        if not good and self.step not in self.failed:
            self.failed.append(self.step)
        return bool(good)

    @contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """Record an error inside as a failed figure and go on: no editor costs the others."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}"[:600]
            self.check(what, False, error=text, where=_where(error))

    def synchronise(self) -> None:
        """Wait until the GPU is done."""
        if self.is_cuda:
            import torch

            torch.cuda.synchronize()

    def timed(self, way: Callable[[], Any], repeats: int = 1) -> tuple[float, Any]:
        """Return the least seconds of some repeats, and what the last one returned."""
        least, result = float("inf"), None
        for _ in range(repeats):
            self.synchronise()
            start = time.perf_counter()
            result = way()
            self.synchronise()
            least = min(least, time.perf_counter() - start)
        return least, result

    def peak(self) -> float | None:
        """Return the most GPU memory in GB since the last call of `forget_peak`."""
        if not self.is_cuda:
            return None
        import torch

        return round(torch.cuda.max_memory_allocated() / 1e9, 3)

    def forget_peak(self) -> None:
        """Start measuring the most memory anew."""
        if self.is_cuda:
            import gc

            import torch

            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


@dataclass(frozen=True)
class Step:
    """A named part of the run.

    Attributes:
        name: For `--only`.
        seconds: Estimate on a GPU.
        run: The work.
        limit: Seconds after which it is stopped; None: by its estimate.
    """

    name: str
    seconds: float
    run: Callable[[Bench], None]
    limit: float | None = None


def run_step(bench: Bench, step: Step) -> None:
    """Run one step; whatever happens in it, the next one goes on."""
    bench.step = step.name
    if bench.left < step.seconds:
        bench.skipped.append(step.name)
        bench.record("left out", needs=step.seconds, left=round(bench.left, 1))
        return
    limit = step.limit or max(LEAST, GRACE * step.seconds)
    limit = min(bench.left, limit * (10 if bench.small else 1))
    start = time.perf_counter()

    def overdue(*_: Any) -> None:
        raise Overdue(f"longer than {limit:.0f} seconds")

    signal.signal(signal.SIGALRM, overdue)
    signal.setitimer(signal.ITIMER_REAL, max(limit, 0.1))
    try:
        step.run(bench)
    except (Exception, Overdue) as error:
        traceback.print_exc()
        text = f"{type(error).__name__}: {error}"[:600]
        bench.check("error", False, error=text, where=_where(error))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        bench.step = step.name
        took = round(time.perf_counter() - start, 2)
        bench.record("done", seconds=took, ok=step.name not in bench.failed)
        bench.forget_peak()


def _where(error: BaseException) -> str:
    """Return the last lines of a traceback that lie in the package or here."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/errata/" in f.filename or "/benchmarks/" in f.filename]
    return " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(own[-4:]))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
