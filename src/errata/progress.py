"""How far long work has come: one system for the library and the command line.

```
watched(label)    what long work opens; yields a function to call with (done, total)
tracked(items)    the same around the items of a loop
waiting(label)    around work that cannot be counted: one call into a library, a file that is read
listening(say)    what the command line opens: lines go to `say` where there is no terminal
displayed(make)   what another interface opens: it shows the work by itself
```

Functions of the library that a caller waits for take a callback (`progress=`). What lies deeper
(moments, target values) opens `watched`. On a terminal it draws a bar; elsewhere it is silent
unless the command line listens, so that a script prints nothing that it has not asked for. Of work
inside other work only the outermost is shown that has begun: a bar of 20 steps inside one of 1,000
edits would say nothing. Waiting gives way to whatever can be counted, and to waiting for something
more exact.

Lines come also while a step takes long: a thread looks every second whether one is due.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from errata.pace import Rate as Rate
from errata.pace import told as told
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

TICK_SECONDS = 1.0
"""Between two looks whether a line is due."""


class _Now(threading.local):
    """Who listens, and which work is shown; of one thread, so that two works do not meet."""

    say: Say | None = None
    make: Callable[[str], Display] | None = None
    shown: object | None = None

    def __init__(self) -> None:  # runs once in every thread
        self.waits: list[Wait] = []


_now = _Now()


class Display(Protocol):
    """Something that shows how far work is."""

    def step(self, done: int, total: int, text: str = "") -> None:
        """Show that `done` of `total` is done."""
        ...

    def close(self) -> None:
        """Take it away."""
        ...


class Ticker:
    """Calls something every second until it is stopped, from a thread of its own.

    Args:
        look: What is called.
    """

    def __init__(self, look: Callable[[], None]) -> None:
        self._look, self._over = look, threading.Event()
        self._thread = threading.Thread(target=self._run, name="errata progress", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(TICK_SECONDS):
            self._look()

    def stop(self) -> None:
        """End it; afterwards nothing is called any more."""
        self._over.set()
        if self._thread is not threading.current_thread():
            self._thread.join()


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
        self._begun = self._last = clock()
        self._wait = FIRST_SECONDS
        self._seen: tuple[int, int, str] | None = None
        self._lock = threading.Lock()

    def step(self, done: int, total: int, text: str = "") -> None:
        """Print a line if it is time for one; none at the end, where the result follows."""
        with self._lock:
            self._seen = (done, total, text)
            self._line(done, total, text)

    def look(self) -> None:
        """Print a line if it is time for one, though no step has ended since the last."""
        with self._lock:
            if self._seen is not None:
                self._line(*self._seen)

    def _line(self, done: int, total: int, text: str) -> None:
        left = self._rate.left(done, total)
        now = self._clock()
        if done >= total or now - self._last < self._wait:
            return
        self._last, self._wait = now, min(self._wait * GROWTH, MOST_SECONDS)
        about = f", about {told(left)} left" if left is not None else ""
        if left is None and now - self._begun >= 1:  # all that is known before a first step
            about = f", {told(now - self._begun)} so far"
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


class Wait(Protocol):
    """Something that shows that work goes on which cannot be counted."""

    def start(self) -> None:
        """Show it, for the first time or again."""
        ...

    def stop(self) -> None:
        """Take it away, for good or until something else is done."""
        ...


class WaitLines:
    """Waiting for logs: a line after some seconds, then less and less often.

    Args:
        label: What is being done.
        say: Prints a line.
        clock: Seconds from any start.
    """

    def __init__(self, label: str, say: Say, clock: Callable[[], float] = time.monotonic) -> None:
        self._label, self._say, self._clock = label, say, clock
        self._begun = self._last = clock()
        self._wait = FIRST_SECONDS
        self._ticker: Ticker | None = None

    def look(self) -> None:
        """Print a line if it is time for one."""
        now = self._clock()
        if now - self._last < self._wait:
            return
        self._last, self._wait = now, min(self._wait * GROWTH, MOST_SECONDS)
        self._say(f"{self._label}, {told(now - self._begun)} so far")

    def start(self) -> None:
        """Begin to look whether a line is due."""
        self._last = self._clock()
        self._ticker = self._ticker or Ticker(self.look)

    def stop(self) -> None:
        """No line comes any more."""
        if self._ticker is not None:
            self._ticker.stop()
        self._ticker = None


class Spinner:
    """Waiting on a terminal.

    Args:
        label: What is being done.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._status: Any = None

    def start(self) -> None:
        """Let it turn."""
        if self._status is not None:
            return
        from rich.console import Console
        from rich.text import Text

        console = Console(file=sys.stderr, highlight=False, markup=False, emoji=False)
        self._status = console.status(Text(printable(self._label)))
        self._status.start()

    def stop(self) -> None:
        """Remove it."""
        if self._status is not None:
            self._status.stop()
        self._status = None


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
    ticker: Ticker | None = None
    me = object()

    def close() -> None:
        nonlocal display, ticker
        if ticker is not None:
            ticker.stop()
        if display is not None:
            display.close()
        display = ticker = None
        if _now.shown is me:
            _now.shown = None
            _resume()

    def step(done: int, total: int, text: str = "") -> None:
        nonlocal display, ticker
        if display is None and _now.shown is None and done < total:
            made = _display(label)
            if made is None:
                return
            _pause()
            display, _now.shown = made, me
            ticker = Ticker(made.look) if isinstance(made, Lines) else None
        if display is not None:
            display.step(done, total, text)
            if done >= total:  # what follows is something else
                close()

    try:
        yield step
    finally:
        close()


def _display(label: str) -> Display | None:
    if _now.make is not None:
        return _now.make(label)
    if sys.stderr.isatty():
        return Bar(label)
    return None if _now.say is None else Lines(label, _now.say)


def _pause() -> None:
    if _now.waits:
        _now.waits[-1].stop()


def _resume() -> None:
    if _now.waits and _now.shown is None:
        _now.waits[-1].start()


@contextmanager
def waiting(label: str) -> Iterator[None]:
    """Show that the work of the block goes on, where nothing inside can say how far it has come.

    Args:
        label: What is being done, in a few words.
    """
    own: Wait | None = None
    if _now.make is not None:
        pass  # what is shown elsewhere is what can be counted
    elif sys.stderr.isatty():
        own = Spinner(label)
    elif _now.say is not None:
        own = WaitLines(label, _now.say)
    if own is None:
        yield
        return
    _pause()
    _now.waits.append(own)
    _resume()
    try:
        yield
    finally:
        own.stop()
        _now.waits.remove(own)
        _resume()


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
