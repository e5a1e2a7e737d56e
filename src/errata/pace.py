"""How long work still takes, by the pace of its recent past, and in words."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW_SECONDS = 30.0
"""The past that time left is judged by."""


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
