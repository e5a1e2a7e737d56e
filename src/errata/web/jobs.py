"""One piece of work in a thread: how far it is, how long it will take, and how it is stopped.

Work is stopped where it asks (`check`): at every step of progress and in front of every block of
the model that runs. So it ends between two computations, as after Ctrl-C, and whatever was put on
the model is taken back on the way out.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from errata.errors import ErrataError
from errata.progress import Rate, displayed
from errata.refusals import refusal

if TYPE_CHECKING:
    from errata.model.lm import LM

T = TypeVar("T")
log = logging.getLogger(__name__)

LOOKS = 0.1
"""Seconds between two looks at a lock that another one has."""

BUG = "The page goes on. The traceback stands in the terminal where `errata web` runs."


class Stopped(BaseException):
    """Work was cancelled. As with Ctrl-C, no handler of errors may take it for one."""


@dataclass(frozen=True)
class Progress:
    """How far work has come.

    Attributes:
        what: What is being done.
        seconds: Since the work began.
        done: Steps done.
        total: Steps in all; 0: not known.
        left: Seconds left, as far as can be told.
        waits: Whether it waits until other work on the model has ended.
        ends: Whether it was cancelled and is about to end.
    """

    what: str
    seconds: float
    done: float = 0
    total: float = 0
    left: float | None = None
    waits: bool = False
    ends: bool = False


class Job(Generic[T]):
    """Work that runs in a thread of its own.

    Args:
        work: Does it; gets the job, to say what it does and to ask whether to go on.
        lock: Held while it works.
        what: What is being done, at first.
        given_up: Whether nobody waits for the result any more.
        clock: Seconds from any start.
    """

    def __init__(
        self,
        work: Callable[[Job[T]], T],
        lock: threading.Lock,
        what: str,
        given_up: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._work, self._lock, self._given_up, self._clock = work, lock, given_up, clock
        self._began = clock()
        self._what, self._steps, self._rate = what, (0.0, 0.0), Rate(clock)
        self._cancelled, self._ended = threading.Event(), threading.Event()
        self._waits = True
        self.result: T | None = None
        self.error: ErrataError | None = None
        self.stopped = False
        self._thread = threading.Thread(target=self._run, name="errata-web", daemon=True)

    def start(self) -> Job[T]:
        """Begin."""
        self._thread.start()
        return self

    # ------------------------------------------------------------------ seen from outside

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return not self._ended.is_set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it has ended, or some seconds; whether it has."""
        return self._ended.wait(seconds)

    def cancel(self) -> None:
        """Ask it to end; it does so at its next step, with nothing changed."""
        self._cancelled.set()

    @property
    def progress(self) -> Progress:
        """How far it is now."""
        done, total = self._steps
        left = self._rate.left(done, total) if total else None
        return Progress(
            self._what, self._clock() - self._began, done, total, left,
            waits=self._waits, ends=self._cancelled.is_set(),
        )  # fmt: skip

    # ------------------------------------------------------------------ called by the work

    def check(self) -> None:
        """Stop here if it was cancelled, or nobody waits for it any more.

        Raises:
            Stopped: Then.
        """
        if self._cancelled.is_set() or self._given_up():
            raise Stopped

    def stage(self, what: str) -> None:
        """Say what is done from now on."""
        self.check()
        self._what, self._steps, self._rate = what, (0.0, 0.0), Rate(self._clock)

    def step(self, done: float, total: float, text: str = "") -> None:
        """Say how far the stage is."""
        self.check()
        self._steps = done, total

    @contextmanager
    def watching(self, lm: LM) -> Iterator[None]:
        """Ask in front of every block of a model, too, whether to go on."""
        from errata.model.hooks import before, hooked

        blocks = [lm.module(path) for path in lm.spec.blocks]
        with hooked(
            lm, *(before(block, lambda *_: self.check()) for block in blocks), lasting=True
        ):
            yield

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        try:
            self._take()
            try:
                with displayed(lambda label: _Shown(self, label)):
                    self.result = self._work(self)
            finally:
                self._lock.release()
        except Stopped:
            self.stopped = True
        except ErrataError as error:
            self.error = error
        except BaseException as error:
            self.error = refusal(error)
            if self.error is None:
                log.exception("errata web: %s", self._what)
                named = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
                self.error = ErrataError(f"errata failed, which is a bug of it: {named}", BUG)
        finally:
            self._ended.set()

    def _take(self) -> None:
        """Wait for the lock, and leave off waiting when cancelled."""
        while not self._lock.acquire(timeout=LOOKS):
            self.check()
        self._waits = False


class _Shown:
    """Shows the progress of the library as that of a job."""

    def __init__(self, job: Job, label: str) -> None:
        self._job, self._label, self._begun = job, label, False

    def step(self, done: int, total: int, text: str = "") -> None:
        if not self._begun:
            self._job.stage(self._label)
            self._begun = True
        self._job.step(done, total, text)

    def close(self) -> None:
        """The next stage says what follows."""
