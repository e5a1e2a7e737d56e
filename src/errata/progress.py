"""How far long work has come: one system for the library and the command line.

```
watched(label)    what long work opens; yields a function to call with (done, total)
tracked(items)    the same around the items of a loop
listening(say)    what the command line opens: lines go to `say` where there is no terminal
displayed(make)   what another interface opens: it shows the work by itself
Rate              time left, by the pace of the recent past
```

Functions of the library that a caller waits for take a callback (`progress=`). What lies deeper
(moments, target values) opens `watched`. On a terminal it draws a bar; elsewhere it is silent
unless the command line listens, so that a script prints nothing that it has not asked for. Of work
inside other work only the outermost is shown that has begun: a bar of 20 steps inside one of 1,000
edits would say nothing.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from errata.printable import printable

T = TypeVar("T")

Step = Callable[..., None]
"""Called with (done, total) and, if there is something to say, a short text."""

Say = Callable[[str], None]
"""Prints one line."""

FIRST_SECONDS = 2.0
"""Before the first line of a log, and between it and the second."""

GROWTH, MOST_SECONDS = 1.5, 60.0
"""Lines of a log come less and less often, but at least every so many seconds."""

WINDOW_SECONDS = 30.0
"""The past that time left is judged by."""


class _Now(threading.local):
    """Who listens, and which work is shown; of one thread, so that two works do not meet."""

    say: Say | None = None
    make: Callable[[str], Display] | None = None
    shown: object | None = None


_now = _Now()


class Rate:
    """Time left, by what was done in the last half minute.

    The first step is not counted (it warms up: kernels, caches), nor what an earlier run did.

    Args:
        clock: Seconds from any start.
        window: Seconds of the past that count; None: all, for steps of very different length.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, window: float | None = WINDOW_SECONDS
    ) -> None:
        self._clock, self._window = clock, window
        self._seen: deque[tuple[float, float]] = deque()
        self._first: float | None = None

    def left(self, done: float, total: float) -> float | None:
        """Return the seconds left; None as long as two steps have not been seen.

        Args:
            done: What is done by now.
            total: All there is to do.
        """
        now = self._clock()
        if self._first is None:
            self._first = done
        elif done > self._first and (not self._seen or done > self._seen[-1][1]):
            self._seen.append((now, done))
        while (
            self._window is not None
            and len(self._seen) > 2
            and now - self._seen[1][0] > self._window
        ):
            self._seen.popleft()
        if len(self._seen) < 2:
            return None
        (begun, before), (_, last) = self._seen[0], self._seen[-1]
        # up to now, not up to the last step: a step that hangs makes the rest longer
        return (now - begun) / (last - before) * (total - done)


def told(seconds: float) -> str:
    """Say how long something takes, as roughly as it is known."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 36 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


class Display(Protocol):
    """Something that shows how far work is."""

    def step(self, done: int, total: int, text: str = "") -> None:
        """Show that `done` of `total` is done."""
        ...

    def close(self) -> None:
        """Take it away."""
        ...


class Lines:
    """Progress for logs: a line after some seconds, then less and less often.

    Args:
        label: What is being done.
        say: Prints a line.
        clock: Seconds from any start.
    """

    def __init__(self, label: str, say: Say, clock: Callable[[], float] = time.monotonic) -> None:
        self._label, self._say, self._clock = label, say, clock
        self._rate = Rate(clock)
        self._last, self._wait = clock(), FIRST_SECONDS

    def step(self, done: int, total: int, text: str = "") -> None:
        """Print a line if it is time for one; none at the end, where the result follows."""
        left = self._rate.left(done, total)
        now = self._clock()
        if done >= total or now - self._last < self._wait:
            return
        self._last, self._wait = now, min(self._wait * GROWTH, MOST_SECONDS)
        about = "" if left is None else f", about {told(left)} left"
        self._say(f"{self._label}: {done:,}/{total:,}{about}{f'; {text}' if text else ''}")

    def close(self) -> None:
        """Nothing is left to take away."""


class Bar:
    """Progress on a terminal: a bar, drawn from the first step on.

    Args:
        label: What is being done.
    """

    def __init__(self, label: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        console = Console(file=sys.stderr, highlight=False, markup=False, emoji=False)
        said = TextColumn("{task.description}", markup=False)  # a label may hold braces
        columns = (said, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar: Any = RichProgress(
            *columns,
            TextColumn("{task.fields[text]}", markup=False),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task(printable(label), total=None, text="")
        self._begun = False

    def step(self, done: int, total: int, text: str = "") -> None:
        """Move the bar; what was done before the first call says nothing about speed."""
        if not self._begun:
            self._bar.start()
            self._bar.reset(self._task, completed=max(done - 1, 0), total=total)
            self._begun = True
        self._bar.update(self._task, completed=done, total=total, text=printable(text))

    def close(self) -> None:
        """Remove the bar."""
        self._bar.stop()


@contextmanager
def listening(say: Say) -> Iterator[None]:
    """Print progress inside the block as lines where stderr is not a terminal.

    Args:
        say: Prints a line.
    """
    before, _now.say = _now.say, say
    try:
        yield
    finally:
        _now.say = before


@contextmanager
def displayed(make: Callable[[str], Display]) -> Iterator[None]:
    """Show progress inside the block by displays of one's own, and nowhere else.

    Args:
        make: Returns a display for a label. What its `step` raises ends the work.
    """
    before, _now.make = _now.make, make
    try:
        yield
    finally:
        _now.make = before


@contextmanager
def watched(label: str) -> Iterator[Step]:
    """Show how far the work of the block has come.

    Args:
        label: What is being done, in a few words.

    Yields:
        A function to call with (done, total) and maybe a text.
    """
    display: Display | None = None
    if _now.make is not None:
        display = _now.make(label)
    elif sys.stderr.isatty():
        display = Bar(label)
    elif _now.say is not None:
        display = Lines(label, _now.say)
    me = object()

    def step(done: int, total: int, text: str = "") -> None:
        if display is None:
            return
        if _now.shown is None:
            _now.shown = me
        if _now.shown is me:
            display.step(done, total, text)

    try:
        yield step
    finally:
        if display is not None:
            display.close()
        if _now.shown is me:
            _now.shown = None


def tracked(items: Sequence[T], label: str) -> Iterator[T]:
    """Yield items, and show how many of them are done; see `watched`.

    Args:
        items: What a loop goes over.
        label: What is being done, in a few words.
    """
    with watched(label) as step:
        for number, item in enumerate(items, 1):
            yield item
            step(number, len(items))
