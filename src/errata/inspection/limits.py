"""When a sequence of edits has done too much harm: perplexity of general sentences.

```
1, 2, 4, 8 … steps, and the last       when it is measured; under a limit every twentieth as well
x 2       damaged: a warning           perplexity against that of the unedited model
x 10      collapsed: what it says is no result any more
```
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from errata.arguments import expect
from errata.errors import ConfigError

EXAMPLE = "perplexity=2x"
NEVER = "never"
"""As a limit: a sequence goes on, whatever it does to the model."""


def parse_limit(text: str | None) -> float | None:
    """Read `perplexity=2x`: the largest perplexity relative to the unedited model; None for None.

    `never` is read as a limit that nothing exceeds.

    Raises:
        ConfigError: If it is not of that form, or not above 1.
    """
    if text is None:
        return None
    expect(text, str, "stop_when", "a text", 'Example: "perplexity=2x"')
    if text.strip() == NEVER:
        return math.inf
    found = re.fullmatch(r"perplexity=(\d+(?:\.\d+)?)x?", text.strip())
    if found is None or not float(found[1]) > 1:
        raise ConfigError(
            f"stop_when {text!r}: expected perplexity=Nx, N times that of the unedited model, N "
            f"above 1, or {NEVER}",
            f"Example: {EXAMPLE}",
        )
    return float(found[1])


DAMAGED, COLLAPSED = 2.0, 10.0
"""Perplexity relative to the unedited model from which a model counts as damaged, as collapsed."""

POINTS = 20
"""Measurements of a long sequence under a limit, beside those after 1, 2, 4, 8 … steps."""


def due(step: int, length: int, limited: bool) -> bool:
    """Whether a sequence is measured after that step (from 1): it depends on nothing else.

    Args:
        step: The step.
        length: Steps of the whole sequence.
        limited: Whether it may be stopped.
    """
    often = limited and step % max(1, length // POINTS) == 0
    return often or step & (step - 1) == 0 or step == length


def worst(points: Sequence[Mapping[str, Any]]) -> float:
    """Return the largest relative perplexity of a sequence; 1 where nothing was measured."""
    return max((_ratio(point) for point in points), default=1.0)


def first_over(points: Sequence[Mapping[str, Any]], limit: float = COLLAPSED) -> int | None:
    """Return the number of edits at which a relative perplexity was first measured over a limit."""
    return next((int(point["edits"]) for point in points if _ratio(point) > limit), None)


def times(ratio: float) -> str:
    """Return a factor in words."""
    if not math.isfinite(ratio):
        return "infinitely many times"
    return f"{ratio:,.0f} times" if ratio >= COLLAPSED else f"{ratio:.1f} times"


def told_of(records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return what was measured of several sequences; None if none was.

    Args:
        records: Of each sequence its `points`, and `stopped` if it was.
    """
    if not records:
        return None
    every = [record["points"] for record in records]
    over = [edits for points in every if (edits := first_over(points)) is not None]
    ratio = max(map(worst, every))
    return {
        "sequences": len(every),
        "damaged": sum(worst(points) > DAMAGED for points in every),
        "collapsed": len(over),
        "collapsed_after": min(over, default=None),
        "stopped": sum(record.get("stopped") is not None for record in records),
        "worst": ratio if math.isfinite(ratio) else None,
    }


def _ratio(point: Mapping[str, Any]) -> float:
    value = point["perplexity_ratio"]
    return math.inf if value is None else float(value)
