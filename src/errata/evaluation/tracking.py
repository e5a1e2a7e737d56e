"""What is measured of a model while a sequence of edits goes on, beside the questions of cases."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from errata.evaluation.drift import drift
from errata.evaluation.perplexity import Text, perplexity
from errata.evaluation.scoring import Scorer

if TYPE_CHECKING:
    from errata.evaluation.general import General
    from errata.model.lm import LM
    from errata.patch import Patch

RECALLED = 200
"""Most edits that are asked again at one point, spread evenly over all edits so far: asking every
one at every point would cost the square of their number."""


@dataclass
class Tracker:
    """Measures perplexity, general ability and weight drift along sequences.

    Attributes:
        lm: The unedited model.
        scorer: Scores rows under patches.
        every: Steps between two points; 0 measures before the first and after the last only.
        text: What perplexity is measured on; None for none.
        general: Tasks of general ability; None for none.
    """

    lm: LM
    scorer: Scorer
    every: int = 0
    text: Text | None = None
    general: General | None = None
    _base: dict[str, Any] | None = field(default=None, repr=False)

    def base(self) -> dict[str, Any]:
        """Return the point of the unedited model, measured once."""
        if self._base is None:
            self._base = {"step": 0, "edits": 0, **self._ability(None)}
        return dict(self._base)

    def due(self, step: int, last: bool) -> bool:
        """Whether a point is measured after that step (from 1)."""
        return last or (self.every > 0 and step % self.every == 0)

    def point(self, step: int, edits: int, patch: Patch | None) -> dict[str, Any]:
        """Measure after a step.

        Args:
            step: Its number, from 1.
            edits: Edits carried out so far.
            patch: The sequence's patch.
        """
        return {
            "step": step,
            "edits": edits,
            **self._ability(patch),
            "drift": drift(self.lm, patch),
        }

    def _ability(self, patch: Patch | None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if self.text is not None:
            found["perplexity"] = perplexity(self.scorer, self.text, patch)
        if self.general is not None:
            found["general"] = self.general.measure(patch)
        return found


def spread(items: Sequence[Any], most: int = RECALLED) -> list[Any]:
    """Return at most `most` items, evenly spaced, first and last among them; of one the first."""
    if len(items) <= most:
        return list(items)
    return [items[i * (len(items) - 1) // max(1, most - 1)] for i in range(most)]
